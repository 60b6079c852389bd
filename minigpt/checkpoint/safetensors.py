"""Safetensors files, written and opened one tensor at a time: nothing ever holds a second copy of
the model.

The format (github.com/huggingface/safetensors): an 8-byte little-endian length, a JSON header of
that length giving each tensor's dtype, shape and place, then the tensors' bytes back to back.
Shapes and dtypes are all the header needs, so a first pass over them writes it, and a second pass
reads, writes and forgets each tensor.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minigpt.base.errors import CheckpointError
from minigpt.base.files import require_space, write_json

INDEX = "model.safetensors.index.json"
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def width(dtype: torch.dtype) -> int:
    """The bytes of one number."""
    return torch.empty(0, dtype=dtype).element_size()


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not here yet: what a file's header says of it, and how to get it."""

    dtype: torch.dtype
    shape: Tuple[int, ...]
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> LazyTensor:
        """One in memory, on any device."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * width(self.dtype)

    def to(self, dtype: Optional[torch.dtype]) -> LazyTensor:
        """The same, cast when it is read; None: as it is."""
        if dtype in (None, self.dtype):
            return self
        return LazyTensor(dtype, self.shape, lambda: self.read().to(dtype))


def in_memory(tensors: Mapping[str, Tensor]) -> Dict[str, LazyTensor]:
    """Tensors in memory as what is written here."""
    return {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}


def open_safetensors(path: Path, stack: ExitStack) -> Dict[str, LazyTensor]:
    """The tensors of the file, which stays mapped as long as `stack` is open; what is read are
    views of it. CheckpointError when it is missing or damaged.
    """
    try:
        file = stack.enter_context(safe_open(str(path), framework="pt"))
        tensors = {}
        for name in file.keys():  # noqa: SIM118 - safe_open is no dict
            part = file.get_slice(name)
            dtype, shape = _DTYPES[part.get_dtype()], tuple(part.get_shape())
            tensors[name] = LazyTensor(dtype, shape, partial(file.get_tensor, name))
        return tensors
    except (SafetensorError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", "get it again, or use another checkpoint"
        ) from error


@dataclass(frozen=True)
class FileRecord:
    """What the manifest keeps of a file."""

    size: int
    sha256: str


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor]) -> FileRecord:
    """Writes the tensors, each read when its turn comes.

    ValueError when one that is read is not what was said of it. The file is not synced: the caller
    does that.
    """
    # The widest dtype first keeps every tensor aligned for readers that map the file.
    order = sorted(tensors, key=lambda name: (-width(tensors[name].dtype), name))
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file, ThreadPoolExecutor(1) as pool:
        for block in _blocks({name: tensors[name] for name in order}):
            # Hashing goes on beside writing.
            hashed = pool.submit(digest.update, block)
            file.write(block)
            size += len(block)
            hashed.result()
    return FileRecord(size, digest.hexdigest())


def _blocks(tensors: Mapping[str, LazyTensor]) -> Iterator[memoryview]:
    yield memoryview(_header(tensors))
    for name, said in tensors.items():
        tensor = said.read()
        if (tensor.dtype, tuple(tensor.shape)) != (said.dtype, said.shape):
            raise ValueError(f"{name} changed between the two passes")
        if said.nbytes:
            yield as_bytes(tensor)


def as_bytes(tensor: Tensor) -> memoryview:
    """The tensor's numbers in C order as bytes, without a copy where it is contiguous and on the
    CPU.
    """
    flat = tensor.detach().to("cpu").contiguous().view(-1)
    numbers: Any = flat.view(torch.uint8).numpy()
    return memoryview(numbers)


def _header(tensors: Mapping[str, LazyTensor]) -> bytes:
    entries: Dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + tensor.nbytes
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_sharded(
    directory: Path, tensors: Mapping[str, LazyTensor], shard_bytes: Optional[int] = None
) -> Dict[str, FileRecord]:
    """Writes `model.safetensors`, or shards of at most `shard_bytes` and their index, into
    `directory`.
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    require_space(directory, total)
    shards = plan_shards({name: tensor.nbytes for name, tensor in tensors.items()}, shard_bytes)
    files = shard_names("model", len(shards))
    records = {
        file: write_safetensors(directory / file, {name: tensors[name] for name in shard})
        for file, shard in zip(files, shards)
    }
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards) for name in shard}
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return records


def plan_shards(sizes: Mapping[str, int], shard_bytes: Optional[int]) -> List[List[str]]:
    """Fills shards in order, up to `shard_bytes` each (None: one shard), splitting no tensor."""
    shards: List[List[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shard_bytes is not None and shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def shard_names(stem: str, count: int) -> List[str]:
    """`model.safetensors`, or `model-00001-of-0000N.safetensors` and so on for several."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
