"""python -m benchmarks.optimizer_step: our AdamW against torch's fused one, same gradients."""

from __future__ import annotations

import sys

import torch

from benchmarks.side_by_side import report, side_by_side
from minigpt.model.gpt import GPT
from minigpt.model.zoo import find
from minigpt.optim.adamw import AdamW, decay_groups
from minigpt.optim.execution import compiled, in_slices, plain


def main() -> None:
    for name in sys.argv[1:] or ["mini", "cerebras-111m"]:
        model = GPT(find(name).config)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-3
        groups = decay_groups(model, 0.1)
        optimizers = {
            "torch fused": torch.optim.AdamW(groups, lr=1e-4, fused=True),
            "ours, compiled": AdamW(groups, lr=1e-4, execution=compiled),
            "ours, in slices": AdamW(groups, lr=1e-4, execution=in_slices),
            "ours, plain": AdamW(groups, lr=1e-4, execution=plain),
        }
        ways = {label: optimizer.step for label, optimizer in optimizers.items()}
        rounds = 30 if name == "cerebras-111m" else 200
        report(f"AdamW step of {name}", side_by_side(ways, rounds), "torch fused")


if __name__ == "__main__":
    main()
