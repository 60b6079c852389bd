"""The files behind what a person names, which of them validate, and the values in their rows.

    a file         .txt .py are texts; .jsonl .json .parquet hold a value in each line, element, row
    a directory    all such files in it (.json only where there are no others), but not those that
                   are hidden, behind a link or written by minigpt: these are counted
    stdlib         the running interpreter's own library

Names that say train, valid, validation, val, dev or test are heeded: what is for a test is read by
nobody who does not name it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Collection, Dict, Iterator, List, Optional, Tuple, TypeVar, Union

from minigpt.base.errors import DataError, UsageError
from minigpt.base.files import MANIFEST
from minigpt.data.values import ROWS, WHOLE, LeftOut, Span, Values, rows

Names = Union[str, Tuple[str, ...]]  # what --data and --validation take: a name, or several
Part = Tuple[int, int]  # (3, 16): the third of sixteen
AnyFound = TypeVar("AnyFound", bound="Found")
HeldOut = Union[Names, float, None]  # what --validation takes; None: HELD_OUT, or as files say

TRAIN, VALIDATION = "train", "validation"
HELD_OUT = 0.03  # the share that is kept for validation
ALL: Part = (1, 1)
FUNCTIONS = "stdlib-functions"  # records that are no files
LIBRARY = Path(sysconfig.get_paths()["stdlib"])  # of the running interpreter

_KINDS = (".py", ".txt", *ROWS)
_TEST = "test"
_NOTHING = Span(inf, inf)
_OF_WEIGHTS = re.compile(r"\.(safetensors|tokens)$|^part-[0-9]+-of-[0-9]+$")  # or of data
_SAID = {TRAIN: TRAIN, "training": TRAIN, _TEST: _TEST}
_SAID.update(dict.fromkeys((VALIDATION, "valid", "val", "dev"), VALIDATION))
_NAME_ONE = f"name a file of records or text ({' '.join(_KINDS)}), a directory or stdlib"
# The library's tests, other people's packages, and pydoc's topics, a 700 kB text in a string.
_NOT_CODE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"}
_MODEL = {"config.json", "vocab.json", "tokenizer.json", "tokenizer_config.json"}


@dataclass(frozen=True)
class File:
    """`key` is its name in what was given; `split` what that, or --validation, says of it; `span`
    what of it is to be read.
    """

    path: Path
    key: str
    split: Optional[str] = None
    span: Span = WHOLE

    @property
    def has_rows(self) -> bool:
        """Whether it holds values, and is no text."""
        return self.path.suffix.lower() in ROWS

    @property
    def is_read(self) -> bool:
        """Whether any of it is."""
        return self.span != _NOTHING

    @property
    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size


@dataclass(frozen=True)
class Found:
    """The files in a fixed order. `share` is what is held out of those whose split is open."""

    name: str
    files: Tuple[File, ...]
    share: float
    notes: List[str]  # what was passed over

    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def part(self: AnyFound, part: Part) -> AnyFound:
        """The same, of which only a part is to be read: parts of about as many bytes each, which
        in their order are the whole.
        """
        (number, count), total, at = part, self.size(), 0
        begin, end = total * (number - 1) // count, total * number // count
        files = []
        for file in self.files:
            after = at + max(1, file.size)  # a text without a letter is one, too
            to_end = after <= end or number == count
            span = Span(max(0, begin - at), inf if to_end else end - at)
            is_read = begin < after and (at < end or to_end)
            files.append(replace(file, span=span if is_read else _NOTHING))
            at += file.size
        return replace(self, files=tuple(files))

    def fingerprint(self) -> str:
        """A sha256 that is the same on another machine with a copy of the files."""
        lines = [f"{file.key} {file.split} {file.size}" for file in self.files]
        text = "\n".join([str(self.share), *lines])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def chosen(self) -> str:
        """The files for validation, in words; empty where none was chosen by its name."""
        return said(tuple(f.key for f in self.files if f.split == VALIDATION))

    def values(self, file: File, left_out: LeftOut, keys: Collection[str]) -> Values:
        """(where, value) of everything in a file with rows; of Parquet the columns in `keys`. What
        is no value goes to `left_out`, and so does a file that is none, unless it is the only one.
        """
        try:
            if file.is_read:
                yield from rows(file.path, left_out, keys, file.span)
        except DataError as error:
            if left_out.strict or len(self.files) == 1:
                raise
            if file.span.end == inf:  # of several parts the one that reads to the end says it
                left_out.add(error.what.replace(f"{file.path} ", "", 1), str(file.path))


def listed(names: Names) -> Tuple[str, ...]:
    """Names, one or several, as several."""
    return (names,) if isinstance(names, str) else names


def said(names: Names) -> str:
    """Names in a sentence."""
    each = listed(names)
    return ", ".join(each[:3]) + (f" and {len(each) - 3} more" if len(each) > 3 else "")


def share_of(validation: HeldOut) -> Optional[float]:
    """The share that --validation says, as 0.05 or 5%; None where it names files."""
    text = str(HELD_OUT if validation is None else validation)
    try:
        share = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    if not 0.0 < share < 1.0:
        what = f"--validation is {validation}, and a share must be between 0 and 1"
        raise UsageError(what, "say 0.05, or name files")
    return share


def find_files(names: Names, validation: HeldOut = None, whole: bool = False) -> Found:
    """The files of `names`, none of FUNCTIONS; DataError when none are there. `validation` is a
    share, or the names of what to validate on; with `whole` that is all of them.
    """
    passed, chosen, split = LeftOut(), {}, VALIDATION if whole else None
    share = 1.0 if whole else share_of(validation)
    if names == FUNCTIONS:
        return Found(names, (), share or HELD_OUT, [])
    if share is None:
        assert isinstance(validation, (str, tuple))
        chosen, split = _files(validation, passed, VALIDATION), TRAIN
    found = _files(names, passed, split)
    rest = [file for place, file in found.items() if place not in chosen]
    if not rest:
        raise DataError(f"{said(names)} is all in --validation", "name more to train on")
    files = [*(rest if split else _heeded(rest, passed)), *chosen.values()]
    return Found(said(names), tuple(files), share or HELD_OUT, passed.lines())


def _files(names: Names, passed: LeftOut, split: Optional[str]) -> Dict[str, File]:
    """The files by where they really are, so that each is there once."""
    if not names:
        raise UsageError("no data are named", _NAME_ONE)
    files: Dict[str, File] = {}
    for name in listed(names):
        root = LIBRARY if name == "stdlib" else Path(name)
        paths = library_files() if name == "stdlib" else _below(root, passed)
        above = root.parent if root in paths else root
        prefix = Path(os.path.abspath(above)).name if len(listed(names)) > 1 else ""
        for path in paths:
            key = (prefix / path.relative_to(above)).as_posix()
            files.setdefault(os.path.realpath(path), File(path, key, split))
    return files


def library_files() -> List[Path]:
    """The library's own source files, without tests and other people's packages, in fixed order."""
    return [path for path in _walk(LIBRARY, LeftOut(), _NOT_CODE) if path.suffix == ".py"]


def _below(root: Path, passed: LeftOut) -> List[Path]:
    """A file, or those of a directory; DataError when there is none that can be read."""
    kinds, here = ", ".join(_KINDS), "" if root.is_absolute() else f" in {os.getcwd()}"
    if os.path.isdir(root):
        files = list(_walk(root, passed))
        if not files:
            what = "; ".join([f"{root} has no {kinds} file", *passed.lines()])
            raise DataError(what, _NAME_ONE)
        return [path for path in files if path.suffix.lower() != ".json"] or files
    if not os.path.isfile(root):
        fix = f"{_NAME_ONE}, or, to train on, stdlib-functions"
        fix += " (a run goes on elsewhere by --resume RUN --data PATH)" if here else ""
        if os.path.exists(root):
            fix = "write what it gives into a file, and name that"
            raise DataError(f"{root} is no file, but a device, a pipe or a socket", fix)
        raise DataError(f"there is no file {root}{here}", fix)
    if root.suffix.lower() not in _KINDS:
        fix = "if it is text, give it a name that ends in .txt"
        raise DataError(f"{root} is no {kinds} file", fix)
    return [root]


def _walk(root: Path, passed: LeftOut, skip: Collection[str] = ()) -> Iterator[Path]:
    for directory, folders, names in os.walk(str(root)):
        here = Path(directory)
        if _written_by_us(here, [*names, *folders]):
            passed.add("a run, a model or prepared data", directory)
            names, folders[:] = [], []
        below = sorted({*folders}.difference(skip, {"__pycache__"}))
        folders[:] = [name for name in below if _is_open(here / name, passed)]
        files = [here / name for name in sorted(names) if _is_data(here / name, names)]
        yield from (path for path in files if _is_open(path, passed))


def _is_open(path: Path, passed: LeftOut) -> bool:
    if path.name.startswith(".") or path.name == "__MACOSX":
        why = "hidden"
    elif path.is_symlink() and path.is_dir():
        why = "a link to a directory, not followed"
    elif not path.is_dir() and not path.is_file():
        why = "no file, but a pipe, a device or a link to nothing"
    else:
        return True
    passed.add(why, str(path))
    return False


def _is_data(path: Path, beside: Collection[str]) -> bool:
    """Whether it is for us to read, and neither a part of a vocabulary nor an evaluation's."""
    vocabulary = path.name in ("merges.txt", "vocab.txt") and not _MODEL.isdisjoint(beside)
    ours = vocabulary or f"{path.name}.settings.json" in beside
    return path.suffix.lower() in _KINDS and not ours


