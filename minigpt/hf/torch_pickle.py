"""PyTorch's .bin files, read without running them.

A pickle is a program. torch.save's programs need only a handful of instructions and build only
dictionaries of tensors, numbers and texts; so here is an interpreter for those instructions, which
knows no others and can call nothing but the few functions in `_GLOBALS`. A tensor becomes a `View`:
its shape and strides over a storage. It is given out once it is known to lie inside that, and its
bytes are read when asked for. Both formats are known: the zip archive (since PyTorch 1.6) and the
older sequence of pickles followed by raw storages.
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

import numpy as np
import torch
from torch import Tensor

from minigpt.base.errors import CheckpointError
from minigpt.checkpoint.safetensors import LazyTensor, width

_PICKLE_BYTES = 64 << 20  # more than any state_dict of a language model needs
_MOST, _DIMENSIONS = 1 << 62, 64  # of a size, a stride or an offset; of a tensor's dimensions
# Where trainers keep the model in what they save, from outside in.
_WRAPPERS = ("checkpoint", "model", "module", "model_state_dict", "state_dict")
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "Bool": torch.bool,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8,
}  # fmt: skip

Places = Dict[str, Tuple[int, int]]  # where something begins in the file, and how many bytes it has


class View(NamedTuple):
    """A tensor that has not been read: strides over the run of numbers called `key`."""

    dtype: torch.dtype
    key: str
    offset: int
    shape: Tuple[int, ...]
    stride: Tuple[int, ...]


def open_torch_file(path: Path) -> Dict[str, LazyTensor]:
    """The tensors of a state_dict saved by torch.save, alone or with other things by a trainer;
    CheckpointError for anything else.
    """
    return _opened(path)[0]


def saved_beside(path: Path, name: str) -> Any:
    """What is called `name` in such a file beside the state_dict, None if nothing is."""
    return _opened(path)[1].get(name)


def _opened(path: Path) -> Tuple[Dict[str, LazyTensor], Dict[str, Any]]:
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        zipped = zipfile.is_zipfile(str(path))
        value, places = _read_zip(path, data) if zipped else _read_legacy(data)
        views = _state_dict(value)
        tensors = {key: _lazy(path, key, view, places) for key, view in views.items()}
        return tensors, value
    except Exception as error:  # whatever a file that is none of torch.save's may cause
        what = f"{path} cannot be read as a file of torch.save: {error!s:.200}"
        raise CheckpointError(what, "get it again from a source you trust") from None


def _read_zip(path: Path, data: mmap.mmap) -> Tuple[Any, Places]:
    """(what the pickle builds, where each storage is)"""
    places: Places = {}
    with zipfile.ZipFile(str(path)) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
                raise ValueError("a record is compressed or encrypted, which torch.save never does")
            # Its bytes are behind a local header that says how much else precedes.
            begin = record.header_offset
            signature, name, extra = struct.unpack_from("<4s22xHH", data, begin)
            place, size = begin + 30 + int(name) + int(extra), record.file_size
            if signature != b"PK\x03\x04" or not 0 <= begin < place <= len(data) - size:
                raise ValueError("a record is not where the archive says")
            places[record.filename.partition("/")[2]] = place, size
    place, size = places["data.pkl"]
    order = places.get("byteorder", (0, 0))[0]
    if order and data[order : order + 6] != b"little":
        raise ValueError("it was saved on a big-endian machine")
    value, _ = _run(io.BytesIO(data[place : place + min(size, _PICKLE_BYTES)]))
    return value, places


def _read_legacy(data: mmap.mmap) -> Tuple[Any, Places]:
    """As `_read_zip`: four pickles, a list of keys, and for each its storage behind its length."""
    # In memory a length that lies is found out before anything of that size is made.
    head = io.BytesIO(data[:_PICKLE_BYTES])
    if [_run(head)[0] for _ in range(2)] != [_LEGACY_MAGIC, _LEGACY_PROTOCOL]:
        raise ValueError("it does not begin as one")
    if not _run(head)[0].get("little_endian", True):
        raise ValueError("it was saved on a big-endian machine")
    (value, views), (keys, _) = _run(head), _run(head)
    dtypes = {view.key: view.dtype for view in views}
    places: Places = {}
    place = head.tell()
    for key in keys:
        name = "data/" + key  # a text, before it is hashed
        (numel,) = struct.unpack_from("<q", data, place)
        place, size = place + 8, numel * width(dtypes[key])
        if not 0 <= size <= len(data) - place:
            raise ValueError("a storage reaches beyond its end")
        places[name] = place, size
        place += size
    return value, places


def _lazy(path: Path, name: str, view: View, places: Places) -> LazyTensor:
    """The tensor, to be read later: it lies inside a storage that is really there."""
    numbers = (*view.shape, *view.stride, view.offset)
    possible = all(type(n) is int and 0 <= n < _MOST for n in numbers)
    if not possible or not len(view.shape) == len(view.stride) <= _DIMENSIONS:
        raise ValueError(f"tensor {name!r:.80} has an impossible shape")
    steps = sum((size - 1) * stride for size, stride in zip(view.shape, view.stride))
    span = 0 if 0 in view.shape else 1 + steps  # the numbers from its first to its last
    place, size = places.get("data/" + view.key, (0, 0))
    if (view.offset + span) * width(view.dtype) > size:
        raise ValueError(f"tensor {name!r:.80} claims more numbers than there are")
    if math.prod(view.shape) > span:  # a stride of 0 would make much out of little
        raise ValueError(f"tensor {name!r:.80} repeats numbers")
    start = place + view.offset * width(view.dtype)
    return LazyTensor(view.dtype, view.shape, partial(_read, path, view, start, span))


def _read(path: Path, view: View, start: int, span: int) -> Tensor:
    if not span:
        return torch.empty(view.shape, dtype=view.dtype)
    # A private map: whoever writes to a tensor changes his memory and never the file. The system
    # counts it as memory, so it is no larger than the tensor.
    data = np.memmap(str(path), np.uint8, "c", start, (span * width(view.dtype),))
    return torch.from_numpy(data).view(view.dtype).as_strided(view.shape, view.stride)


def _state_dict(value: Any) -> Dict[str, View]:
    """The tensors, by name, of a state_dict, or of the one that a trainer has saved with others."""
    for name in _WRAPPERS:
        if type(value) is dict and type(value.get(name)) is dict:
            value = value[name]
    if type(value) is not dict:
        raise ValueError("it holds no dictionary of tensors")
    views = {name: view for name, view in value.items() if isinstance(view, View)}
    if not views:
        raise ValueError(f"it holds no tensors, but {', '.join(map(repr, [*value][:5]))!s:.80}")
    return views


def _run(file: IO[bytes]) -> Tuple[Any, List[View]]:
    """What one pickle builds, and all tensors that it made for it. Its stack and memo hold plain
    data and what `_GLOBALS` names, so nothing else can be called; an instruction that is not known
    here ends it.
    """
    stack: List[Any] = []
    views: List[View] = []
    memo: Dict[Any, Any] = {}
    for instruction, argument, _ in pickletools.genops(file):  # as far as STOP
        name = instruction.name
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _INSTRUCTIONS:
            given = [] if instruction.arg is None else [argument]
            stack.append(_INSTRUCTIONS[name](*given, *_taken(stack, instruction)))
            if isinstance(stack[-1], View):
                views.append(stack[-1])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"the pickle uses {name}")
    return stack.pop(), views


_MARK = object()


def _taken(stack: List[Any], instruction: pickletools.OpcodeInfo) -> List[Any]:
    """What an instruction takes from the stack, by pickletools' own description of it."""
    taken = []
    for kind in reversed(instruction.stack_before):
        if kind is pickletools.stackslice:  # all that lies above the last mark, and the mark
            taken.append([*iter(stack.pop, _MARK)][::-1])
        elif kind is not pickletools.markobject:
            taken.append(stack.pop())
    return taken[::-1]


