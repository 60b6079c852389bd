"""From float32 to bfloat16 without losing small changes.

    split(x) = upper, lower            upper + lower = x, up to 16 bits of precision
    E[round_stochastically(x)] = x     up or down at random, the nearer neighbour more often

bfloat16 has 8 bits of precision, so near 0.02 its numbers are 1.2e-4 apart. At a learning rate of
1e-5 AdamW changes a weight by a twelfth of that, and rounding to nearest would drop every change.
A weight is therefore kept as two numbers: what rounding drops is carried over to the next step
(Kahan 1965). AdamW's running means need less: they only have to be right on average, which
stochastic rounding achieves. (Rounded to nearest, the mean of squares could never fall: it changes
by about a thousandth a step.)
"""

from __future__ import annotations

import math
from typing import Tuple

import torch
from torch import Tensor

# A bfloat16 is the upper 16 bits of a float32. Adding an integer to the bits of a float32 and then
# clearing the lower half rounds it: up if the sum of the lower halves overflows, else down.
_LOWER_HALF = 1 << 16  # how many values it has


def round_stochastically(x: Tensor) -> Tensor:
    """float32 -> bfloat16: up or down at random, so that the mean of many roundings is x."""
    noise = torch.randint(_LOWER_HALF, x.shape, dtype=torch.int32, device=x.device)
    return _add_and_truncate(x, noise).to(torch.bfloat16)


def split(x: Tensor) -> Tuple[Tensor, Tensor]:
    """float32 -> two bfloat16: x rounded to the nearest (ties to even), and the rest."""
    # Not x - x.to(bfloat16).float(): a compiler may skip that rounding, and the rest would be 0.
    last_bit = (x.contiguous().view(torch.int32) >> 16) & 1
    upper = _add_and_truncate(x, last_bit + (_LOWER_HALF // 2 - 1))
    return upper.to(torch.bfloat16), (x - upper).to(torch.bfloat16)


def _add_and_truncate(x: Tensor, integer: Tensor) -> Tensor:
    bits = (x.contiguous().view(torch.int32) + integer) & -_LOWER_HALF
    # In a NaN all bits may be set (as on some GPUs); adding to them would give a small number.
    return bits.view(torch.float32).masked_fill_(x != x, math.nan)
