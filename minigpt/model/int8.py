"""Weights in 8 bits, for a model that is not trained any more: half of bfloat16's memory, and, as
decoding reads every weight once a token, little more than half of its time.

    q[o, i] = round(W[o, i] / scale[o]),  scale[o] = max_i |W[o, i]| / 127
    y = (x q^T) * scale + bias

The matrices of the blocks are kept so (absmax, a scale for each row: Dettmers et al. 2022);
embeddings, norms and head, which are small or touched in few rows, stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.model.gpt import GPT

_FEW = 4  # rows up to which PyTorch's kernel was seen to win on a CPU
_PACKED = getattr(torch, "_weight_int8pack_mm", None)  # of PyTorch 2.3 and later
# Whether this code is being traced by torch.compile rather than run; from PyTorch 2.3 on.
_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", bool)


class Int8Linear(nn.Module):
    """An nn.Linear whose weight is held in 8 bits: q (out, in) int8, scale (out,)."""

    q: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self.hold(linear.weight)

    @torch.no_grad()
    def hold(self, weight: Tensor) -> None:
        """Takes the values of `weight` (out, in), and its dtype for products."""
        # Steps are rounded to the dtype first, so that q is counted in the very steps it has.
        scale = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(weight.dtype).tiny)
        q = (weight.float() / scale.float().unsqueeze(1)).round().clamp(-127, 127)
        self.register_buffer("q", q.to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        rows = x.numel() // self.q.size(1)
        if _compiling() and rows == 1:
            # A loop that reads each weight once. As in decoding/fast_rows.py, x is written first.
            row = x.reshape(-1).as_strided((self.q.size(1),), (1,)).float()
            y = (self.q.float() * row).sum(-1) * self.scale.float()
            y = y.to(x.dtype).view(*x.shape[:-1], -1)
        elif self._has_kernel(x, rows):
            y = torch._weight_int8pack_mm(x.reshape(rows, -1), self.q, self.scale)
            y = y.view(*x.shape[:-1], -1)  # scaled already
        else:
            y = F.linear(x, self.q.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias

    def _has_kernel(self, x: Tensor, rows: int) -> bool:
        # It reads beyond the row where a row is no multiple of its step (16 here).
        fits = x.dtype == torch.bfloat16 and rows <= _FEW and self.q.size(1) % 64 == 0
        return fits and x.device.type == "cpu" and _PACKED is not None and not _compiling()


def quantize(model: GPT) -> GPT:
    """Holds the matrices of the model's blocks in 8 bits; returns the model. One on the meta device
    is made ready for weights that `Int8Linear.hold` takes.
    """
    for path, layer in list(model.blocks.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, name = path.rpartition(".")
            setattr(model.blocks.get_submodule(parent), name, Int8Linear(layer))
    return model
