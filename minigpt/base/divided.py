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


def rows_here(tensor: Tensor, begin: int, count: int) -> Tuple[int, int]:
    """Of `count` rows from `begin` on those that this process has: (first, end), empty if none."""
    first = first_row(tensor)
    return max(first, begin), min(first + len(local(tensor)), begin + count)


@torch.no_grad()
def keep_rows(tensor: Tensor, values: Tensor, begin: int = 0) -> None:
    """Copies `values`, the rows of `tensor` from `begin` on, into it, as far as this process has
    them.
    """
    first, (low, high) = first_row(tensor), rows_here(tensor, begin, len(values))
    if low < high:
        local(tensor)[low - first : high - first] = values[low - begin : high - begin]
