"""PyTorch's .bin files, read without running them.

A pickle is a program. torch.save's programs need only a handful of instructions and build only
dictionaries of tensors; so here is an interpreter for those instructions, which knows no others
and can call nothing. A tensor becomes a
`TensorRef`: its dtype, shape and strides, and where in the file its storage lies. Bytes are read
when asked for.

Both formats are known: the zip archive (since PyTorch 1.6) and the older sequence of pickles
followed by raw storages. It is the same on every version of PyTorch, and on whichever device the
tensors were saved from.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from minigpt.errors import CheckpointError

_PICKLE_BYTES = 64 << 20  # more than any state_dict of a language model needs
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip


class Storage(NamedTuple):
    """A run of numbers in the file, as the pickle names it."""

    dtype: torch.dtype
    key: str
    numel: int


class TensorRef(NamedTuple):
    """A tensor that has not been read: a strided view of a storage."""

    storage: Storage
    offset: int
    shape: Tuple[int, ...]
    stride: Tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype


@dataclass
class TorchFile:
    """An opened .bin: its tensors by name, and where each storage begins."""

    path: Path
    tensors: Dict[str, TensorRef]
    places: Dict[str, int]

    def read(self, name: str) -> Tensor:
        """The tensor `name`, a view of the mapped file: its bytes are read as they are touched."""
        ref = self.tensors[name]
        span = _span(ref)
        if not span:
            return torch.empty(ref.shape, dtype=ref.dtype)
        place = self.places[ref.storage.key] + ref.offset * _width(ref.dtype)
        flat = torch.frombuffer(self._mapped, dtype=ref.dtype, count=span, offset=place)
        return torch.as_strided(flat, ref.shape, ref.stride)

    @cached_property
    def _mapped(self) -> mmap.mmap:
        # A private map: whoever writes to a tensor changes his memory and never the file.
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def open_torch_file(path: Path) -> TorchFile:
    """The tensors of a state_dict saved by torch.save; CheckpointError for anything that is not
    just that.
    """
    try:
        read = _read_zip if zipfile.is_zipfile(str(path)) else _read_legacy
        value, places, sizes = read(path)
    except CheckpointError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError,
            struct.error, zipfile.BadZipFile, NotImplementedError, RecursionError, EOFError,
            UnicodeError, OSError) as error:  # fmt: skip
        raise _refuse(path, "is damaged or no file of torch.save (%s)" % _short(error)) from None
    return TorchFile(path, _checked(path, value, places, sizes), places)


Places = Dict[str, int]


def _read_zip(path: Path) -> Tuple[Any, Places, Dict[str, int]]:
    """(what the pickle builds, where each storage begins, how many bytes each has)"""
    places, sizes, pickle = {}, {}, None
    length = path.stat().st_size
    with zipfile.ZipFile(str(path)) as archive, path.open("rb") as file:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
                raise _refuse(
                    path, "has a compressed or encrypted record, which torch.save never writes"
                )
            place = _record_start(file, record)
            if place + record.file_size > length or record.file_size != record.compress_size:
                raise _refuse(path, "has a record that reaches beyond its end")
            _, _, name = record.filename.partition("/")
            if name == "data.pkl":
                pickle = _bounded(file, place, record.file_size, path)
            elif name.startswith("data/"):
                places[name[5:]], sizes[name[5:]] = place, record.file_size
            elif name == "byteorder" and _bounded(file, place, record.file_size, path) != b"little":
                raise _refuse(path, "was saved on a big-endian machine")
    if pickle is None:
        raise _refuse(path, "has no data.pkl")
    return _Machine(io.BytesIO(pickle)).run(), places, sizes


def _record_start(file: IO[bytes], record: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin: behind its local header, whose name and extra field say their
    lengths.
    """
    file.seek(record.header_offset)
    header = file.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("no local header")
    name, extra = struct.unpack("<HH", header[26:30])
    return record.header_offset + 30 + int(name) + int(extra)


def _bounded(file: IO[bytes], place: int, size: int, path: Path) -> bytes:
    if size > _PICKLE_BYTES:
        raise _refuse(path, "has a pickle of %d bytes, which no state_dict needs" % size)
    file.seek(place)
    return file.read(size)