def _named(*words: str) -> Any:
    name = " ".join(words)
    if name not in _GLOBALS:
        raise ValueError(f"the pickle asks for {name!r:.80}")
    return _GLOBALS[name]


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> View:
    dtype, key = storage[1:3]
    if not isinstance(dtype, torch.dtype) or type(key) is not str:
        raise ValueError("the pickle has a tensor without a storage")
    return View(dtype, key, offset, tuple(shape), tuple(stride))


def _dictionary(items: Any = ()) -> Dict[str, Any]:
    """Its keys are texts or small numbers: to hash tuples of a million tuples takes for ever."""
    if not all(type(key) is str or (type(key) is int and 0 <= key < _MOST) for key, _ in items):
        raise ValueError("the pickle has a dictionary whose keys are no text")
    return dict(items)


def _extended(target: Any, items: List[Any]) -> Any:
    """The list or dictionary `target`, to which `items` were added; keys and values take turns."""
    if type(target) is dict:
        target.update(_dictionary([*zip(items[::2], items[1::2])]))
    else:
        target.extend(items)
    return target


# What the names in a pickle mean here. No name is looked up anywhere else.
_GLOBALS: Dict[str, Any] = {
    "collections OrderedDict": _dictionary,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda data, *_: data,
    **{f"torch {kind}Storage": dtype for kind, dtype in _DTYPES.items()},
    **{f"torch.cuda {kind}Storage": dtype for kind, dtype in _DTYPES.items()},
    # What a trainer may keep beside, and is not needed, comes to nothing.
    **dict.fromkeys(
        ("argparse Namespace", "pathlib PosixPath", "_codecs encode", "numpy dtype",
         "numpy.core.multiarray scalar", "numpy._core.multiarray scalar", "torch device",
         "torch Size", "torch float32", "torch float16", "torch bfloat16"),
        lambda *_: None,
    ),
}  # fmt: skip

# What an instruction makes of what stands behind it, or of what it takes from the stack.
_INSTRUCTIONS: Dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE",
         "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "BINPERSID"),
        lambda value: value,
    ),
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "MARK": lambda: _MARK,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    **dict.fromkeys(("EMPTY_TUPLE", "TUPLE"), tuple),
    **dict.fromkeys(("TUPLE1", "TUPLE2", "TUPLE3"), lambda *items: items),
    **dict.fromkeys(("APPENDS", "SETITEMS"), _extended),
    **dict.fromkeys(("APPEND", "SETITEM"), lambda target, *items: _extended(target, [*items])),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _named),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda function, arguments: function(*arguments)),
    "BUILD": lambda value, attributes: value,  # of no use here, such as a state_dict's _metadata
}  # fmt: skip
