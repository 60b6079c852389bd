"""Clipping by the global norm (Pascanu et al. 2013), without waiting for the device.

scale = min(1, limit / norm),   norm = sqrt(sum over all gradients of g^2)
"""

from __future__ import annotations

from typing import Iterable, Optional, Tuple

import torch
from torch import Tensor


def clip_scale(parameters: Iterable[Tensor], limit: float) -> Tuple[Tensor, Optional[Tensor]]:
    """The global gradient norm (0-d, fp32) and the factor to multiply gradients with (None: limit
    is 0).

    Both stay on the device. The factor goes to `AdamW.step`, which applies it while the gradient
    is in cache.
    """
    norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(norms).float())
    if not limit:
        return norm, None
    return norm, torch.clamp(limit / (norm + 1e-6), max=1.0)
