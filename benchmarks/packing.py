"""python -m benchmarks.packing: a training step on packed records against one on padded rows.

The library's documented functions, block 1024; useful tokens (prompts and answers, no padding) a
second, on both forms of attention, and packed also under the mask that a compiler or MoAI takes.
"""

from __future__ import annotations

import argparse
from typing import Callable

import numpy as np
import torch

from benchmarks.side_by_side import side_by_side
from minigpt.data.batch import Batch
from minigpt.data.datasets import open_datasets
from minigpt.data.tokenizer import load_tokenizer
from minigpt.devices.device import find_device
from minigpt.model.attention import HAS_FUSED, explicit_attention, fused_attention
from minigpt.model.config import GPTConfig
from minigpt.model.gpt import GPT
from minigpt.optim.adamw import AdamW, decay_groups
from minigpt.training.apply import objective_for

FORMS = {"explicit": explicit_attention, **({"fused": fused_attention} if HAS_FUSED else {})}


def step(model: GPT, batch: Batch, precision: str, masked: bool) -> Callable[[], None]:
    optimizer = AdamW(decay_groups(model, 0.1), lr=1e-5)
    objective = objective_for(model, find_device("cpu"), precision)
    objective.masked = masked

    def run() -> None:
        (objective(batch) / batch.supervised).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=flags.layers, n_head=flags.width // 64, n_embd=flags.width))
    tokenizer = load_tokenizer("gpt2")
    sets = {p: open_datasets("stdlib-functions", tokenizer, 1024, packing=p).train for p in (0, 1)}
    for packed, dataset in sets.items():
        share = dataset.token_count / len(dataset) / 1024
        print("packed" if packed else "padded", len(dataset), "rows, %.1f%% useful" % (100 * share))
    for name, form in FORMS.items():
        model.use_attention(form)
        useful, ways = {}, {}
        for way, (packed, masked) in WAYS.items():
            # rows spread over the set: the packer puts the longest first
            dataset = sets[packed]
            batch = dataset.batch(np.linspace(0, len(dataset) - 1, flags.rows + 2, dtype=int)[1:-1])
            useful[way] = batch.tokens.numel() - batch.padding
            ways[way] = step(model, batch, flags.precision, masked)
        medians = side_by_side(ways, flags.rounds)
        speeds = {way: useful[way] / seconds for way, seconds in medians.items()}
        for way, speed in speeds.items():
            ratio = speed / speeds["padded to 1024"]
            row = (name, way, 1e3 * medians[way], speed, ratio)
            print("%-9s %-24s %8.0f ms a step %8.0f useful tokens/s  %.2fx" % row)


WAYS = {
    "padded to 1024": (0, False),
    "packed, by document": (1, False),
    "packed, one mask": (1, True),
}

if __name__ == "__main__":
    main()