def _read_legacy(path: Path) -> Tuple[Any, Places, Dict[str, int]]:
    places, sizes, length = {}, {}, path.stat().st_size
    with path.open("rb") as file:
        # In memory a length that lies is found out before anything of that size is made.
        head = io.BytesIO(file.read(_PICKLE_BYTES))
        magic, protocol, system = (_Machine(head).run() for _ in range(3))
        if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
            raise _refuse(path, "is no file of torch.save")
        if not system.get("little_endian", True):
            raise _refuse(path, "was saved on a big-endian machine")
        machine = _Machine(head)
        value = machine.run()
        keys = _Machine(head).run()
        place = head.tell()
        for key in keys:
            file.seek(place)
            (numel,) = struct.unpack("<q", file.read(8))
            size = numel * _width(machine.storages[key].dtype)
            if numel < 0 or place + 8 + size > length:
                raise _refuse(path, "has a storage that reaches beyond its end")
            places[key], sizes[key] = place + 8, size
            place += 8 + size
    return value, places, sizes


def _width(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()


def _checked(path: Path, value: Any, places: Places, sizes: Dict[str, int]) -> Dict[str, TensorRef]:
    """The tensors of `value`, each inside a storage that is really there."""
    if not isinstance(value, dict):
        raise _refuse(path, "holds no dictionary of tensors")
    for name, ref in value.items():
        if not isinstance(name, str) or not isinstance(ref, TensorRef):
            raise _refuse(path, "holds something that is no tensor: %s" % _short(name))
        size = _width(ref.dtype)
        numbers = (*ref.shape, *ref.stride, ref.offset)
        if not all(type(n) is int and n >= 0 for n in numbers) or len(ref.shape) != len(ref.stride):
            raise _refuse(path, "has an impossible shape in tensor %s" % name)
        if ref.storage.key not in places:
            raise _refuse(path, "lacks the numbers of tensor %s" % name)
        if (ref.offset + _span(ref)) * size > sizes[ref.storage.key]:
            raise _refuse(path, "has fewer numbers than tensor %s claims" % name)
        if _count(ref.shape) > _span(ref):  # a stride of 0 would make much out of little
            raise _refuse(path, "repeats numbers in tensor %s" % name)
    return value


def _count(shape: Tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _span(ref: TensorRef) -> int:
    """How many numbers lie between the first and the last of the view, both included."""
    if 0 in ref.shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(ref.shape, ref.stride))


def _refuse(path: Path, what: str) -> CheckpointError:
    return CheckpointError("%s %s" % (path, what), "get it again from a source you trust")


def _short(value: object) -> str:
    return repr(value)[:80]


class _Named(NamedTuple):
    """A global that a pickle mentions. It is never looked up."""

    module: str
    name: str


def _ordered_dict(items: Any = ()) -> Dict[Any, Any]:
    return dict(items)


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any = False,
    hooks: Any = None, metadata: Any = None,
) -> TensorRef:  # fmt: skip
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    return TensorRef(storage, offset, tuple(shape), tuple(stride))


def _parameter(data: Any, requires_grad: Any = False, hooks: Any = None) -> Any:
    return data


