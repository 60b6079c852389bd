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

from typing import Tuple

import torch
from torch import Tensor

_LOW_BITS = 1 << 16  # of a float32 that a bfloat16 has not


def round_by_chance(x: Tensor) -> Tensor:
    """x float32 -> bfloat16, one of the two neighbours of x, the nearer one more likely."""
    noise = torch.randint(_LOW_BITS, x.shape, dtype=torch.int32, device=x.device)
    bits = x.contiguous().view(torch.int32) + noise  # carries into the upper half in proportion
    return (bits & -_LOW_BITS).view(torch.float32).to(torch.bfloat16)


def split(x: Tensor) -> Tuple[Tensor, Tensor]:
    """x float32 -> two bfloat16 numbers whose sum is x to 16 bits of precision."""
    upper = x.to(torch.bfloat16)
    return upper, (x - upper.float()).to(torch.bfloat16)
