"""A safetensors file, opened: every tensor by name, none of them read yet."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Tuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minigpt.base.errors import CheckpointError
from minigpt.checkpoint.writer import DTYPES

_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file: what the header says of it, and how to read it."""

    dtype: torch.dtype
    shape: Tuple[int, ...]
    read: Callable[[], Tensor]


def open_safetensors(path: Path, stack: ExitStack) -> Dict[str, LazyTensor]:
    """The tensors of the file, which stays mapped as long as `stack` is open; what is read are
    views of it. CheckpointError when it is missing or damaged.
    """
    try:
        file = stack.enter_context(safe_open(str(path), framework="pt"))
        tensors = {}
        for name in file.keys():  # noqa: SIM118 - safe_open is no dict
            part = file.get_slice(name)
            shape = tuple(part.get_shape())
            read = partial(file.get_tensor, name)
            tensors[name] = LazyTensor(_DTYPES[part.get_dtype()], shape, read)
        return tensors
    except (SafetensorError, KeyError, OSError) as error:
        raise CheckpointError(
            "%s cannot be read: %s" % (path, error), "get it again, or use another checkpoint"
        ) from error
