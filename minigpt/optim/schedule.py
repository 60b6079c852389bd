"""The learning rate of each step: a linear warmup to the peak, then one of four shapes.

    cosine    minimum + (peak - minimum) (1 + cos(pi t)) / 2   Loshchilov & Hutter 2017
    linear    peak - (peak - minimum) t
    constant  peak
    wsd       peak; over the last fifth linearly to minimum    warmup-stable-decay, Hu et al. 2024

t goes from 0 (first step after the warmup) to 1 (last step).
"""

from __future__ import annotations

import math
from typing import Callable, Dict

_SHAPES: Dict[str, Callable[[float], float]] = {
    "cosine": lambda t: 0.5 * (1.0 + math.cos(math.pi * t)),
    "linear": lambda t: 1.0 - t,
    "constant": lambda t: 1.0,
    "wsd": lambda t: min(1.0, (1.0 - t) / 0.2),
}
SCHEDULES = tuple(_SHAPES)


def learning_rate(
    step: int, steps: int, peak: float, minimum: float, warmup_steps: int, schedule: str
) -> float:
    """The rate of step number `step`, from 0 to steps - 1."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    t = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return minimum + (peak - minimum) * _SHAPES[schedule](min(t, 1.0))
