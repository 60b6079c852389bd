"""The values of a file, one in each line, element or row, and the account of what is left out."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from math import inf
from pathlib import Path
from typing import IO, Any, Collection, Dict, Iterator, List, NamedTuple, Tuple

from minigpt.base.errors import DataError, UsageError

ROWS = (".jsonl", ".json", ".parquet")
Values = Iterator[Tuple[str, Any]]  # with where each is from

_PLACES, _REASONS = 3, 8  # what a report of what was left out shows of each
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


class Span(NamedTuple):
    """Bytes of a file: what begins among them is to be read."""

    begin: float = 0
    end: float = inf

    def holds(self, place: float) -> bool:
        """Whether what begins at this byte of the file is in it."""
        return self.begin <= place < self.end


WHOLE = Span()


@dataclass
class LeftOut:
    """What was left out, and why: of each reason, how often and the first places."""

    strict: bool = False
    counts: Dict[str, int] = field(default_factory=dict)
    places: Dict[str, List[str]] = field(default_factory=dict)
    passed: List[str] = field(default_factory=list)  # what was not even read, in words
    held_out: str = ""  # what was kept for validation, in words
    marked: int = 0  # how often the end of a text is written in it as a text
    special: bool = False  # whether that was read as the end

    def add(self, reason: str, where: str) -> None:
        """Counts one; DataError when `strict`."""
        if self.strict:
            raise DataError(f"{where}: {reason}", "mend it, or leave out --strict")
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if len(self.places.setdefault(reason, [])) < _PLACES:
            self.places[reason].append(where)

    def include(self, other: LeftOut) -> None:
        """Counts what was left out of another part of the same source, too."""
        self.marked += other.marked
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            places = self.places.get(reason, []) + other.places.get(reason, [])
            self.places[reason] = places[:_PLACES]

    def lines(self) -> List[str]:
        """One line a reason, the commonest first."""
        lines, rest = [], sum(self.counts.values())
        for reason, count in Counter(self.counts).most_common(_REASONS):
            places = ", ".join(self.places[reason]) + (", ..." if count > _PLACES else "")
            lines.append(f"left out {count:,}: {reason} ({places})")
            rest -= count
        lines += [f"left out {rest:,}: other reasons"] * bool(rest) + self.passed
        if self.marked and not self.special:
            what = f"<|endoftext|> or <|startoftext|> is written {self.marked:,} times in it, and"
            lines.append(f"{what} read as text; --special-tokens reads it as the end of a document")
        return lines


def names_of(value: Any) -> str:
    """The keys of a value, in words."""
    names = ", ".join(sorted(value)) if isinstance(value, dict) else ""
    return f"its keys: {names[:200] + '...' if len(names) > 200 else names or 'none'}"


def draw(key: str) -> float:
    """A number in [0, 1) that depends on nothing but `key`."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def encoding_of(path: Path) -> str:
    """How a file is encoded: UTF-8, unless its first bytes say otherwise."""
    start = b""
    with suppress(OSError), path.open("rb") as file:  # opening it again says why
        start = file.read(4)
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def rows(path: Path, left_out: LeftOut, keys: Collection[str], span: Span) -> Values:
    """The values of a .jsonl, .json or .parquet; DataError when it cannot be read at all."""
    try:
        if path.suffix.lower() == ".parquet":
            yield from _parquet(path, keys, span)
        elif path.suffix.lower() == ".json":
            yield from _json(path, left_out, keys, span)
        else:
            yield from _jsonl(path, left_out, span)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}", "name another file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not {error.encoding}", "save it as UTF-8") from None


def _jsonl(path: Path, left_out: LeftOut, span: Span) -> Values:
    encoding, after = encoding_of(path), 0
    # UTF-8 line by line, so that one that is broken costs no other.
    binary = encoding.startswith("utf-8")
    file: IO[Any] = path.open("rb") if binary else path.open(encoding=encoding)
    with file:
        for number, line in enumerate(file, 1):
            place, after = after, after + len(line)
            if place >= span.end:
                return
            if place < span.begin:
                continue
            try:
                text = (line.decode("utf-8") if binary else line).strip("\ufeff \t\r\n")
                if text:
                    yield f"{path}:{number}", json.loads(text)
            except UnicodeDecodeError:
                left_out.add("not UTF-8: save it as that", f"{path}:{number}")
            except (ValueError, RecursionError):
                left_out.add("no JSON", f"{path}:{number}")


def _json(path: Path, left_out: LeftOut, keys: Collection[str], span: Span) -> Values:
    try:
        value = json.loads(path.read_bytes().decode(encoding_of(path)))
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data"):  # a value a line, in spite of the name
            yield from _jsonl(path, left_out, span)
            return
        raise DataError(f"{path} is no JSON: {error}", "mend it there") from None
    if isinstance(value, dict):
        lists = [key for key in value if isinstance(value[key], list)]  # such as {"data": [...]}
        known = [key for key in value if key in keys and not (key == "train" and key in lists)]
        value = [value] if known or len(lists) != 1 else value[lists[0]]
    if not isinstance(value, list):
        raise DataError(f"{path} is not a list of records", "begin it with [ and end it with ]")
    for number, record in enumerate(value):
        if span.holds(path.stat().st_size * number // len(value)):
            yield f"{path}, record {number + 1}", record


def _parquet(path: Path, keys: Collection[str], span: Span) -> Values:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        fix = "install it with: pip install pyarrow"
        raise UsageError(f"reading {path} needs pyarrow", fix) from None
    try:
        file = parquet.ParquetFile(str(path))
        names = sorted(file.schema_arrow.names)
        columns = [name for name in names if name in keys]
        if not columns:
            what = f"{path} has neither text nor records among its columns: {', '.join(names)}"
            raise DataError(what, "name them with --text-key or --record-keys")
        values = (batch.to_pylist() for batch in file.iter_batches(100, columns=columns))
        each = path.stat().st_size / max(1, file.metadata.num_rows)
        for number, record in enumerate(chain.from_iterable(values)):
            if span.holds(number * each):
                yield f"{path}, row {number + 1}", record
    except (ArrowException, ValueError) as error:
        raise DataError(f"{path} is no Parquet: {error}", "get it again") from None
