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
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from math import inf
from pathlib import Path
from typing import IO, Any, Collection, Dict, Iterable, Iterator, List, Optional, Tuple

import numpy as np

from minigpt.base.errors import DataError
from minigpt.data.sources import TRAIN, VALIDATION, File, Found, HeldOut, Names, find_files
from minigpt.data.tokenizer import END_MARK
from minigpt.data.values import WHOLE, LeftOut, Span, draw, encoding_of, names_of

Parts = Iterable[Tuple[str, bool]]  # of a text, and whether it is the last

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
    is_read: bool = True  # or it is of another part

    @property
    def size(self) -> int:
        return _size(self.text)


class Unreadable(DataError):
    """A file that is no text, from a line on."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}", "save it as UTF-8")
        self.where, self.reason = where, reason


@dataclass(frozen=True)
class Border:
    """Which of several documents are held out: those with a `draw` up to this one that have at
    most so many bytes. None are where it is below 0.
    """

    draw: float
    size: float

    @classmethod
    def of(cls, documents: Collection[Tuple[float, int]], share: float) -> Border:
        """That of documents (draw, size): at least one is held out, and not all."""
        fair = _fair(share, sum(size for _, size in documents))
        small = sorted(document for document in documents if document[1] <= fair)
        last = small[-1][0] if len(small) == len(documents) > 0 else 1.0
        border, total, held = -1.0, 0, 0
        for drawn, size in small:
            total += size
            if drawn == last or (border >= 0 and (drawn >= share or total > fair)):
                break
            border, held = drawn, total
        return cls(border if held else -1.0, fair)  # an empty file is nothing to validate on

    def split(self, draw: float, size: int) -> Optional[str]:
        """The split of a document; None where the end of each is held out."""
        if self.draw < 0:
            return None
        return VALIDATION if draw <= self.draw and size <= self.size else TRAIN


@dataclass(frozen=True)
class Source(Found):
    """A SOURCE found: its files in order, and the split of each."""

    text_key: Optional[str] = None

    def key(self) -> str:
        """A sha256 that changes when a file is added, removed or written to."""
        digest = hashlib.sha256(f"2 {self.share} {self.text_key}".encode())
        for file in self.files:
            place, status = file.path.resolve(), file.path.stat()
            line = f"{place} {file.split} {status.st_size} {status.st_mtime_ns}"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    @cached_property
    def splits(self) -> Tuple[Optional[str], ...]:
        """The split of each file; None where each value, or the end of it, is decided by itself."""
        drawn = _draws(self._open(of_rows=False))
        border = Border.of([(drawn[file], file.size) for file in drawn], self.share)
        decided = {file: border.split(drawn[file], file.size) for file in drawn}
        return tuple(decided.get(file, file.split) for file in self.files)

    @cached_property
    def _border(self) -> Border:
        """That of the values."""
        # Of all, whatever part is read.
        files = [replace(file, span=WHOLE) for file in self._open(True)]
        texts = (text for file in files for _, text in self._texts(file, LeftOut()))
        first = [(draw(text), _size(text)) for text in islice(texts, _MANY)]
        chance = Border(self.share, _fair(self.share, self.size()))
        return chance if len(first) == _MANY else Border.of(first, self.share)

    def _open(self, of_rows: bool) -> List[File]:
        """The files, of values or of text, whose split nobody has said."""
        return [f for f in self.files if f.split is None and f.has_rows is of_rows]

    @property
    def held_out(self) -> str:
        """What is for validation, in words."""
        part, open_texts = f"{100 * self.share:.3g}%", self._open(of_rows=False)
        splits = [split for split, file in zip(self.splits, self.files) if file in open_texts]
        parts = [self.chosen()] * bool(self.chosen())
        if any(splits):
            parts.append(f"{splits.count(VALIDATION)} of {len(splits)} files")
        elif splits:
            of = "each text" if len(splits) > 1 else open_texts[0].path.name
            parts.append(f"the last {part} of {of}")
        return " and ".join(parts + [f"{part} of the documents"] * bool(self._open(True)))

    def pieces(self, left_out: Optional[LeftOut] = None) -> Iterator[Piece]:
        """All text, in a fixed order. What cannot be read goes to `left_out`; without one it is a
        DataError.
        """
        left_out = left_out or LeftOut(strict=True)
        left_out.passed, left_out.held_out = [*self.notes], self.held_out
        read = ((f, split) for f, split in zip(self.files, self.splits) if f.is_read)
        for file, split in read:
            last = Piece(TRAIN, "", True)
            try:
                for last in self._pieces(file, split, left_out):
                    if last.is_read:
                        left_out.marked += len(END_MARK.findall(last.text))
                        yield last
            except Unreadable as error:
                if file.span.end < inf:
                    continue  # the part that reads to the end says it
                left_out.add(error.reason, error.where)
                if not last.ends_document:
                    yield Piece(last.split, "", True)

    def _pieces(self, file: File, split: Optional[str], left_out: LeftOut) -> Iterator[Piece]:
        if not file.has_rows:
            encoding = encoding_of(file.path).replace("-sig", "")
            yield from self._cut(split, _parts(file.path), file.size, encoding, file.span)
            return
        for _, text in self._texts(file, left_out):
            size = _size(text)
            own = split or self._border.split(draw(text), size)
            yield from self._cut(own, [(text, True)], size, "utf-8")

    def _cut(
        self, split: Optional[str], parts: Parts, whole: int, encoding: str, span: Span = WHOLE
    ) -> Iterator[Piece]:
        """A text of `whole` bytes up to the end of the `span`; where its split is open, it is for
        validation from a line on.
        """
        limit, seen = (inf if split else whole * (1.0 - self.share)), 0
        split = split or TRAIN
        for text, last in parts:
            is_read = span.holds(seen)
            if seen >= span.end:
                return
            size = len(text.encode(encoding, "replace"))
            if seen + size > limit:
                place = _line_start(text, int(len(text) * (limit - seen) / size))
                yield Piece(TRAIN, text[:place], True, is_read)
                split, text, limit = VALIDATION, text[place:], inf
            seen += size
            yield Piece(split, text, last, is_read)

    def _texts(self, file: File, left_out: LeftOut) -> Iterator[Tuple[str, str]]:
        """(where, text) of the values that have one."""
        keys = (self.text_key,) if self.text_key else TEXT_KEYS
        for where, value in self.values(file, left_out, keys):
            key = next((k for k in keys if isinstance(value, dict) and k in value), "")
            if key and isinstance(value[key], str):
                yield where, value[key]
            else:
                no_text = f"no {' or '.join(keys)} among {names_of(value)}"
                left_out.add(f"its {key} is no text" if key else no_text, where)


def find_source(
    names: Names, validation: HeldOut = None, text_key: Optional[str] = None, whole: bool = False
) -> Source:
    """The Source called `names`; DataError when there is none, or nothing in it."""
    source = Source(**vars(find_files(names, validation, whole)), text_key=text_key)
    if not source.size():
        what = "; ".join([f"{source.name} has no text", *source.notes])
        raise DataError(what, "name a file or directory with some in it")
    return source


def read_text(path: Path) -> str:
    """A whole text or source file, decoded as it declares; DataError names the line it fails at."""
    return "".join(text for text, _ in _parts(path))


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


def _fair(share: float, total: int) -> float:
    """How many bytes may be held out of `total` for what is meant to be a `share` of them."""
    return max(_SMALL, min(2 * share, (1 + share) / 2) * total)


def _draws(files: List[File]) -> Dict[File, float]:
    """The draw of each file: of its name, or of that of its first copy."""
    alike = Counter(file.size for file in files)
    first: Dict[Any, File] = {}
    drawn = {}
    for file in files:
        content: Any = file.key
        if file.size and alike[file.size] > 1:
            with suppress(OSError):  # reading it as a text says why
                content = hashlib.sha256(np.memmap(str(file.path), np.uint8, "r").data).digest()
        drawn[file] = draw(first.setdefault((file.size, content), file).key)
    return drawn if len(first) > 1 else {file: draw(file.key) for file in files}


def _line_start(text: str, place: int) -> int:
    after = text.find("\n", place) + 1
    return after if 0 < after < len(text) else text.rfind("\n", 0, place) + 1 or place


def _parts(path: Path) -> Parts:
    """A file, cut where tokens cannot reach across."""
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
