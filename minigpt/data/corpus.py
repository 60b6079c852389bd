"""What there is to learn from: a SOURCE becomes documents, each for training or validation.

    stdlib       the source code of the running interpreter's standard library, tests left out
    FILE         .txt and .py are one document, .jsonl has one in each line ("text" or "content")
    DIRECTORY    all such files in it

Text is read in pieces, so that memory does not grow with the source. A hash of their names decides
which documents are held out for validation, so that it stays the same when others are added.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sysconfig
import tokenize
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Collection, Iterator, List, Tuple

from minigpt.base.errors import DataError

TRAIN, VALIDATION = "train", "validation"
HELD_OUT = 0.03  # the part that is kept for validation
LIBRARY = Path(sysconfig.get_paths()["stdlib"])  # of the running interpreter
SUFFIXES = (".py", ".txt", ".jsonl")
TEXT_KEYS = ("text", "content")  # what makes a line of .jsonl plain text

_PIECE, _LONGEST = 1 << 20, 16 << 20  # characters: a piece is cut from the one on, at the other
# The library's tests, other people's packages, and pydoc's topics, a 700 kB text in a string.
_NOT_CODE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"}

# Where GPT-2's pattern cannot reach across: a line break with no other white space beside it.
_CUT = re.compile(r"(?<=\S\n)(?=\S)")


@dataclass(frozen=True)
class Piece:
    """Text of one document, or a part of it. `size` is in bytes of UTF-8."""

    split: str
    text: str
    ends_document: bool

    @property
    def size(self) -> int:
        return len(self.text.encode("utf-8", "replace"))


@dataclass(frozen=True)
class Source:
    """A SOURCE found: its files in order, the split of each, and how much is for validation."""

    name: str
    files: Tuple[Path, ...]
    splits: Tuple[str, ...]
    validation: float

    def key(self) -> str:
        """A sha256 that changes when a file is added, removed or written to."""
        digest = hashlib.sha256(b"%r" % self.validation)
        for path in self.files:
            status = path.stat()
            line = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)

    def pieces(self) -> Iterator[Piece]:
        """All text, in a fixed order."""
        for path, split in zip(self.files, self.splits):
            if path.suffix == ".jsonl":
                yield from _text_lines(path, self.validation)
            elif len(self.files) == 1:
                yield from _head_and_tail(path, self.validation)
            else:
                yield from (Piece(split, text, last) for text, last in _cut(path))


def find_source(name: str, validation: float = HELD_OUT) -> Source:
    """The Source called `name`; DataError when there is none, or nothing in it."""
    root = LIBRARY if name == "stdlib" else Path(name)
    files = library_files() if name == "stdlib" else _files(root)
    keys = [path.relative_to(root).as_posix() for path in files]
    source = Source(name, tuple(files), _splits(keys, validation), validation)
    if not source.size():
        raise DataError(f"{name} has no text", "name a file or directory with some in it")
    return source


def library_files() -> List[Path]:
    """The library's own source files, without tests and other people's packages, in fixed order."""
    return [path for path in _walk(LIBRARY, _NOT_CODE) if path.suffix == ".py"]


def read_text(path: Path) -> str:
    """A whole text or source file, decoded as it declares; DataError names the line it fails at."""
    return "".join(text for text, _ in _cut(path))


def validation_documents(name: str, limit: int) -> List[bytes]:
    """The first held-out documents, about `limit` bytes in all; none for a prepared directory."""
    if (Path(name) / "dataset.json").exists():
        return []
    documents, total = [b""], 0
    for piece in find_source(name).pieces():
        if piece.split == VALIDATION and total < limit:
            documents[-1] += piece.text.encode("utf-8", "replace")
            total += piece.size
            documents += [b""] * piece.ends_document
    return documents if documents[-1] else documents[:-1]


def _files(root: Path) -> List[Path]:
    if not root.exists():
        fix = "name a file, a directory or stdlib, or, to train on, stdlib-functions"
        raise DataError(f"there is no {root}", fix)
    files = [path for path in (_walk(root) if root.is_dir() else [root]) if path.suffix in SUFFIXES]
    if not files:
        what = f"{root} {'has' if root.is_dir() else 'is'} no {', '.join(SUFFIXES)} file"
        raise DataError(what, "name another, or a file of records: .jsonl, .json or .parquet")
    return files


def _walk(root: Path, skip: Collection[str] = ()) -> Iterator[Path]:
    skip = {"__pycache__", *skip}
    for directory, names, files in os.walk(str(root)):
        names[:] = sorted(n for n in names if n not in skip and not n.startswith("."))
        yield from filter(Path.is_file, (Path(directory) / name for name in sorted(files)))


def draw(key: str) -> float:
    """A number in [0, 1) that depends on nothing but `key`."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _splits(keys: List[str], validation: float) -> Tuple[str, ...]:
    """The split of each file. Of two or more, each split gets at least one."""
    draws = [draw(key) for key in keys]
    splits = [VALIDATION if draw < validation else TRAIN for draw in draws]
    if len(keys) > 1 and validation > 0:
        splits[draws.index(min(draws))] = VALIDATION
        splits[draws.index(max(draws))] = TRAIN
    return tuple(splits)


