"""`python -m minigpt prepare SOURCE --out DIR`: text is turned into tokens once, and mapped ever
after.

The source is read in pieces, the pieces are tokenized by several processes, and what comes back
is written in the order it was read: memory does not grow with the source, and the result does not
depend on the number of processes. The directory appears when it is complete.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Deque, Dict, Iterable, Iterator, List, Tuple

import numpy as np
import tyro
from tqdm import tqdm

from minigpt.data.corpus import TRAIN, VALIDATION, Piece, Source, find_source
from minigpt.data.shards import ShardWriter
from minigpt.data.tokenizer import Tokenizer, load_tokenizer
from minigpt.errors import DataError, UsageError
from minigpt.files import atomic_directory, write_json

DATASET = "dataset.json"
FORMAT = 1

_BATCH = 1 << 20  # bytes of text that travel to a process at a time
_WORTH_PROCESSES = 64 << 20  # below this, starting them takes longer than the work


@dataclass
class PrepareConfig:
    """Turns text into token shards, for training on it many times or on much of it."""

    source: tyro.conf.Positional[str]
    """stdlib, a .txt, .py or .jsonl file, or a directory of them."""
    out: str
    """The directory to make."""
    tokenizer: str = "gpt2"
    """bytes, gpt2, or a checkpoint directory whose tokenizer to use."""
    validation: float = 0.03
    """The part of the documents held out for validation."""
    workers: int = 0
    """Processes that tokenize, 0 for as many as there are cores."""
    shard_tokens: int = 100_000_000
    """Tokens after which a new shard is begun."""

    def __post_init__(self) -> None:
        if not 0.0 < self.validation < 1.0:
            raise UsageError("--validation is %s" % self.validation, "it must be between 0 and 1")
        if self.workers < 0 or self.shard_tokens < 1:
            raise UsageError("--workers and --shard-tokens count something", "use 1 or more")


def prepare_command(config: PrepareConfig) -> None:
    """Prepares and says what was made."""
    directory = prepare(config)
    print("%s is ready; train on it with: python train.py --data %s" % (directory, directory))


def prepare(config: PrepareConfig) -> Path:
    """Makes `config.out`; DataError when it exists or the source is broken, and then nothing is
    left of it.
    """
    out = Path(config.out)
    if out.exists():
        raise DataError("%s exists" % out, "name another directory, or remove it")
    source = find_source(config.source, config.validation)
    workers = config.workers or len(os.sched_getaffinity(0))
    _make(source, load_tokenizer(config.tokenizer), out, workers, config.shard_tokens)
    return out


def prepared(source: str, tokenizer: Tokenizer) -> Path:
    """The prepared directory for `source`: itself if it is one, else one kept in the user's
    cache, made on first use and again when a file of the source has changed.
    """
    if (Path(source) / DATASET).is_file():
        return Path(source)
    found = find_source(source)
    key = hashlib.sha256((found.key() + tokenizer.fingerprint).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigpt" / "data"
    name = Path(source).resolve().name or "data"
    out = cache / ("%s-%s-%s" % (name, tokenizer.name, key))
    if not (out / DATASET).is_file():
        _make(found, tokenizer, out, os.cpu_count() or 1, PrepareConfig.shard_tokens)
    return out


def _make(source: Source, tokenizer: Tokenizer, out: Path, workers: int, shard: int) -> None:
    if source.size() < _WORTH_PROCESSES:
        workers = 1
    with atomic_directory(out) as partial:
        writers = {
            split: _SplitWriter(partial, split, tokenizer, shard) for split in (TRAIN, VALIDATION)
        }
        with tqdm(total=source.size(), unit="B", unit_scale=True, delay=2.0,
                  disable=not sys.stderr.isatty(), desc="tokenizing") as bar:  # fmt: skip
            for piece, tokens in _tokenized(source.pieces(), tokenizer, workers):
                writers[piece.split].write(piece, tokens)
                bar.update(piece.size)
        splits = {split: writer.close() for split, writer in writers.items()}
        _require_both(splits, source)
        tokenizer.save(partial)
        write_json(partial / DATASET, {
            "format": FORMAT,
            "source": source.name,
            "tokenizer": tokenizer.name,
            "tokenizer_sha256": tokenizer.fingerprint,
            "splits": splits,
        })  # fmt: skip


def _require_both(splits: Dict[str, Any], source: Source) -> None:
    for split, content in splits.items():
        if content["tokens"] == 0:
            raise DataError(
                "%s has too few documents: none fell to %s" % (source.name, split),
                "give more, or prepare it with a larger --validation",
            )


class _SplitWriter:
    """The shards of one split."""

    def __init__(self, directory: Path, split: str, tokenizer: Tokenizer, shard: int) -> None:
        self.directory, self.split, self.tokenizer, self.shard = directory, split, tokenizer, shard
        self.width = 2 if tokenizer.vocab_size <= 1 << 16 else 4
        self.names: List[str] = []
        self.tokens = self.documents = self.bytes = 0
        self.digest = hashlib.sha256()
        self._next()

    def write(self, piece: Piece, tokens: np.ndarray) -> None:
        if piece.ends_document:
            tokens = np.append(tokens, tokens.dtype.type(self.tokenizer.eos_id))
        if self.writer.tokens >= self.shard:
            self.writer.close()
            self._next()
        self.digest.update(self.writer.write(tokens, piece.ends_document))
        self.tokens += len(tokens)
        self.bytes += piece.size
        self.documents += piece.ends_document

    def close(self) -> Dict[str, Any]:
        """Ends the last shard; returns what dataset.json says of the split."""
        self.writer.close()
        return {
            "shards": self.names,
            "tokens": self.tokens,
            "documents": self.documents,
            "bytes": self.bytes,
            "sha256": self.digest.hexdigest(),
        }

    def _next(self) -> None:
        self.names.append("%s-%05d.tokens" % (self.split, len(self.names)))
        path = self.directory / self.names[-1]
        self.writer = ShardWriter(path, self.width, self.tokenizer.fingerprint)


Tokenized = Iterator[Tuple[Piece, np.ndarray]]


def _tokenized(pieces: Iterable[Piece], tokenizer: Tokenizer, workers: int) -> Tokenized:
    if workers == 1:
        for piece in pieces:
            yield piece, tokenizer.encode_array(piece.text)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _start_worker, (tokenizer,)) as pool:
        under_way: Deque[Tuple[List[Piece], Any]] = deque()
        for batch in _batches(pieces):
            texts = [piece.text for piece in batch]
            under_way.append((batch, pool.apply_async(_encode_all, (texts,))))
            if len(under_way) > 2 * workers:
                yield from _finished(under_way)
        while under_way:
            yield from _finished(under_way)


def _finished(under_way: Deque[Tuple[List[Piece], Any]]) -> Tokenized:
    batch, result = under_way.popleft()
    return zip(batch, result.get())


def _batches(pieces: Iterable[Piece]) -> Iterator[List[Piece]]:
    batch: List[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_worker_tokenizer: Tokenizer


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer


def _encode_all(texts: List[str]) -> List[np.ndarray]:
    return [_worker_tokenizer.encode_array(text) for text in texts]
