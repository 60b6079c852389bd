"""Texts to learn from: a SOURCE becomes documents, each for training or validation.

    .txt .py                  one document
    .jsonl .json .parquet     one in each value ("text" or "content", or as --text-key says)

Text is read in pieces, so that memory does not grow with the source. A hash decides which documents
are held out, of files that of their names, so that it stays the same when others are added. Copies
stay together, and none is held out that is much more than the share: where all are, as where there
is one, the end of each is.
"""

from __future__ import annotations

import hashlib
import re
import tokenize
from collections import defaultdict
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Dict, Iterable, Iterator, List, Optional, Tuple, Union

from minigpt.base.errors import DataError
from minigpt.data.sources import (
    HELD_OUT,
    ROWS,
    TRAIN,
    VALIDATION,
    File,
    Found,
    LeftOut,
    Names,
    draw,
    encoding_of,
    find_files,
    names_of,
    rows,
)  # fmt: skip
from minigpt.data.tokenizer import END_MARK

TEXT_KEYS = ("text", "content")  # what makes a value plain text

_PIECE, _LONGEST = 1 << 20, 16 << 20  # characters: a piece is cut from the one on, at the other
_SMALL = 1024  # bytes that are a fair share of any source
_MANY = 20_000  # values from which on their draws are left to chance

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
        return _size(self.text)


