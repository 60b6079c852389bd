"""The learning rate as a function of the step: a linear warmup, then one of four shapes.

    cosine    min + (peak - min) (1 + cos(pi t)) / 2        Loshchilov & Hutter 2017
    linear    peak - (peak - min) t
    constant  peak
    wsd       peak, then linearly to min over the last fifth   Hu et al. 2024 (warmup, stable,
    decay)

with t from 0 (end of warmup) to 1 (last step).
"""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "linear", "constant", "wsd")

_WSD_DECAY = 0.2


def learning_rate(
    step: int, steps: int, peak: float, minimum: float, warmup_steps: int, schedule: str
) -> float:
    """The rate of step number `step` (0 to steps - 1) out of `steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    t = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return minimum + (peak - minimum) * _shape(min(t, 1.0), schedule)


def _shape(t: float, schedule: str) -> float:
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * t))
    if schedule == "linear":
        return 1.0 - t
    if schedule == "wsd":
        return min(1.0, (1.0 - t) / _WSD_DECAY)
    return 1.0
