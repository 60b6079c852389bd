"""Clipping by the global norm (Pascanu et al. 2013), and the loss scale of float16.

scale = min(1, limit / norm),   norm = sqrt(sum over all gradients of g^2)
"""

from __future__ import annotations

from typing import Callable, Iterable, List, Optional, Tuple

import torch
from torch import Tensor

from minigpt.base.divided import local

Across = Callable[[Tensor], Tensor]


def alone(norm: Tensor) -> Tensor:
    """`Across` where this process holds all gradients."""
    return norm


def clip_scale(
    parameters: Iterable[Tensor], limit: float, loss_scale: float = 1.0, across: Across = alone
) -> Tuple[Tensor, Optional[Tensor]]:
    """The global gradient norm, and what to multiply the gradients with (None: leave them).

    Both are 0-d and stay on the device, so that nothing waits for it; `AdamW.step` multiplies.
    `across` makes of the norm of what is here that of what all processes hold.
    `limit` 0 does not clip. Gradients of a loss times `loss_scale` are divided by it, norm and all.
    """
    norms = [torch.linalg.vector_norm(local(p.grad)) for p in parameters if p.grad is not None]
    norm = across(global_norm(norms)) / loss_scale
    if limit:
        return norm, torch.clamp(limit / (norm + 1e-6), max=1.0) / loss_scale
    return norm, None if loss_scale == 1.0 else torch.full_like(norm, 1.0 / loss_scale)


def global_norm(norms: List[Tensor]) -> Tensor:
    """The norm (0-d, fp32) of all gradients, from the norm of each."""
    return torch.linalg.vector_norm(torch.stack(norms).float())


def next_loss_scale(scale: float, clean_steps: int, finite: bool) -> Tuple[float, int]:
    """The loss scale after a step, and how many steps in a row did not overflow with it.

    float16 loses gradients below 6e-8, so the loss, and with it every gradient, is multiplied by
    a scale (Micikevicius et al. 2018): halved when a gradient overflowed (`finite` is false),
    doubled after 2,000 steps in which none did.
    """
    if not finite:
        return scale / 2, 0
    return (scale * 2, 0) if clean_steps + 1 >= 2000 else (scale, clean_steps + 1)
