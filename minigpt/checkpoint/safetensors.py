"""A safetensors file written one tensor at a time: nothing ever holds a second copy of the model.

The format (github.com/huggingface/safetensors): an 8-byte little-endian length, a JSON header of
that length giving each tensor's dtype, shape and place, then the tensors' bytes back to back.
Shapes and dtypes are all the header needs, so a first pass over them writes it, and a second pass
fetches, writes and forgets each tensor.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minigpt.base.errors import CheckpointError
from minigpt.base.files import require_space, write_json

INDEX = "model.safetensors.index.json"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class TensorSpec:
    """What the header says of one tensor."""

    name: str
    dtype: torch.dtype
    shape: Tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> TensorSpec:
        return cls(name, tensor.dtype, tuple(tensor.shape))

    @property
    def itemsize(self) -> int:
        return torch.empty(0, dtype=self.dtype).element_size()

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.itemsize


@dataclass(frozen=True)
class FileRecord:
    """What the manifest keeps of a file."""

    size: int
    sha256: str


Fetch = Callable[[str], Tensor]


def write_safetensors(path: Path, specs: Iterable[TensorSpec], fetch: Fetch) -> FileRecord:
    """Writes the tensors named by `specs`, each got from `fetch(name)` when its turn comes, on
    any device.

    ValueError when a fetched tensor is not what its spec promised. The file is not synced: the
    caller does that.
    """
    # The widest dtype first keeps every tensor aligned for readers that map the file.
    ordered = sorted(specs, key=lambda spec: (-spec.itemsize, spec.name))
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file, ThreadPoolExecutor(1) as pool:
        for block in _blocks(ordered, fetch):
            # Hashing goes on beside writing.
            hashed = pool.submit(digest.update, block)
            file.write(block)
            size += len(block)
            hashed.result()
    return FileRecord(size, digest.hexdigest())


def _blocks(specs: List[TensorSpec], fetch: Fetch) -> Iterable[memoryview]:
    yield memoryview(_header(specs))
    for spec in specs:
        tensor = fetch(spec.name)
        if TensorSpec.of(spec.name, tensor) != spec:
            raise ValueError("%s changed between the two passes" % spec.name)
        if spec.nbytes:
            yield as_bytes(tensor)


def as_bytes(tensor: Tensor) -> memoryview:
    """The tensor's numbers in C order as bytes, without a copy where it is contiguous and on the
    CPU.
    """
    flat = tensor.detach().to("cpu").contiguous().view(-1)
    numbers: Any = flat.view(torch.uint8).numpy()
    return memoryview(numbers)


def _header(specs: List[TensorSpec]) -> bytes:
    entries: Dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for spec in specs:
        end = begin + spec.nbytes
        entries[spec.name] = {
            "dtype": DTYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def plan_shards(
    specs: Iterable[TensorSpec], shard_bytes: Optional[int] = None
) -> List[List[TensorSpec]]:
    """Fills shards in order, up to `shard_bytes` each (None: one shard), splitting no tensor."""
    shards: List[List[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if shard_bytes is not None and shards[-1] and filled + spec.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.nbytes
    return shards


def shard_names(stem: str, count: int) -> List[str]:
    """`model.safetensors`, or `model-00001-of-0000N.safetensors` and so on for several."""
    if count == 1:
        return ["%s.safetensors" % stem]
    return ["%s-%05d-of-%05d.safetensors" % (stem, i + 1, count) for i in range(count)]


def write_sharded(
    directory: Path, specs: List[TensorSpec], fetch: Fetch, shard_bytes: Optional[int]
) -> Dict[str, FileRecord]:
    """Writes `model.safetensors`, or shards of at most `shard_bytes` and their index, into
    `directory`.
    """
    total = sum(spec.nbytes for spec in specs)
    require_space(directory, total)
    shards = plan_shards(specs, shard_bytes)
    names = shard_names("model", len(shards))
    records = {
        name: write_safetensors(directory / name, shard, fetch)
        for name, shard in zip(names, shards)
    }
    if len(shards) > 1:
        weight_map = {spec.name: name for name, shard in zip(names, shards) for spec in shard}
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return records


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
