"""`python -m minigpt prepare SOURCE --out DIR`: text or records are turned into tokens once, and
mapped ever after.

The source is read in pieces, the pieces are tokenized by several processes, and what comes back
is written in the order it was read: memory does not grow with the source, and the result does not
depend on the number of processes. The directory appears when it is complete. Records are rendered
but neither cut, packed nor split: what fits into a row is not known before training.
"""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Generator, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np
import tyro
from tqdm import tqdm
from typing_extensions import Annotated

from minigpt.base.errors import DataError, StorageError, UsageError
from minigpt.base.files import atomic_directory, write_json
from minigpt.base.places import require_free
from minigpt.data.corpus import TRAIN, VALIDATION, Piece, Source, find_source
from minigpt.data.records import (
    Keys,
    LeftOut,
    Record,
    holds_records,
    parse_keys,
    read_records,
    render,
    require_file,
)
from minigpt.data.shards import DATASET, RECORDS, TEXT, Encoded, ShardWriter
from minigpt.data.template import find_template
from minigpt.data.tokenizer import Tokenizer, load_tokenizer
from minigpt.data.workers import WorkerLost, in_order

_BATCH = 1 << 20  # bytes of text that travel to a process at a time
_WORTH_PROCESSES = 64 << 20  # below this, starting them takes longer than the work
_TEMPLATE = tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: instruct)")
_KEYS = tyro.conf.arg(metavar="A,B", help_behavior_hint="(default: recognised)")


@dataclass
class PrepareConfig:
    """Turns text or records into token shards, for training on them many times or on many."""

    source: tyro.conf.Positional[str]
    """stdlib, stdlib-functions, a file (.txt .py .jsonl .json .parquet) or a directory of texts."""
    out: str
    """The directory to make."""
    tokenizer: str = "gpt2"
    """bytes, gpt2, or a checkpoint directory whose tokenizer to use."""
    template: Annotated[Optional[str], _TEMPLATE] = None
    """How records become text: instruct or moai."""
    record_keys: Annotated[Optional[str], _KEYS] = None
    """The names of instruction and answer in the records, as for training."""
    strict: bool = False
    """Stop at the first unusable record instead of leaving it out."""
    validation: float = 0.03
    """The part of the documents or records held out for validation."""
    workers: int = 0
    """Processes that tokenize, 0 for as many as there are cores."""
    shard_tokens: int = 100_000_000
    """Tokens after which a new shard is begun."""

    def __post_init__(self) -> None:
        if not 0.0 < self.validation < 1.0:
            raise UsageError(f"--validation is {self.validation}", "it must be between 0 and 1")
        if self.workers < 0 or self.shard_tokens < 1:
            raise UsageError("--workers and --shard-tokens count something", "use 1 or more")


def prepare(config: PrepareConfig) -> Path:
    """Makes `config.out`; UsageError when that is taken, DataError when the source is broken, and
    then nothing is left of it.
    """
    out = Path(config.out)
    require_free(out, source=Path(config.source))
    keys, left_out = parse_keys(config.record_keys), LeftOut(config.strict)
    # A source that is not there is named before a vocabulary that is not.
    if holds_records(config.source, keys, template=config.template, strict=config.strict):
        require_file(config.source)
        tokenizer = load_tokenizer(config.tokenizer)
        work = _records(config, keys, tokenizer, left_out)
    else:
        source = find_source(config.source, config.validation)
        tokenizer = load_tokenizer(config.tokenizer)
        work = _text(source, tokenizer)
    _make(work, tokenizer, out, config.workers, config.shard_tokens)
    for line in left_out.lines():
        print(f"note: {line}", file=sys.stderr)
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
    out = cache / f"{name}-{tokenizer.name}-{key}"
    if not (out / DATASET).is_file():
        try:
            _make(_text(found, tokenizer), tokenizer, out)
        except (StorageError, UsageError):
            if not (out / DATASET).is_file():  # else another process has made the same meanwhile
                raise
    return out


_Item = Union[Piece, Record]


@dataclass
class _Work:
    """What is to be tokenized, and how."""

    items: Iterable[_Item]
    size: int  # of them all, in bytes, of records about
    encode: Callable[[Any], Encoded]
    splits: Tuple[str, ...]
    facts: Dict[str, Any]  # for dataset.json


def _text(source: Source, tokenizer: Tokenizer) -> _Work:
    facts = {"format": TEXT, "source": source.name}
    encode = partial(_encode_piece, tokenizer=tokenizer)
    return _Work(source.pieces(), source.size(), encode, (TRAIN, VALIDATION), facts)


