"""Packed rows in one kernel: the attention of all documents of a batch at once, each to itself.

PyTorch's varlen_attn (FlashAttention: Dao 2023) reads where documents begin and makes no mask. It
exists for NVIDIA GPUs, for 16 bits, and without dropout; elsewhere documents are attended to one by
one, or under a mask (model/attention.py).
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any, Optional

import torch
from torch import Tensor

from minigpt.devices.device import Device
from minigpt.model.attention import fused_attention
from minigpt.model.config import GPTConfig


@lru_cache(maxsize=None)  # each layer asks
def kernel() -> Any:
    """PyTorch's function; None where it has none, or one that takes no scale (before 2.11)."""
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return None
    takes = inspect.signature(varlen.varlen_attn).parameters
    return varlen.varlen_attn if {"scale", "window_size"} <= set(takes) else None


def serves(device: Device, shape: GPTConfig, dtype: torch.dtype) -> bool:
    """Whether it can be used for a model of this shape that multiplies in `dtype`."""
    fits = shape.head_dim % 8 == 0 and shape.head_dim <= 256 and not shape.dropout
    return device.has_varlen and fits and dtype != torch.float32 and kernel() is not None


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], scale: float, dropout: float
) -> Tensor:
    """As `fused_attention`, but `mask` can also be (documents + 1,) int32: where in the rows, laid
    end to end, each document begins, and their end.
    """
    if mask is None or mask.dim() > 1:
        return fused_attention(q, k, v, mask, scale, dropout)
    B, H, T, D = q.shape
    end_to_end = [x.transpose(1, 2).reshape(B * T, H, D) for x in (q, k, v)]
    # No document is longer than a row, and the bound costs nothing.
    y = kernel()(*end_to_end, mask, mask, T, T, scale=scale, window_size=(-1, 0))
    return y.view(B, T, H, D).transpose(1, 2)
