"""Tensors that several processes hold together, each some of the rows: PyTorch's DTensor, as FSDP
makes them of parameters. Every function takes any other tensor as what it is, whole.
"""

from __future__ import annotations

from typing import Any, Tuple

import torch
from torch import Tensor


def local(tensor: Any) -> Tensor:
    """The rows that this process holds, as a tensor that shares their memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Any) -> Tensor:
    """All rows, gathered from all processes, each of which must ask for them."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def division(tensor: Any) -> Tuple[int, int, int]:
    """Which part of how many is here, and of which of the copies that several machines have."""
    if not hasattr(tensor, "device_mesh"):
        return 0, 1, 0
    mesh, rows = tensor.device_mesh, tensor.device_mesh.ndim - 1
    return mesh.get_local_rank(rows), mesh.size(rows), mesh.get_local_rank(0) if rows else 0


def first_row(tensor: Tensor) -> int:
    """Where the rows of this process begin. FSDP divides as torch.chunk does: pieces of equal
    length, the last ones shorter.
    """
    part, parts, _ = division(tensor)
    each = -(-tensor.size(0) // parts)
    return min(part * each, tensor.size(0))


@torch.no_grad()
def keep_rows(tensor: Tensor, values: Tensor, begin: int = 0) -> bool:
    """Copies `values`, the rows of `tensor` from `begin` on, into it, as far as this process has
    them; returns whether it has any.
    """
    mine, first = local(tensor), first_row(tensor)
    low, high = max(first, begin), min(first + len(mine), begin + len(values))
    if low < high:
        mine[low - first : high - first] = values[low - begin : high - begin]
    return low < high
