"""Token shards: a file of tokens that says what it is, mapped into memory rather than read.

0   magic     8 bytes "minigpt\\0"        32  documents  u64, how many
8   version   u32, 1 text, 2 records      40  tokenizer  32 bytes, sha256 of what defines the ids
12  width     u32, bytes per token        72  tokens     `tokens` numbers, little-endian
16  tokens    u64, how many               ... starts     `documents` u64, where each begins
24  turns     u64, how many, 0 of text    ... turns      `turns` u64, where an answer begins or ends
                                          ... draws      of records `documents` u64, below 2^56

A record begins with its prompt, and its end is no turn. Its draw decides whether it is held out.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import numpy as np

from minigpt.base.errors import DataError
from minigpt.base.files import as_dataclass, read_object
from minigpt.data.sources import TRAIN, VALIDATION
from minigpt.data.values import LeftOut

_HEADER = struct.Struct("<8sIIQQQ32s")
_MAGIC = b"minigpt\0"
TEXT, RECORDS = 1, 2  # versions of a shard, and the formats of a directory of them
DATASET = "dataset.json"  # what such a directory says of itself
PART = "part"  # in dataset.json of one of several parts: what it was made of
PREPARE = "python -m minigpt prepare SOURCE --out DIR"
_READ_WHOLE = 1 << 30  # bytes of text that are read to be checked; of more, only some
AGAIN = f"make it again with: {PREPARE}"
_BESIDE = re.compile(r"(part-[0-9]+-of-[0-9]+/)?[\w-]+\.tokens")  # or in a part
_SPLITS = {TEXT: (TRAIN, VALIDATION), RECORDS: ("records",)}
_FACTS = {
    TEXT: {"tokenizer_sha256", "splits"},
    RECORDS: {"tokenizer_sha256", "splits", "source", "template", "validation", "left_out"},
}


@dataclass(frozen=True)
class Encoded:
    """A document, or a part of one, as a shard keeps it."""

    tokens: np.ndarray  # (n,)
    ends_document: bool = True
    turns: Optional[np.ndarray] = None  # of a record: where in it answers begin and end
    drawn: float = 0.0  # of a record: what decides whether it is held out, in [0, 1)


class SplitWriter:
    """Writes the documents of a split, all records or none, to shards named after it."""

    def __init__(self, directory: Path, split: str, tokenizer: str, width: int, full: int) -> None:
        """A shard with `full` tokens, `width` bytes each, is followed by another."""
        self.directory, self.split, self.width = directory, split, width
        self.tokenizer, self.full = bytes.fromhex(tokenizer), full
        self.facts: Dict[str, Any] = {"shards": [], "tokens": 0, "documents": 0, "bytes": 0}
        self._digest = hashlib.sha256()
        self._begin()

    def _begin(self) -> None:
        name = f"{self.split}-{len(self.facts['shards']):05}.tokens"
        self.facts["shards"].append(name)
        self.file = (self.directory / name).open("wb")
        self.file.write(b"\0" * _HEADER.size)  # until it can count them
        self.tokens, self._at_start = 0, True
        self.starts: List[int] = []
        self.turns: List[int] = []
        self.draws: List[int] = []

    def write(self, document: Encoded, size: int) -> None:
        """Appends all or a part of a document, whose text has `size` bytes."""
        if self.tokens >= self.full:
            self._end()
            self._begin()
        data = document.tokens.astype(f"<u{self.width}", copy=False).tobytes()
        self.file.write(data)
        self._digest.update(data)
        if self._at_start:
            self.starts.append(self.tokens)
        if document.turns is not None:
            self.turns += (document.turns + self.tokens).tolist()
            self.draws.append(int(document.drawn * 2**56))
        self.tokens += len(document.tokens)
        self._at_start = document.ends_document
        self.facts["tokens"] += len(document.tokens)
        self.facts["documents"] += document.ends_document
        self.facts["bytes"] += size

    def close(self) -> Dict[str, Any]:
        """Ends the last shard; returns what dataset.json says of them."""
        self._end()
        return {**self.facts, "sha256": self._digest.hexdigest()}

    def _end(self) -> None:
        index = np.array(self.starts + self.turns + self.draws, "<u8").tobytes()
        self.file.write(index)
        if self.draws:  # the index of text is not in its sha256
            self._digest.update(index)
        version, counts = RECORDS if self.draws else TEXT, (len(self.turns), len(self.starts))
        header = (_MAGIC, version, self.width, self.tokens, *counts, self.tokenizer)
        self.file.seek(0)
        self.file.write(_HEADER.pack(*header))
        self.file.close()


class Shard:
    """A shard, mapped: `tokens` (count,) and `starts` (documents,), and of records `turns` and
    `draws`, cost memory only where they are touched.
    """

    def __init__(self, path: Path) -> None:
        """DataError when `path` is no shard, or not a whole one."""
        size = path.stat().st_size if path.is_file() else 0
        data = np.memmap(str(path), np.uint8, "r") if size >= _HEADER.size else np.empty(0, "u1")
        header = data[: _HEADER.size].tobytes()
        if header[:8] != _MAGIC:
            raise DataError(f"{path} is no token shard", AGAIN)
        _, version, width, count, turns, documents, digest = _HEADER.unpack(header)
        if version not in (TEXT, RECORDS) or width not in (2, 4):
            raise DataError(f"{path} is a shard of version {version}, unknown here", AGAIN)
        indexed = documents * version + turns
        end = _HEADER.size + width * count
        if size != end + 8 * indexed:
            what = "is cut short" if size < end + 8 * indexed else "has bytes behind its end"
            raise DataError(f"{path} {what}", AGAIN)
        self.tokenizer: str = digest.hex()
        self.tokens = data[_HEADER.size : end].view(f"<u{width}")
        self.index = data[end:].view("<u8")
        self.starts, self.turns, self.draws = np.split(self.index, [documents, documents + turns])

    def records(self) -> Iterator[Encoded]:
        """The documents of a shard of records, their tokens as int32."""
        starts = [*self.starts.tolist(), len(self.tokens)]
        places = np.searchsorted(self.turns, np.array(starts, "<u8"))
        if starts != sorted(starts) or not all(np.diff(places) > 0):
            raise DataError("a shard of records is damaged: its index makes no sense", AGAIN)
        for i, drawn in enumerate(self.draws.tolist()):
            tokens = self.tokens[starts[i] : starts[i + 1]].astype(np.int32)
            turns = self.turns[places[i] : places[i + 1]].astype(np.int64) - starts[i]
            yield Encoded(tokens, True, turns, drawn / 2**56)


def read_dataset(directory: Path, form: int) -> Optional[Dict[str, Any]]:
    """What a prepared directory of `form`, TEXT or RECORDS, says of itself; None if it is none."""
    try:
        content = read_object(directory / DATASET)
    except DataError:
        return None
    if content.get("format") != form:
        return None
    for missing in sorted(_FACTS[form].difference(content)):
        raise DataError(f"{directory / DATASET} lacks {missing}", AGAIN)
    try:
        content["left_out"] = as_dataclass(LeftOut, content.get("left_out", {}))
        splits = content["splits"]
        fit = len(splits) > 0 and all(n in _SPLITS[form] and _is_split(splits[n]) for n in splits)
    except (TypeError, AttributeError, ValueError):
        fit = False
    if not fit:
        raise DataError(f"{directory / DATASET} is not as prepare writes it", AGAIN)
    return content


def _is_split(split: Dict[str, Any]) -> bool:
    names, count = split.get("shards"), split.get("tokens")
    plain = isinstance(names, list) and all(type(n) is str and _BESIDE.fullmatch(n) for n in names)
    return bool(plain and names and type(count) is int and type(split.get("sha256")) is str)


def open_shards(directory: Path, split: Dict[str, Any], words: int) -> List[Shard]:
    """The shards of a split; DataError unless these are as they were written, with ids of a
    vocabulary of `words`. Of text above a gigabyte, which each process would read for minutes, the
    sizes are checked, and the first ids.
    """
    shards, digest = [Shard(directory / name) for name in split["shards"]], hashlib.sha256()
    is_text = not any(len(shard.draws) for shard in shards)
    some = is_text and sum(shard.tokens.nbytes for shard in shards) > _READ_WHOLE
    for shard in shards:
        seen = shard.tokens[:512] if some else shard.tokens  # beside the header
        if len(seen) and int(seen.max()) >= words:
            raise DataError(f"{directory} is damaged: it has ids from {words} on", AGAIN)
        for part in () if some else (shard.tokens, *([] if is_text else [shard.index])):
            digest.update(part.data)  # the index of text is not in its sha256
    counted = sum(len(shard.tokens) for shard in shards)
    if counted != split["tokens"] if some else digest.hexdigest() != split["sha256"]:
        what = "it has not as many tokens as were written" if some else "its sha256 is another"
        raise DataError(f"{directory} is damaged: {what}", AGAIN)
    return shards
