"""Matrix products of one row or a few, as fast as the memory gives, for a model that decodes.

Written as usual, y = x W^T with one row, that is a matrix-vector product, and some processors'
libraries are poor at it: on one by AMD the weights came at 12 GB/s, where the same weights times
two columns, W [a b], came at 30 GB/s; on one by Intel it was the other way round, 28 to 12
(docs/benchmarks.md). So both are tried once. Where the library is slow, a lone row is made into two
columns: twice itself, or, for long rows, its two halves, to be multiplied with the two halves of
each row of W; and under torch.compile the plain sum becomes a loop, in bfloat16 too.
"""

from __future__ import annotations

import timeit
from contextlib import contextmanager
from types import MethodType
from typing import Callable, Iterator, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.model.attention import Attention, explicit_attention, fused_attention
from minigpt.model.gpt import GPT

_FEW = 4  # rows up to which this was seen to win
_LONG = 1024  # numbers in a row from which halves were seen to win
_CLEARLY = 1.3  # or chance would choose, and the same seed give another rounding, another text
# Whether this code is being traced by torch.compile rather than run; from PyTorch 2.3 on.
_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", bool)
_slow: Optional[bool] = None  # whether the library is slow at one row; None: not tried yet


@contextmanager
def fast_rows(model: GPT) -> Iterator[None]:
    """While it is open, a model on the CPU multiplies by `linear`, and looks at the past of a
    single query by the plain formula. On other devices nothing changes.
    """
    if model.token_embedding.weight.device.type != "cpu":
        yield
        return
    try_library()  # now, since it cannot be timed from inside a compiled graph
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    fused = [attention for attention in attentions if attention.attend is fused_attention]
    for layer in layers:
        vars(layer)["forward"] = MethodType(_forward, layer)
    vars(model)["logits"] = MethodType(_logits, model)
    for attention in fused:
        attention.attend = _attend
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
        vars(model).pop("logits", None)
        for attention in fused:
            attention.attend = fused_attention


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


def _logits(model: GPT, x: Tensor) -> Tensor:
    return linear(x, model.head_weight)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], scale: float, dropout: float
) -> Tensor:
    """For the one query of decoding PyTorch has no kernel on the CPU, and its substitute multiplies
    all keys by the scale where multiplying the query would do.
    """
    attend = explicit_attention if q.size(-2) == 1 else fused_attention
    return attend(q, k, v, mask, scale, dropout)


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) -> (..., out); F.linear but for rounding."""
    rows = x.numel() // weight.size(1)
    if rows > _FEW or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    plain = x.dtype == weight.dtype == torch.float32
    if rows == 1 and _compiling() and (_slow or not plain):
        return _sum(x, weight, bias)
    if not plain or not _slow:
        return F.linear(x, weight, bias)
    y = _one_row(x, weight) if rows == 1 else torch.mm(weight, x.reshape(rows, -1).t()).t()
    y = y.reshape(*x.shape[:-1], weight.size(0))
    return y if bias is None else y + bias


def try_library() -> bool:
    """Whether the library is slow at the product of one row: tried once, in ten milliseconds."""
    global _slow
    if _slow is None:
        weight, row = torch.zeros(4096, 1024), torch.zeros(1, 1024)
        library = _seconds(lambda: F.linear(row, weight))
        _slow = library > _CLEARLY * _seconds(lambda: _one_row(row, weight))
    return _slow


def _seconds(product: Callable[[], Tensor]) -> float:
    return min(timeit.repeat(product, number=1, repeat=5))


def _sum(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """The product as a sum in float32, for the compiler to make a loop of."""
    # as_strided changes nothing but that the compiler writes x down first: else it would compute
    # the LayerNorm or GELU that x comes from anew for every row of the weight.
    row = x.reshape(-1).as_strided((weight.size(1),), (1,))
    y = (weight.float() * row.float()).sum(-1)
    y = y if bias is None else y + bias.float()
    return y.to(weight.dtype).view(*x.shape[:-1], weight.size(0))


def _one_row(x: Tensor, weight: Tensor) -> Tensor:
    """x with `in` numbers, weight (out, in) -> (out,)."""
    width = weight.size(1)
    if width < _LONG or width % 2:
        row = x.reshape(1, width)
        return torch.mm(weight, torch.cat((row, row)).t())[:, 0]
    halves = torch.mm(weight.reshape(-1, width // 2), x.reshape(2, width // 2).t())  # (2 out, 2)
    halves = halves.view(-1, 2, 2)  # each half of a weight's row times each half of x
    return halves[:, 0, 0] + halves[:, 1, 1]
