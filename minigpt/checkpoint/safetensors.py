"""Safetensors files, written and opened one tensor at a time, never with a second copy of a model.

The format (github.com/huggingface/safetensors): an 8-byte little-endian length, a JSON header of
that length giving each tensor's dtype, shape and place, then the tensors' bytes back to back. So a
first pass over shapes and dtypes writes the header, and a second one reads and writes each tensor.
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

from minigpt.base.divided import whole
from minigpt.base.errors import CheckpointError
from minigpt.base.files import read_object, require_space, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def width(dtype: torch.dtype) -> int:
    """The bytes of one number."""
    return torch.empty(0, dtype=dtype).element_size()


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not here yet: what a file's header says of it, and how to get it."""

    dtype: torch.dtype
    shape: Tuple[int, ...]
    read: Callable[[], Tensor]
    note: str = ""  # what the file's header says of it, too

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * width(self.dtype)

    def to(self, dtype: Optional[torch.dtype]) -> LazyTensor:
        """The same, cast when it is read; None: as it is."""
        if dtype in (None, self.dtype):
            return self
        return LazyTensor(dtype, self.shape, lambda: self.read().to(dtype))


def in_memory(tensors: Mapping[str, Tensor]) -> Dict[str, LazyTensor]:
    """Tensors that are here, on any device, or divided among processes, as what is written."""
    return {n: LazyTensor(t.dtype, tuple(t.shape), partial(whole, t)) for n, t in tensors.items()}


def open_safetensors(path: Path, stack: ExitStack) -> Dict[str, LazyTensor]:
    """The tensors of the file, which stays mapped as long as `stack` is open; what is read are
    views of it. CheckpointError when it is missing or damaged.
    """
    try:
        file = stack.enter_context(safe_open(str(path), framework="pt"))
        tensors, notes = {}, file.metadata() or {}
        for name in file.keys():  # noqa: SIM118 - safe_open is no dict
            part = file.get_slice(name)
            dtype, shape = _DTYPES[part.get_dtype()], tuple(part.get_shape())
            read, note = partial(file.get_tensor, name), notes.get(name, "")
            tensors[name] = LazyTensor(dtype, shape, read, note)
        return tensors
    except (SafetensorError, KeyError, OSError) as error:
        fix = "get it again, or use another checkpoint"
        raise CheckpointError(f"{path} cannot be read: {error}", fix) from error


@dataclass(frozen=True)
class FileRecord:
    """What the manifest keeps of a file."""

    size: int
    sha256: str


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor]) -> FileRecord:
    """Writes the tensors, each read when its turn comes; the caller syncs the file. ValueError when
    one that is read is not what was said of it.
    """
    digest = hashlib.sha256()
    with path.open("wb") as file, ThreadPoolExecutor(1) as pool:
        for block in _blocks({name: tensors[name] for name in _order(tensors)}):
            hashed = pool.submit(digest.update, block)  # beside the writing
            file.write(block)
            hashed.result()
        size = file.tell()
    return FileRecord(size, digest.hexdigest())


def _order(tensors: Mapping[str, LazyTensor]) -> List[str]:
    """The widest dtype first keeps every tensor aligned for readers that map the file."""
    return sorted(tensors, key=lambda name: (-width(tensors[name].dtype), name))


def read_along(tensors: Mapping[str, LazyTensor], shard_bytes: Optional[int] = None) -> None:
    """Reads in the order in which another process writes, where a tensor is gathered from all."""
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    for names in plan_shards(sizes, shard_bytes).values():
        for name in _order({n: tensors[n] for n in names}):
            tensors[name].read()


def _blocks(tensors: Mapping[str, LazyTensor]) -> Iterator[memoryview]:
    yield memoryview(_header(tensors))
    for name, said in tensors.items():
        tensor = said.read()
        if (tensor.dtype, tuple(tensor.shape)) != (said.dtype, said.shape):
            raise ValueError(f"{name} changed between the two passes")
        if said.nbytes:
            yield as_bytes(tensor)


def as_bytes(tensor: Tensor) -> memoryview:
    """The numbers in C order as bytes; no copy of what is contiguous and on the CPU."""
    numbers: Any = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(numbers)


def _header(tensors: Mapping[str, LazyTensor]) -> bytes:
    notes = {name: tensor.note for name, tensor in tensors.items() if tensor.note}
    entries: Dict[str, object] = {"__metadata__": {"format": "pt", **notes}}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + tensor.nbytes
        kind, shape = _NAMES[tensor.dtype], list(tensor.shape)
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def shard_names(index: Path, fix: str = "use another checkpoint") -> List[str]:
    """The files that an index names. It may come from anywhere, so only files beside it will do."""
    found = read_object(index, CheckpointError, fix).get("weight_map")
    names = sorted({*map(str, found.values())}) if isinstance(found, dict) else []
    strange = [name for name in names if Path(name).name != name or name in ("", "..")]
    if not names or strange or "\0" in "".join(names):
        named = f": {strange[0]!r} is elsewhere" if strange else ""
        raise CheckpointError(f"{index} does not name the weights' files beside it{named}", fix)
    return names


def write_sharded(
    directory: Path, tensors: Mapping[str, LazyTensor], shard_bytes: Optional[int] = None
) -> Dict[str, FileRecord]:
    """Writes one file, or shards of at most `shard_bytes` and their index, into `directory`."""
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    total = sum(sizes.values())
    require_space(directory, total)
    records, weight_map = {}, {}
    for file, names in plan_shards(sizes, shard_bytes).items():
        records[file] = write_safetensors(directory / file, {n: tensors[n] for n in names})
        weight_map.update(dict.fromkeys(names, file))
    if len(records) > 1:
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return records


def plan_shards(sizes: Mapping[str, int], shard_bytes: Optional[int]) -> Dict[str, List[str]]:
    """Which tensors are in `model.safetensors`, or in each `model-00001-of-0000N.safetensors`:
    filled in order, up to `shard_bytes` each (None: one file), splitting no tensor.
    """
    shards: List[List[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shard_bytes is not None and shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": s for i, s in enumerate(shards, 1)}
