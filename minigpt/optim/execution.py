"""How an optimizer's step is run over the tensors of one weight.

    in_slices   a piece at a time, which stays in the processor's cache between operations
    plain       all elements at once, and nothing but Python numbers beside them: for MoAI, which
                records what it is asked to do
    compiled    by torch.compile, which reads and writes each element once

A step waits for memory, not for arithmetic: what counts is how often memory is passed over.
The step comes as a function that changes its tensors in place, each element on its own:
step(*tensors, *scalars, gradient_scale). (Running it inside the backward pass: update.py.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Callable, Iterable, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

Scalar = Union[float, Tensor]  # a number, or a 0-d tensor


class Scalars(NamedTuple):
    """The numbers that a step takes after its tensors, in this order."""

    constant: Tuple[Scalar, ...]  # the same for every step, unless it is left out (adamw.py)
    changing: Tuple[Optional[Scalar], ...]  # other ones for every step


Step = Callable[..., None]
Tensors = Sequence[Tensor]
Execution = Callable[[Step, Tensors, Scalars, Optional[Tensor]], None]

# Elements of a slice. 1 MB of float32 fits the cache, and is long enough to hide the calls' cost.
SLICE = 256 * 1024
# A bfloat16 step makes float32 copies of its slice, which would be large for a whole weight.
WIDE_SLICE = 16 * 1024 * 1024
# Below this, checking that a compiled function fits its arguments costs more than it saves.
_WORTH_COMPILING = 64 * 1024
# PyTorch 2.1 compiles the bfloat16 step wrongly; the first versions seen to do it right.
_COMPILES_BF16 = {"cpu": (2, 13), "cuda": (2, 11)}


def in_slices(step: Step, tensors: Tensors, scalars: Scalars, scale: Optional[Tensor]) -> None:
    """In pieces that fit the cache, on a CPU; on other devices as large as in `plain`."""
    size = SLICE if tensors[0].device.type == "cpu" else _whole_size(tensors[0])
    changing = _as_tensors(scalars.changing)
    for pieces in _pieces(tensors, size):
        step(*pieces, *scalars.constant, *changing, scale)


def plain(step: Step, tensors: Tensors, scalars: Scalars, scale: Optional[Tensor]) -> None:
    """In one piece, bfloat16 in a few large ones; the scalars as Python numbers."""
    for pieces in _pieces(tensors, _whole_size(tensors[0])):
        step(*pieces, *scalars.constant, *scalars.changing, scale)


def compiled(step: Step, tensors: Tensors, scalars: Scalars, scale: Optional[Tensor]) -> None:
    """By torch.compile (PyTorch 2.0 and later); small weights `in_slices`."""
    weight = tensors[0]
    right = compiles(weight.dtype, weight.device.type)
    if not right or weight.numel() < _WORTH_COMPILING:
        return in_slices(step, tensors, scalars, scale)
    # Numbers would be compiled in, and PyTorch 2.13 was seen to reuse that for other numbers.
    inputs = _as_tensors(scalars.constant + scalars.changing)
    return _compile(step)(*_flat(tensors), *inputs, scale)


@lru_cache(maxsize=None)
def compiles(dtype: torch.dtype, place: str) -> bool:
    """Whether PyTorch compiles the step for weights of `dtype` on `place` (cpu, cuda) rightly."""
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    return dtype != torch.bfloat16 or version >= _COMPILES_BF16.get(place, (2, 13))


@lru_cache(maxsize=None)
def _compile(step: Step) -> Callable[..., Any]:
    return torch.compile(step, dynamic=True, fullgraph=True)


def _as_tensors(scalars: Tuple[Optional[Scalar], ...]) -> Sequence[Optional[Tensor]]:
    return [one if one is None or isinstance(one, Tensor) else _as_tensor(one) for one in scalars]


@lru_cache(maxsize=64)
def _as_tensor(number: float) -> Tensor:
    """A 0-d tensor, with which an operation starts several microseconds sooner than with numbers
    that PyTorch has to convert. (lerp_ alone is faster with a number, so `constant` stays one.)
    """
    return torch.tensor(number)


def _whole_size(weight: Tensor) -> int:
    return WIDE_SLICE if weight.dtype == torch.bfloat16 else weight.numel()


def _pieces(tensors: Tensors, size: int) -> Iterable[Tensors]:
    """The same `size` elements of all tensors at a time."""
    flat = _flat(tensors)
    if flat[0].numel() <= size or flat[0].dim() != 1:
        return [flat]
    return zip(*(torch.split(tensor, size) for tensor in flat))


def _flat(tensors: Tensors) -> Tensors:
    """As vectors, for which one compiled function serves; as they are if that would copy one."""
    contiguous = all(tensor.is_contiguous() for tensor in tensors)
    return [tensor.view(-1) for tensor in tensors] if contiguous else tensors
