"""python -m benchmarks.decode: cached greedy decoding against transformers' generate, same
weights and dtype.
"""

from __future__ import annotations

import argparse

import torch
import transformers

import minigpt
from benchmarks.side_by_side import report, side_by_side
from minigpt.model.gpt import GPT, GPTConfig
from minigpt.model.zoo import find

SMALL = GPTConfig(257, 1024, 4, 4, 128, activation="gelu")


def theirs(config: GPTConfig, dtype: torch.dtype):
    return (
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=config.vocab_size, n_positions=config.n_positions,
                n_embd=config.n_embd, n_layer=config.n_layer, n_head=config.n_head,
                activation_function="gelu", bos_token_id=0, eos_token_id=None, pad_token_id=0,
            )
        ).eval().to(dtype)
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    for name, config in (
        ("mini", SMALL),
        ("cerebras-111m", find("cerebras-111m").config),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            model, reference = GPT(config).eval().to(dtype), theirs(config, dtype)
            prompt = torch.randint(1, config.vocab_size, (1, flags.prompt))
            ids = prompt[0].tolist()
            mask = torch.ones_like(prompt)

            def hf(reference=reference, prompt=prompt, mask=mask):
                return reference.generate(
                    prompt, attention_mask=mask, max_new_tokens=flags.new, do_sample=False
                )

            def us(model=model, ids=ids):
                return minigpt.generate(model, ids, flags.new, temperature=0)

            medians = side_by_side(
                {"transformers generate": hf, "minigpt generate": us}, flags.rounds
            )
            what = "%s, %s, %d new tokens after %d" % (name, dtype, flags.new, flags.prompt)
            report(what, medians, "transformers generate")
            seconds = medians["minigpt generate"] / flags.new
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            print("  minigpt reads its weights at %.1f GB/s" % (weights / seconds / 1e9))


if __name__ == "__main__":
    main()