def _text_lines(path: Path, validation: float) -> Iterator[Piece]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                text = _text_of(line, f"{path}:{number}")
                held_out = draw(f"{number} {text}") < validation
                yield Piece(VALIDATION if held_out else TRAIN, text, True)


def _text_of(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON: {error}", "mend or remove the line") from None
    record = record if isinstance(record, dict) else {}
    for key in TEXT_KEYS:
        if isinstance(record.get(key), str):
            return str(record[key])
    what = f"{where} has no text: its keys are {', '.join(sorted(record)) or 'none'}"
    raise DataError(what, 'write {"text": "..."}, or train on this file of records alone')


def _head_and_tail(path: Path, validation: float) -> Iterator[Piece]:
    """A single text: its end, from the start of a line on, is for validation."""
    limit = path.stat().st_size * (1.0 - validation)
    split, seen = TRAIN, 0
    for text, last in _cut(path):
        size = len(text.encode("utf-8", "replace"))
        if split == TRAIN and seen + size > limit:
            place = _line_start(text, int(len(text) * (limit - seen) / size))
            yield Piece(TRAIN, text[:place], True)
            split, text = VALIDATION, text[place:]
        seen += size
        yield Piece(split, text, last)


def _line_start(text: str, place: int) -> int:
    after = text.find("\n", place) + 1
    return after if 0 < after < len(text) else text.rfind("\n", 0, place) + 1 or place


def _cut(path: Path) -> Iterator[Tuple[str, bool]]:
    """(text, whether it is the last) of a file, cut where tokens cannot reach across."""
    lines, length = [""], 0
    with _open(path) as file:
        for line in iter(partial(file.readline, _PIECE), ""):
            before = lines[-1][-2:]
            can_cut = length >= _PIECE and _CUT.match(before + line[0], len(before))
            if can_cut or length >= _LONGEST:
                yield "".join(lines), False
                lines, length = [], 0
            lines.append(line)
            length += len(line)
    yield "".join(lines), True


@contextmanager
def _open(path: Path) -> Iterator[IO[str]]:
    """The text of a file; DataError also when it cannot be decoded while it is read."""
    encoding = "utf-8-sig"  # a byte order mark, which some editors write, is no text
    try:
        if path.suffix == ".py":
            with path.open("rb") as source:
                encoding = tokenize.detect_encoding(source.readline)[0]
        with path.open(encoding=encoding, newline="") as file:
            yield file
    except SyntaxError as error:
        raise DataError(f"{path}: {error}", "save it as UTF-8") from None
    except UnicodeDecodeError as error:
        raise _undecodable(path, error.encoding) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "see who may") from None


def _undecodable(path: Path, encoding: str) -> DataError:
    """The codec knows a place in its buffer; people look for a line."""
    number = 1
    with path.open("rb") as file, suppress(UnicodeDecodeError):
        for line in file:
            line.decode(encoding)
            number += 1
    return DataError(f"{path}:{number} is not {encoding}", "save it as UTF-8")