_CALLS: Dict[_Named, Callable[..., Any]] = {
    _Named("collections", "OrderedDict"): _ordered_dict,
    _Named("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Named("torch._utils", "_rebuild_parameter"): _parameter,
}
_MARK = object()


class _Machine:
    """Runs one pickle. Instructions are methods named after them; an unknown one ends it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.stack: List[Any] = []
        self.memo: Dict[int, Any] = {}
        self.storages: Dict[str, Storage] = {}

    def run(self) -> Any:
        for opcode, argument, _ in pickletools.genops(self.file):
            if opcode.name == "STOP":
                return self.stack.pop()
            action: Optional[Callable[[Any], None]] = getattr(self, "_op_" + opcode.name, None)
            if action is None:
                raise ValueError("the pickle uses %s" % opcode.name)
            action(argument)
        raise EOFError("the pickle does not end")

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    _op_BININT = _op_BININT1 = _op_BININT2 = _op_LONG1 = _op_LONG4 = _push
    _op_BINUNICODE = _op_SHORT_BINUNICODE = _op_BINSTRING = _op_SHORT_BINSTRING = _push

    def _op_PROTO(self, version: int) -> None:
        pass

    _op_FRAME = _op_PROTO

    def _op_NONE(self, _: None) -> None:
        self._push(None)

    def _op_NEWTRUE(self, _: None) -> None:
        self._push(True)

    def _op_NEWFALSE(self, _: None) -> None:
        self._push(False)

    def _op_EMPTY_DICT(self, _: None) -> None:
        self._push({})

    def _op_EMPTY_LIST(self, _: None) -> None:
        self._push([])

    def _op_EMPTY_TUPLE(self, _: None) -> None:
        self._push(())

    def _op_MARK(self, _: None) -> None:
        self._push(_MARK)

    def _since_mark(self) -> List[Any]:
        items = []
        while self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        self.stack.pop()
        return items[::-1]

    def _op_TUPLE(self, _: None) -> None:
        self._push(tuple(self._since_mark()))

    def _tuple(self, size: int) -> None:
        items = self.stack[-size:]
        if len(items) != size:
            raise ValueError("the pickle takes more than it has")
        self.stack[-size:] = [tuple(items)]

    def _op_TUPLE1(self, _: None) -> None:
        self._tuple(1)

    def _op_TUPLE2(self, _: None) -> None:
        self._tuple(2)

    def _op_TUPLE3(self, _: None) -> None:
        self._tuple(3)

    def _op_APPEND(self, _: None) -> None:
        item = self.stack.pop()
        self._list().append(item)

    def _op_APPENDS(self, _: None) -> None:
        items = self._since_mark()
        self._list().extend(items)

    def _list(self) -> List[Any]:
        if type(self.stack[-1]) is not list:
            raise ValueError("the pickle appends to no list")
        found: List[Any] = self.stack[-1]
        return found

    def _op_SETITEM(self, _: None) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._dict()[key] = value

    def _op_SETITEMS(self, _: None) -> None:
        items = self._since_mark()
        self._dict().update(zip(items[::2], items[1::2]))

    def _dict(self) -> Dict[Any, Any]:
        if type(self.stack[-1]) is not dict:
            raise ValueError("the pickle puts items into no dictionary")
        found: Dict[Any, Any] = self.stack[-1]
        return found

    def _op_BINPUT(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    _op_LONG_BINPUT = _op_BINPUT

    def _op_MEMOIZE(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _op_BINGET(self, place: int) -> None:
        self._push(self.memo[place])

    _op_LONG_BINGET = _op_BINGET

    def _op_GLOBAL(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self._name(module, name)

    def _op_STACK_GLOBAL(self, _: None) -> None:
        name = self.stack.pop()
        self._name(self.stack.pop(), name)

    def _name(self, module: str, name: str) -> None:
        named = _Named(module, name)
        storage = module in ("torch", "torch.cuda") and name in _STORAGES
        if not storage and named not in _CALLS:
            raise ValueError("the pickle asks for %s.%s" % (module, name))
        self._push(named)

    def _op_REDUCE(self, _: None) -> None:
        arguments = self.stack.pop()
        called = self.stack.pop()
        if called not in _CALLS or type(arguments) is not tuple:
            raise ValueError("the pickle calls %s" % _short(called))
        self._push(_CALLS[called](*arguments))

    def _op_BUILD(self, _: None) -> None:
        self.stack.pop()  # attributes such as a state_dict's _metadata, of no use here

    def _op_BINPERSID(self, _: None) -> None:
        identity = self.stack.pop()
        kind, named, key, _location, numel = identity[:5]
        if kind != "storage" or named.name not in _STORAGES or type(key) is not str:
            raise ValueError("the pickle has a strange storage")
        storage = Storage(_STORAGES[named.name], key, int(numel))
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError("the pickle contradicts itself about storage %s" % _short(key))
        self._push(storage)
