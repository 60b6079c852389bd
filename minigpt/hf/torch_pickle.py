"""PyTorch's .bin files, read without running them.

A pickle is a program. torch.save's programs need only a handful of instructions and build only
dictionaries of tensors; so here is an interpreter for those instructions, which knows no others
and can call nothing but the three functions in `_GLOBALS`. A tensor becomes a `View`: its shape
and strides, and the storage that they are laid over. It is given out once it is known to lie
inside that storage, and its bytes are read when asked for.

Both formats are known: the zip archive (since PyTorch 1.6) and the older sequence of pickles
followed by raw storages. It is the same on every version of PyTorch, and on whichever device the
tensors were saved from.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import IO, Any, Callable, Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor

from minigpt.base.errors import CheckpointError
from minigpt.checkpoint.safetensors import LazyTensor, width

_PICKLE_BYTES = 64 << 20  # more than any state_dict of a language model needs
_MOST, _DIMENSIONS = 1 << 62, 64  # of a size, a stride or an offset; of a tensor's dimensions
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
}  # fmt: skip

Places = Dict[str, Tuple[int, int]]  # where something begins in the file, and how many bytes it has


class Storage(NamedTuple):
    """A run of numbers in the file, as the pickle names it."""

    dtype: torch.dtype
    key: str
    numel: int


class View(NamedTuple):
    """A tensor that has not been read: a strided view of a storage."""

    storage: Storage
    offset: int
    shape: Tuple[int, ...]
    stride: Tuple[int, ...]

    @property
    def span(self) -> int:
        """How many numbers lie between its first and its last, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride))


def open_torch_file(path: Path) -> Dict[str, LazyTensor]:
    """The tensors of a state_dict saved by torch.save; CheckpointError for anything else."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        zipped = zipfile.is_zipfile(str(path))
        value, storages = _read_zip(path, data) if zipped else _read_legacy(data)
        if not isinstance(value, dict):
            raise ValueError("it holds no dictionary of tensors")
        return {name: _lazy(path, name, view, storages) for name, view in value.items()}
    except Exception as error:  # whatever a file that is none of torch.save's may cause
        raise CheckpointError(
            f"{path} cannot be read as a file of torch.save: {error!s:.200}",
            "get it again from a source you trust",
        ) from None


def _read_zip(path: Path, data: mmap.mmap) -> Tuple[Any, Places]:
    """(what the pickle builds, where each storage is)"""
    records: Places = {}
    with zipfile.ZipFile(str(path)) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
                raise ValueError("a record is compressed or encrypted, which torch.save never does")
            place, size = _record_start(data, record.header_offset), record.file_size
            if place + size > len(data) or size != record.compress_size:
                raise ValueError("a record reaches beyond its end")
            _, _, name = record.filename.partition("/")
            records[name] = place, size
    if "data.pkl" not in records:
        raise ValueError("it has no data.pkl")
    if "byteorder" in records and _bounded(data, *records["byteorder"]) != b"little":
        raise ValueError("it was saved on a big-endian machine")
    value = _Machine(io.BytesIO(_bounded(data, *records["data.pkl"]))).run()
    prefix = "data/"
    return value, {n[len(prefix) :]: at for n, at in records.items() if n.startswith(prefix)}


def _record_start(data: mmap.mmap, header: int) -> int:
    """Where a record's bytes begin: behind a local header that says how much else precedes."""
    signature, name, extra = struct.unpack_from("<4s22xHH", data, header)
    if header < 0 or signature != b"PK\x03\x04":
        raise ValueError("a record has no local header")
    return header + 30 + int(name) + int(extra)


def _bounded(data: mmap.mmap, place: int, size: int) -> bytes:
    if size > _PICKLE_BYTES:
        raise ValueError(f"it has a pickle of {size} bytes, which no state_dict needs")
    return data[place : place + size]


def _read_legacy(data: mmap.mmap) -> Tuple[Any, Places]:
    """As `_read_zip`: four pickles, a list of keys, and for each its storage behind its length."""
    # In memory a length that lies is found out before anything of that size is made.
    head = io.BytesIO(data[:_PICKLE_BYTES])
    magic, protocol, system = (_Machine(head).run() for _ in range(3))
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
        raise ValueError("it does not begin as one")
    if not system.get("little_endian", True):
        raise ValueError("it was saved on a big-endian machine")
    machine = _Machine(head)
    value = machine.run()
    keys = _Machine(head).run()
    storages: Places = {}
    place = head.tell()
    for key in keys:
        if type(key) is not str:
            raise ValueError("a storage's name is no text")
        (numel,) = struct.unpack_from("<q", data, place)
        size = numel * width(machine.storages[key].dtype)
        place += 8
        if numel < 0 or place + size > len(data):
            raise ValueError("a storage reaches beyond its end")
        storages[key] = place, size
        place += size
    return value, storages


