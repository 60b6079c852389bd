"""Numbers of 32 bits kept in 16, so that small steps are not lost.

    weight + carry = the weight        two bfloat16 numbers, the second what the first cannot hold
    E[round(x)] = x                    rounding up or down by chance, in proportion (stochastic)

A bfloat16 number has 8 bits of precision: a weight of 0.02 moves in steps of 1.2e-4, and AdamW at
a learning rate of 1e-5 asks for a twelfth of that, which rounding to the nearest drops every time.
So what a weight's rounding drops is carried on to the next step (Kahan 1965). The running means of
AdamW only need to be right on average, which rounding by chance gives them: the second moves by a
thousandth a step, and rounded to the nearest it would never come down.
"""

from __future__ import annotations

import math
from typing import Tuple

import torch
from torch import Tensor

_LOW_BITS = 1 << 16  # of a float32 that a bfloat16 has not


def round_by_chance(x: Tensor) -> Tensor:
    """x float32 -> bfloat16, one of the two neighbours of x, the nearer one more likely."""
    noise = torch.randint(_LOW_BITS, x.shape, dtype=torch.int32, device=x.device)
    return _raised(x, noise).to(torch.bfloat16)  # carries into the upper half in proportion


def split(x: Tensor) -> Tuple[Tensor, Tensor]:
    """x float32 -> two bfloat16 numbers whose sum is x to 16 bits of precision."""
    # To the nearest, ties to even, in integers: of x - x.to(bfloat16).float() a compiler makes 0,
    # since it goes on with the float32 number that it still has.
    last_bit = (x.contiguous().view(torch.int32) >> 16) & 1
    upper = _raised(x, last_bit + (_LOW_BITS // 2 - 1))
    return upper.to(torch.bfloat16), (x - upper).to(torch.bfloat16)


def _raised(x: Tensor, bits: Tensor) -> Tensor:
    """x with `bits` added to its own, and the low half of them dropped."""
    raised = (x.contiguous().view(torch.int32) + bits) & -_LOW_BITS
    # What is no number has all bits set on some GPUs, and would come round to one.
    return raised.view(torch.float32).masked_fill_(x != x, math.nan)
