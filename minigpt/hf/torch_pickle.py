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
from minigpt.checkpoint.safetensors import LazyTensor

_PICKLE_BYTES = 64 << 20  # more than any state_dict of a language model needs
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
            "%s cannot be read as a file of torch.save: %.200s" % (path, error),
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
        raise ValueError("it has a pickle of %d bytes, which no state_dict needs" % size)
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
        (numel,) = struct.unpack_from("<q", data, place)
        size = numel * _width(machine.storages[key].dtype)
        place += 8
        if numel < 0 or place + size > len(data):
            raise ValueError("a storage reaches beyond its end")
        storages[key] = place, size
        place += size
    return value, storages


def _width(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()


def _lazy(path: Path, name: Any, view: Any, storages: Places) -> LazyTensor:
    """The tensor, to be read later: it lies inside a storage that is really there."""
    if not isinstance(name, str) or not isinstance(view, View):
        raise ValueError("it holds something that is no tensor: %.80r" % (name,))
    numbers = (*view.shape, *view.stride, view.offset)
    if not all(type(n) is int and n >= 0 for n in numbers) or len(view.shape) != len(view.stride):
        raise ValueError("tensor %.80r has an impossible shape" % name)
    dtype, key, _ = view.storage
    if key not in storages:
        raise ValueError("the numbers of tensor %.80r are missing" % name)
    place, size = storages[key]
    if (view.offset + view.span) * _width(dtype) > size:
        raise ValueError("tensor %.80r claims more numbers than there are" % name)
    if math.prod(view.shape) > view.span:  # a stride of 0 would make much out of little
        raise ValueError("tensor %.80r repeats numbers" % name)
    return LazyTensor(dtype, view.shape, partial(_read, path, view, place))


def _read(path: Path, view: View, place: int) -> Tensor:
    dtype = view.storage.dtype
    if not view.span:
        return torch.empty(view.shape, dtype=dtype)
    place += view.offset * _width(dtype)
    start = place - place % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        # A private map: whoever writes to a tensor changes his memory and never the file. The
        # system counts it as memory, so it is no larger than the tensor.
        length = place + view.span * _width(dtype) - start
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


# What the names in a pickle mean here. No name is looked up anywhere else.
_GLOBALS: Dict[str, Any] = {
    "collections OrderedDict": dict,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    **{"torch %sStorage" % kind: dtype for kind, dtype in _DTYPES.items()},
    **{"torch.cuda %sStorage" % kind: dtype for kind, dtype in _DTYPES.items()},
}

# Instructions that push what stands behind them in the pickle; behind NONE stands nothing.
_LITERALS = (
    "NONE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINUNICODE", "SHORT_BINUNICODE",
    "BINSTRING", "SHORT_BINSTRING",
)  # fmt: skip
_MARK = object()
_NEW: Dict[str, Callable[[], Any]] = {
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}


class _Machine:
    """Runs one pickle. The stack holds plain data and what `_GLOBALS` names, so that nothing else
    can be called; an unknown instruction ends it.
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
            self._do(instruction.name, argument)
        raise EOFError("the pickle does not end")

    def _do(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._pop(int(name[-1]))))
        elif name in ("APPEND", "APPENDS"):
            items = self._since_mark() if name == "APPENDS" else self._pop(1)
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._since_mark() if name == "SETITEMS" else self._pop(2)
            self._top(dict).update(zip(items[::2], items[1::2]))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            stack.append(_find(argument))
        elif name == "STACK_GLOBAL":
            stack.append(_find(" ".join(self._pop(2))))
        elif name == "REDUCE":
            stack.append(_call(*self._pop(2)))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "BUILD":
            stack.pop()  # attributes such as a state_dict's _metadata, of no use here
        elif name not in ("PROTO", "FRAME"):
            raise ValueError("the pickle uses %s" % name)

    def _pop(self, count: int) -> List[Any]:
        items = [self.stack.pop() for _ in range(count)]
        return items[::-1]

    def _since_mark(self) -> List[Any]:
        items = list(iter(self.stack.pop, _MARK))
        return items[::-1]

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError("the pickle puts items into no %s" % kind.__name__)
        return self.stack[-1]

    def _storage(self, identity: Any) -> Storage:
        kind, dtype, key, _location, numel = identity[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str:
            raise ValueError("the pickle has a strange storage")
        storage = Storage(dtype, key, int(numel))
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError("the pickle contradicts itself about storage %.80r" % key)
        return storage


def _find(name: str) -> Any:
    if name not in _GLOBALS:
        raise ValueError("the pickle asks for %.80r" % name)
    return _GLOBALS[name]


def _call(function: Any, arguments: Any) -> Any:
    if not callable(function) or type(arguments) is not tuple:
        raise ValueError("the pickle calls what is no function")
    return function(*arguments)