def _written_by_us(directory: Path, names: Collection[str]) -> bool:
    """A prepared directory, a run, a checkpoint, or a model in Hugging Face's layout."""
    run = "metrics.jsonl" in names or (directory / "checkpoints").is_dir()
    weights = any(_OF_WEIGHTS.search(name) for name in names)
    of_model = not {MANIFEST, "dataset.json", "config.json"}.isdisjoint(names)
    return (run and "config.toml" in names) or (weights and of_model)


def _heeded(files: List[File], passed: LeftOut) -> List[File]:
    """The files, with the splits that their names say, where these leave something to train on."""
    named = [_split_said(file) for file in files]
    code = any(file.path.suffix == ".py" for file in files)  # has a folder of tests, and they teach
    if {TRAIN, None}.isdisjoint(named) or (code and TRAIN not in named):
        return files
    kept = []
    for file, split in zip(files, named):
        if split == _TEST:
            passed.add("for a test, by its name", file.key)
        else:
            kept.append(replace(file, split=(split or TRAIN) if VALIDATION in named else None))
    return kept


def _split_said(file: File) -> Optional[str]:
    *folders, name = file.key.lower().split("/")
    words = re.split("[^a-z]+", name.rpartition(".")[0]) if file.path.suffix != ".py" else []
    for parts in (words, *([folder] for folder in reversed(folders))):
        found = {_SAID[part] for part in parts if part in _SAID}
        if len(found) == 1:
            return found.pop()
    return None
