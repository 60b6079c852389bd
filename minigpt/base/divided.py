"""Tensors that several processes hold together, each some of the rows: PyTorch's DTensor, as FSDP
makes them of parameters. Every function takes any other tensor as what it is, whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def local(tensor: Any) -> Tensor:
    """The rows that this process holds, as a tensor that shares their memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Any) -> Tensor:
    """All rows, gathered from all processes, each of which must ask for them."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@torch.no_grad()
def keep_rows(tensor: Tensor, values: Tensor) -> None:
    """Copies `values`, all rows of `tensor`, into it: those that this process holds."""
    mine = local(tensor)
    if mine is not tensor:
        # FSDP divides as torch.chunk does: pieces of equal length, the last ones shorter.
        mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
        rank, size = mesh.get_local_rank(mesh.ndim - 1), mesh.size(mesh.ndim - 1)
        each = -(-values.size(0) // size)
        values = values[rank * each : (rank + 1) * each]
    mine.copy_(values)