def _lazy(path: Path, name: str, view: Any, storages: Places) -> LazyTensor:
    """The tensor, to be read later: it lies inside a storage that is really there."""
    if not isinstance(view, View):
        raise ValueError(f"it holds something that is no tensor: {name!r:.80}")
    numbers = (*view.shape, *view.stride, view.offset)
    if not all(type(n) is int and 0 <= n < _MOST for n in numbers):
        raise ValueError(f"tensor {name!r:.80} has an impossible shape")
    if not len(view.shape) == len(view.stride) <= _DIMENSIONS:
        raise ValueError(f"tensor {name!r:.80} has an impossible number of dimensions")
    dtype, key, _ = view.storage
    if key not in storages:
        raise ValueError(f"the numbers of tensor {name!r:.80} are missing")
    place, size = storages[key]
    if (view.offset + view.span) * width(dtype) > size:
        raise ValueError(f"tensor {name!r:.80} claims more numbers than there are")
    if math.prod(view.shape) > view.span:  # a stride of 0 would make much out of little
        raise ValueError(f"tensor {name!r:.80} repeats numbers")
    return LazyTensor(dtype, view.shape, partial(_read, path, view, place))


def _read(path: Path, view: View, place: int) -> Tensor:
    dtype = view.storage.dtype
    if not view.span:
        return torch.empty(view.shape, dtype=dtype)
    place += view.offset * width(dtype)
    start = place - place % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        # A private map: whoever writes to a tensor changes his memory and never the file. The
        # system counts it as memory, so it is no larger than the tensor.
        length = place + view.span * width(dtype) - start
        data = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
    flat = torch.frombuffer(data, dtype=dtype, count=view.span, offset=place - start)
    return torch.as_strided(flat, view.shape, view.stride)


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any = False,
    hooks: Any = None, metadata: Any = None,
) -> View:  # fmt: skip
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    return View(storage, offset, tuple(shape), tuple(stride))


def _parameter(data: Any, requires_grad: Any = False, hooks: Any = None) -> Any:
    return data


def _dictionary(items: Any = ()) -> Dict[str, Any]:
    """Of text keys only: to hash another, a tuple of a million tuples, could take for ever."""
    if not all(type(key) is str for key, _ in items):
        raise ValueError("the pickle has a dictionary whose keys are no text")
    return dict(items)


# What the names in a pickle mean here. No name is looked up anywhere else.
_GLOBALS: Dict[str, Any] = {
    "collections OrderedDict": _dictionary,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    **{f"torch {kind}Storage": dtype for kind, dtype in _DTYPES.items()},
    **{f"torch.cuda {kind}Storage": dtype for kind, dtype in _DTYPES.items()},
}
_MARK = object()


class _Machine:
    """Runs one pickle. The stack holds plain data and what `_GLOBALS` names, so that nothing else
    can be called; an instruction that is not in `_INSTRUCTIONS` ends it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.stack: List[Any] = []
        self.memo: Dict[int, Any] = {}
        self.storages: Dict[str, Storage] = {}

    def run(self) -> Any:
        for instruction, argument, _ in pickletools.genops(self.file):
            if instruction.name == "STOP":
                return self.stack.pop()
            if instruction.name not in _INSTRUCTIONS:
                raise ValueError(f"the pickle uses {instruction.name}")
            _INSTRUCTIONS[instruction.name](self, argument)
        raise EOFError("the pickle does not end")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> List[Any]:
        items = [self.stack.pop() for _ in range(count)]
        return items[::-1]

    def since_mark(self) -> List[Any]:
        items = list(iter(self.stack.pop, _MARK))
        return items[::-1]

    def keep(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def append(self, items: List[Any]) -> None:
        self._top(list).extend(items)

    def set(self, items: List[Any]) -> None:
        self._top(dict).update(_dictionary([*zip(items[::2], items[1::2])]))

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"the pickle puts items into no {kind.__name__}")
        return self.stack[-1]

    def call(self, function: Any, arguments: Any) -> None:
        if not callable(function) or type(arguments) is not tuple:
            raise ValueError("the pickle calls what is no function")
        self.push(function(*arguments))

    def find(self, name: str) -> None:
        if name not in _GLOBALS:
            raise ValueError(f"the pickle asks for {name!r:.80}")
        self.push(_GLOBALS[name])

    def storage(self, identity: Any) -> None:
        kind, dtype, key, _location, numel = identity[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str:
            raise ValueError("the pickle has a strange storage")
        storage = Storage(dtype, key, int(numel))
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"the pickle contradicts itself about storage {key!r:.80}")
        self.push(storage)


# In the pickle's own order of things: `argument` is what stands there behind the instruction.
_INSTRUCTIONS: Dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    **dict.fromkeys(
        ("NONE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINUNICODE",
         "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
        _Machine.push,  # behind NONE stands nothing, None
    ),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": lambda machine, _: machine.push(_MARK),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "APPEND": lambda machine, _: machine.append(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set(machine.since_mark()),
    "MEMOIZE": lambda machine, _: machine.keep(len(machine.memo)),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.keep),
    **dict.fromkeys(
        ("BINGET", "LONG_BINGET"), lambda machine, place: machine.push(machine.memo[place])
    ),
    "GLOBAL": _Machine.find,
    "STACK_GLOBAL": lambda machine, _: machine.find(" ".join(machine.pop(2))),
    "REDUCE": lambda machine, _: machine.call(*machine.pop(2)),
    "BINPERSID": lambda machine, _: machine.storage(*machine.pop(1)),
    # Attributes such as a state_dict's _metadata, of no use here.
    "BUILD": lambda machine, _: machine.pop(1),
}  # fmt: skip
