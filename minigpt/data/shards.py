"""Token shards: a file of tokens that says what it is, mapped into memory rather than read.

0   magic     8 bytes "minigpt\\0"        32  documents  u64, how many
8   version   u32                         40  tokenizer  32 bytes, sha256 of what defines the
ids 12  width     u32, bytes per token        72  tokens     `tokens` numbers, little-endian
16  tokens    u64, how many               ... index      `documents` u64, where each document
begins 24  reserved  u64
"""

from __future__ import annotations

import struct
from pathlib import Path
from types import TracebackType
from typing import List, Optional, Type

import numpy as np

from minigpt.errors import DataError

_HEADER = struct.Struct("<8sIIQQQ32s")
_MAGIC = b"minigpt\0"
_VERSION = 1


class ShardWriter:
    """Appends documents to a shard; the header, which counts them, is written when it is closed."""

    def __init__(self, path: Path, width: int, tokenizer: str) -> None:
        self.width, self.tokenizer = width, tokenizer
        self.tokens, self.starts = 0, [0]
        self._open_document = False
        self.file = path.open("wb")
        self.file.write(b"\0" * _HEADER.size)

    def write(self, tokens: np.ndarray, ends_document: bool = True) -> bytes:
        """Appends `tokens`, all or a part of a document; returns the bytes written."""
        data = tokens.astype("<u%d" % self.width, copy=False).tobytes()
        self.file.write(data)
        self.tokens += len(tokens)
        if ends_document:
            self.starts.append(self.tokens)
        self._open_document = not ends_document
        return data

    def close(self) -> None:
        starts = self.starts if self._open_document else self.starts[:-1]
        self.file.write(np.array(starts, dtype="<u8").tobytes())
        self.file.seek(0)
        digest = bytes.fromhex(self.tokenizer)
        header = (_MAGIC, _VERSION, self.width, self.tokens, 0, len(starts), digest)
        self.file.write(_HEADER.pack(*header))
        self.file.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()


class Shard:
    """A shard, mapped: `tokens` (count,) and `starts` (documents,) cost memory only where they
    are touched.
    """

    def __init__(self, path: Path) -> None:
        """DataError when `path` is no shard, or not a whole one."""
        size = path.stat().st_size if path.is_file() else -1
        header = path.open("rb").read(_HEADER.size) if size >= 0 else b""
        if len(header) < _HEADER.size or header[:8] != _MAGIC:
            raise DataError("%s is no token shard" % path, _PREPARE)
        _, version, width, count, _, documents, digest = _HEADER.unpack(header)
        if version != _VERSION or width not in (2, 4):
            raise DataError("%s is a shard of version %d, unknown here" % (path, version), _PREPARE)
        end = _HEADER.size + width * count
        if size != end + 8 * documents:
            what = "is cut short" if size < end + 8 * documents else "has bytes behind its end"
            raise DataError("%s %s" % (path, what), _PREPARE)
        self.tokenizer: str = digest.hex()
        self.tokens = _map(path, "<u%d" % width, _HEADER.size, count)
        self.starts = _map(path, "<u8", end, documents)


_PREPARE = "make it again with: python -m minigpt prepare SOURCE --out DIR"


def _map(path: Path, dtype: str, offset: int, count: int) -> np.ndarray:
    if count == 0:
        return np.empty(0, dtype)
    return np.memmap(str(path), dtype, "r", offset, (count,))


def open_shards(directory: Path, names: List[str]) -> List[Shard]:
    """The shards `names` of a prepared directory."""
    return [Shard(directory / name) for name in names]
