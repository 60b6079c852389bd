"""python -m benchmarks.loss_memory: the head and the loss in pieces against all logits at once.

Forward and backward of 4 x 512 positions of width 768 over 50,257 tokens, in fp32; each way in a
process of its own, whose largest memory beyond what it began with is what it took.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict

import torch
from torch import Tensor

from benchmarks.side_by_side import report, side_by_side
from minigpt.training.fast_loss import linear_cross_entropy
from minigpt.training.objective import cross_entropy_sum

WAYS: Dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "all logits": lambda x, head, targets: cross_entropy_sum(x @ head.t(), targets),
    "in pieces": linear_cross_entropy,
}


def step(way: str) -> Callable[[], None]:
    torch.manual_seed(0)
    x = torch.randn(2048, 768, requires_grad=True)
    head = (0.02 * torch.randn(50257, 768)).requires_grad_()
    targets = torch.randint(0, 50257, (2048,))

    def run() -> None:
        x.grad = head.grad = None
        WAYS[way](x, head, targets).backward()

    return run


def peak() -> float:
    """GB, the most so far. (ru_maxrss would begin with what the starting process had.)"""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=WAYS)
    flags = parser.parse_args()
    if flags.only:
        run, before = step(flags.only), peak()
        run()
        print("%-12s %.2f GB beyond its input" % (flags.only, peak() - before))
        return
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.loss_memory", "--only", way]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    began = time.perf_counter()
    medians = side_by_side({way: step(way) for way in WAYS}, flags.rounds)
    report("head and loss, forward and backward", medians, "all logits")
    print("took %.0f s" % (time.perf_counter() - began))


if __name__ == "__main__":
    main()