def _encode_piece(piece: Piece, tokenizer: Tokenizer) -> Encoded:
    tokens = tokenizer.encode_array(piece.text)
    if piece.ends_document:
        tokens = np.append(tokens, tokens.dtype.type(tokenizer.eos_id))
    return Encoded(tokens, piece.ends_document)


def _records(
    config: PrepareConfig, keys: Optional[Keys], tokenizer: Tokenizer, left_out: LeftOut
) -> _Work:
    name, template = config.source, find_template(config.template or "instruct")
    facts = {"format": RECORDS, "source": name, "template": asdict(template)}
    facts["validation"] = config.validation
    facts["left_out"] = vars(left_out)  # itself: it is written when all records are read
    encode = partial(render, template=template, tokenizer=tokenizer)
    size = os.path.getsize(name) if os.path.isfile(name) else 0
    return _Work(read_records(name, keys, left_out), size, encode, (Record.split,), facts)


def _make(
    work: _Work,
    tokenizer: Tokenizer,
    out: Path,
    workers: int = PrepareConfig.workers,
    shard: int = PrepareConfig.shard_tokens,
) -> None:
    workers = 1 if work.size < _WORTH_PROCESSES else workers or _cores()
    with atomic_directory(out) as unfinished:
        writers = {s: _SplitWriter(unfinished, s, tokenizer, shard) for s in work.splits}
        # Closing ends the processes at once, whatever happens here.
        with closing(_encoded(work, workers)) as pairs, _bar(work.size) as bar:
            for item, encoded in pairs:
                writers[item.split].write(encoded, item.size)
                bar.update(item.size)
        splits = {split: writer.close() for split, writer in writers.items()}
        for split, content in splits.items():
            if content["tokens"] == 0:
                raise DataError(
                    f"{work.facts['source']} has too few documents: none fell to {split}",
                    "give more, or prepare it with a larger --validation",
                )
        tokenizer.save(unfinished)
        write_json(unfinished / DATASET, {
            **work.facts,
            "tokenizer": tokenizer.name,
            "tokenizer_sha256": tokenizer.fingerprint,
            "splits": splits,
        })  # fmt: skip


def _bar(size: int) -> tqdm[None]:
    watched = sys.stderr.isatty()
    return tqdm(
        total=size, unit="B", unit_scale=True, delay=2.0, disable=not watched, desc="tokenizing"
    )


def _cores() -> int:
    """Those this process may use, which macOS and Windows cannot tell from those there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class _SplitWriter:
    """The shards of one split, and what dataset.json says of them."""

    def __init__(self, directory: Path, split: str, tokenizer: Tokenizer, shard: int) -> None:
        self.directory, self.split, self.tokenizer, self.shard = directory, split, tokenizer, shard
        self.width = 2 if tokenizer.vocab_size <= 1 << 16 else 4
        self.facts: Dict[str, Any] = {"shards": [], "tokens": 0, "documents": 0, "bytes": 0}
        self.digest = hashlib.sha256()
        self._next()

    def write(self, document: Encoded, size: int) -> None:
        if self.writer.tokens >= self.shard:
            self.digest.update(self.writer.close())
            self._next()
        self.digest.update(self.writer.write(document))
        self.facts["tokens"] += len(document.tokens)
        self.facts["documents"] += document.ends_document
        self.facts["bytes"] += size

    def close(self) -> Dict[str, Any]:
        """Ends the last shard; returns the facts."""
        self.digest.update(self.writer.close())
        return {**self.facts, "sha256": self.digest.hexdigest()}

    def _next(self) -> None:
        name = f"{self.split}-{len(self.facts['shards']):05}.tokens"
        self.facts["shards"].append(name)
        self.writer = ShardWriter(self.directory / name, self.width, self.tokenizer.fingerprint)


def _encoded(work: _Work, workers: int) -> Generator[Tuple[_Item, Encoded], None, None]:
    name = work.facts["source"]
    try:
        if workers == 1:
            yield from ((item, _encode(item, work.encode, name)) for item in work.items)
        else:
            encode = partial(_encode, encode=work.encode, name=name)
            yield from in_order(_batches(work.items), encode, workers)
    except WorkerLost as error:
        raise DataError(f"{name}: {error.what}", error.fix) from None


def _encode(item: _Item, encode: Callable[[Any], Encoded], name: str) -> Encoded:
    try:
        return encode(item)
    except DataError as error:  # it knows the text and not whose it is
        raise DataError(f"{name}: {error.what}", error.fix) from None


def _batches(items: Iterable[_Item]) -> Iterator[List[_Item]]:
    batch: List[_Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += item.size
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
