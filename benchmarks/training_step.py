"""python -m benchmarks.training_step: a step of ours against transformers' GPT2LMHeadModel with
fused AdamW.

The cerebras-111m shape, 4 x 512 tokens, bfloat16 autocast over fp32 weights, gradients clipped,
on the CPU.
"""

from __future__ import annotations

import argparse

import torch
import transformers

from benchmarks.side_by_side import report, side_by_side
from minigpt.data.batch import Batch
from minigpt.devices.device import find_device
from minigpt.model.gpt import GPT
from minigpt.model.zoo import find
from minigpt.optim import execution
from minigpt.optim.adamw import AdamW, decay_groups
from minigpt.optim.update import clip_scale
from minigpt.training.apply import objective_for


def theirs(name: str, tokens: torch.Tensor):
    config = find(name).config
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size, n_positions=config.n_positions, n_embd=config.n_embd,
            n_layer=config.n_layer, n_head=config.n_head, activation_function="gelu",
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    ).train()  # fmt: skip
    optimizer = torch.optim.AdamW(decay_groups(model, 0.1), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def ours(name: str, tokens: torch.Tensor, compiled: bool):
    model = GPT(find(name).config)
    way = execution.compiled if compiled else execution.in_slices
    optimizer = AdamW(decay_groups(model, 0.1), lr=1e-4, execution=way)
    objective = objective_for(model, find_device("cpu"), "bf16-mixed", compiled=compiled)
    batch = Batch(tokens, tokens.roll(-1, 1), tokens.numel())

    def step() -> None:
        (objective(batch) / batch.supervised).backward()
        optimizer.step(clip_scale(model.parameters(), 1.0)[1])
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="cerebras-111m")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--block-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    flags = parser.parse_args()
    torch.manual_seed(0)
    tokens = torch.randint(0, 50257, (flags.rows, flags.block_size))
    ways = {
        "transformers, fused AdamW": theirs(flags.model, tokens),
        "minigpt": ours(flags.model, tokens, False),
    }
    if flags.compile:
        ways["minigpt --compile"] = ours(flags.model, tokens, True)
    medians = side_by_side(ways, flags.rounds)
    what = "training step, %s, %d x %d tokens, bf16-mixed"
    report(what % (flags.model, flags.rows, flags.block_size), medians, "transformers, fused AdamW")


if __name__ == "__main__":
    main()