class Unreadable(DataError):
    """A file that is no text, from a line on."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}", "save it as UTF-8")
        self.where, self.reason = where, reason


@dataclass(frozen=True)
class Source:
    """A SOURCE found: its files in order, and the split of each."""

    found: Found
    text_key: Optional[str] = None

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def files(self) -> Tuple[Path, ...]:
        return tuple(file.path for file in self.found.files)

    def key(self) -> str:
        """A sha256 that changes when a file is added, removed or written to."""
        digest = hashlib.sha256(f"2 {self.found.share} {self.text_key}".encode())
        for file in self.found.files:
            status = file.path.stat()
            line = f"{file.path.resolve()} {file.split} {status.st_size} {status.st_mtime_ns}"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)

    @cached_property
    def splits(self) -> Tuple[Optional[str], ...]:
        """The split of each file; None where each value, or the end of it, is decided by itself."""
        files, open_texts = self.found.files, self._open(False)
        return self._decided(files, open_texts, _draws(open_texts))

    def _decided(
        self, files: Tuple[File, ...], open_texts: List[File], drawn: Dict[File, float]
    ) -> Tuple[Optional[str], ...]:
        sizes = {file: file.path.stat().st_size for file in open_texts}
        fair = _fair(self.found.share, sum(sizes.values()))
        border = _border([(drawn[f], sizes[f]) for f in open_texts], self.found.share, fair)
        if border < 0 or (len(open_texts) == 1 and not self._open(True)):
            return tuple(file.split for file in files)
        held = {f for f in open_texts if drawn[f] <= border and sizes[f] <= fair}
        broken = {file for file in held if not _readable(file.path)}
        if broken:  # which hold nothing out
            return self._decided(files, [f for f in open_texts if f not in broken], drawn)
        decided = {file: VALIDATION if file in held else TRAIN for file in open_texts}
        broken_too = dict.fromkeys(self._open(False), TRAIN)
        return tuple({**broken_too, **decided}.get(file, file.split) for file in files)

    def _open(self, of_rows: bool) -> List[File]:
        """The files, of values or of text, whose split nobody has said."""
        return [f for f in self.found.files if f.split is None and _has_rows(f) is of_rows]

    @cached_property
    def _fair_values(self) -> Tuple[float, float]:
        """(the largest draw of a value that is held out, how many bytes it may have)."""
        share, passed = self.found.share, LeftOut()
        texts = (text for file in self._open(True) for _, text in self._texts(file.path, passed))
        first = [(draw(text), _size(text)) for text in islice(texts, _MANY)]
        if len(first) == _MANY:
            return share, _fair(share, self.size())
        fair = _fair(share, sum(size for _, size in first))
        return _border(first, share, fair), fair

    @property
    def held_out(self) -> str:
        """What is for validation, in words."""
        part, open_texts = f"{100 * self.found.share:.3g}%", self._open(False)
        whole = [s for s, file in zip(self.splits, self.found.files) if file in open_texts and s]
        parts = [self.found.chosen()] if self.found.chosen() else []
        if whole:
            parts.append(f"{whole.count(VALIDATION)} of {len(whole)} files")
        elif open_texts:
            of = "each text" if len(open_texts) > 1 else open_texts[0].path.name
            parts.append(f"the last {part} of {of}")
        return " and ".join(parts + [f"{part} of the documents"] * bool(self._open(True)))

    def pieces(self, left_out: Optional[LeftOut] = None) -> Iterator[Piece]:
        """All text, in a fixed order. What cannot be read goes to `left_out`; without one it is a
        DataError.
        """
        left_out = left_out or LeftOut(strict=True)
        left_out.passed, left_out.held_out = [*self.found.notes], self.held_out
        for file, split in zip(self.found.files, self.splits):
            last = Piece(TRAIN, "", True)
            try:
                for last in self._pieces(file, split, left_out):
                    left_out.marked += len(END_MARK.findall(last.text))
                    yield last
            except Unreadable as error:
                left_out.add(error.reason, error.where)
                if not last.ends_document:
                    yield Piece(last.split, "", True)

    def _pieces(self, file: File, split: Optional[str], left_out: LeftOut) -> Iterator[Piece]:
        share = self.found.share
        if _has_rows(file):
            border, fair = (0.0, 0.0) if split else self._fair_values
            for number, (_, text) in enumerate(self._texts(file.path, left_out)):
                size = _size(text)
                if border < 0 and size > fair:
                    yield from _head_and_tail([(text, True)], size * (1.0 - share), "utf-8")
                else:
                    copies = border < 0 and number % max(2, round(1 / share)) == 0  # all of them
                    held_out = copies or (size <= fair and draw(text) <= border)
                    yield Piece(split or (VALIDATION if held_out else TRAIN), text, True)
        elif split:
            yield from (Piece(split, text, last) for text, last in _cut(file.path))
        else:
            limit, encoding = file.path.stat().st_size * (1.0 - share), encoding_of(file.path)
            yield from _head_and_tail(_cut(file.path), limit, encoding.replace("-sig", ""))

    def _texts(self, path: Path, left_out: LeftOut) -> Iterator[Tuple[str, str]]:
        """(where, text) of the values that have one."""
        keys = (self.text_key,) if self.text_key else TEXT_KEYS
        try:
            for where, value in rows(path, left_out, keys.__contains__):
                key = next((k for k in keys if isinstance(value, dict) and k in value), "")
                if key and isinstance(value[key], str):
                    yield where, value[key]
                else:
                    no_text = f"no {' or '.join(keys)} among {names_of(value)}"
                    left_out.add(f"its {key} is no text" if key else no_text, where)
        except DataError as error:
            if left_out.strict:
                raise
            left_out.add(error.what.replace(f"{path} ", "", 1), str(path))


def find_source(
    names: Names, validation: Union[Names, float] = HELD_OUT, text_key: Optional[str] = None,
    whole: bool = False,
) -> Source:  # fmt: skip
    """The Source called `names`; DataError when there is none, or nothing in it."""
    source = Source(find_files(names, validation, whole), text_key)
    if not source.size():
        what = "; ".join([f"{source.name} has no text", *source.found.notes])
        raise DataError(what, "name a file or directory with some in it")
    return source


def read_text(path: Path) -> str:
    """A whole text or source file, decoded as it declares; DataError names the line it fails at."""
    return "".join(text for text, _ in _cut(path))


def validation_documents(names: Names, limit: int, **how: Any) -> List[bytes]:
    """The first held-out documents, about `limit` bytes in all; none for a prepared directory.
    `how` is for `find_source`.
    """
    if isinstance(names, str) and (Path(names) / "dataset.json").exists():
        return []
    documents, total = [b""], 0
    for piece in find_source(names, **how).pieces(LeftOut()):
        if piece.split == VALIDATION and total < limit:
            documents[-1] += piece.text.encode("utf-8", "replace")
            total += piece.size
            documents += [b""] * piece.ends_document
    return documents if documents[-1] else documents[:-1]


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _has_rows(file: File) -> bool:
    return file.path.suffix.lower() in ROWS


def _fair(share: float, total: int) -> float:
    """How many bytes may be held out of `total` for what is meant to be a `share` of them."""
    return max(_SMALL, min(2 * share, (1 + share) / 2) * total)


def _border(documents: List[Tuple[float, int]], share: float, fair: float) -> float:
    """The largest draw of the documents (draw, size) that are held out, of those that are not more
    than `fair`: at least one, and not all; below 0 where that cannot be.
    """
    small = sorted(document for document in documents if document[1] <= fair)
    last = small[-1][0] if len(small) == len(documents) > 0 else 1.0
    border, total = -1.0, 0
    for drawn, size in small:
        total += size
        if drawn == last or (border >= 0 and (drawn >= share or total > fair)):
            break
        border = drawn
    return border


def _draws(files: List[File]) -> Dict[File, float]:
    """The draw of each file: of its name, or of that of its first copy."""
    sizes: Dict[int, List[File]] = defaultdict(list)
    for file in files:
        sizes[file.path.stat().st_size].append(file)
    first: Dict[Any, File] = {}
    drawn = {}
    for size, alike in sizes.items():
        for file in alike:
            content = _digest(file.path) if size and len(alike) > 1 else file.key
            drawn[file] = draw(first.setdefault((size, content), file).key)
    return drawn if len(first) > 1 else {file: draw(file.key) for file in files}


def _readable(path: Path) -> bool:
    try:
        return all(True for _ in _cut(path))
    except Unreadable:
        return False


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with suppress(OSError), path.open("rb") as file:
        for part in iter(partial(file.read, _PIECE), b""):
            digest.update(part)
    return digest.digest()


def _head_and_tail(
    parts: Iterable[Tuple[str, bool]], limit: float, encoding: str
) -> Iterator[Piece]:
    """A single text: from the start of a line on, `limit` bytes in, it is for validation."""
    split, seen = TRAIN, 0
    for text, last in parts:
        size = len(text.encode(encoding, "replace"))
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
    with _opened(path) as file:
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
def _opened(path: Path) -> Iterator[IO[str]]:
    """The text of a file; Unreadable also when it cannot be decoded while it is read."""
    try:
        encoding = encoding_of(path)
        if path.suffix.lower() == ".py":
            with path.open("rb") as source:
                encoding = tokenize.detect_encoding(source.readline)[0]
        with path.open(encoding=encoding, newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path}:{_line_of(path, error)}", f"not {error.encoding}") from None
    except (SyntaxError, LookupError, UnicodeError) as error:
        raise Unreadable(str(path), str(error)) from None
    except OSError as error:
        raise Unreadable(str(path), f"cannot be read: {error.strerror}") from None


def _line_of(path: Path, error: UnicodeDecodeError) -> int:
    """The codec knows a place in its buffer; people look for a line."""
    number = 1
    with path.open("rb") as file, suppress(UnicodeDecodeError):
        for line in file:
            line.decode(error.encoding)
            number += 1
    return number
