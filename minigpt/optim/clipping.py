"""Clipping by the global norm (Pascanu et al. 2013), without waiting for the device.

scale = min(1, limit / norm),   norm = sqrt(sum over all gradients of g^2)
"""

from __future__ import annotations

from typing import Iterable, Optional, Tuple

import torch
from torch import Tensor


def clip_scale(
    parameters: Iterable[Tensor], limit: float, loss_scale: float = 1.0
) -> Tuple[Tensor, Optional[Tensor]]:
    """The global gradient norm (0-d, fp32) and the factor to multiply gradients with (None: 1).
    `limit` 0 is none; gradients that were made `loss_scale` times too large come back with it.

    Both stay on the device. The factor goes to `AdamW.step`, which applies it while the gradient
    is in cache.
    """
    norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(norms).float()) / loss_scale
    if limit:
        return norm, torch.clamp(limit / (norm + 1e-6), max=1.0) / loss_scale
    return norm, None if loss_scale == 1.0 else torch.full_like(norm, 1.0 / loss_scale)


def next_loss_scale(scale: float, clean_steps: int, finite: bool) -> Tuple[float, int]:
    """Loss scaling for float16 (Micikevicius et al. 2018): small gradients are kept from becoming
    zero by making the loss larger. Half of it after a step whose gradient overflowed, twice after
    2,000 that did not. Returns the next scale and how many steps were clean by then.
    """
    if not finite:
        return scale / 2, 0
    return (scale * 2, 0) if clean_steps + 1 >= 2000 else (scale, clean_steps + 1)
