"""Text or records are turned into tokens once, and mapped ever after.

The source is read in pieces, the pieces are tokenized by several processes, and what comes back
is written in the order it was read: memory does not grow with the source, and the result does not
depend on the number of processes. The directory appears when it is complete. Records are rendered
but neither cut, packed nor split: what fits into a row is not known before training.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Generator, Iterable, Iterator, List, Optional, Tuple

import numpy as np
from tqdm import tqdm

from minigpt.base.errors import DataError, StorageError, UsageError
from minigpt.base.files import atomic_directory, cache_directory, shorter, write_json
from minigpt.data import SHARD_TOKENS
from minigpt.data.corpus import Piece, find_source
from minigpt.data.records import Record, holds_records, parse_keys, read_records, render
from minigpt.data.shards import DATASET, PART, RECORDS, TEXT, Encoded, SplitWriter
from minigpt.data.sources import ALL, TRAIN, VALIDATION, HeldOut, Names, Part, find_files
from minigpt.data.template import TEMPLATES, Template
from minigpt.data.tokenizer import Tokenizer, reading_marks
from minigpt.data.values import LeftOut
from minigpt.data.workers import WorkerLost, in_order

_BATCH = 1 << 20  # bytes of text that travel to a process at a time
_WORTH_PROCESSES = 64 << 20  # below this, starting them takes longer than the work


@dataclass
class Work:
    """What is to be tokenized, and how."""

    items: Iterable[Any]  # pieces of text, or records
    size: int  # of them all, in bytes, of records about
    encode: Callable[[Any], Encoded]
    splits: Tuple[str, ...]
    facts: Dict[str, Any]  # for dataset.json
    left_out: LeftOut  # complete when all is read
    key: str = ""  # of text: another one when a file has changed


def work_of(
    names: Names, tokenizer: Tokenizer, template: Template = TEMPLATES["instruct"],
    validation: HeldOut = None, text_key: Optional[str] = None, special_tokens: bool = False,
    record_keys: Optional[str] = None, strict: bool = False, whole: bool = False, part: Part = ALL,
) -> Work:  # fmt: skip
    """The documents of `names`, each followed by EOS, or its records, rendered; what cannot be read
    is left out. DataError when there is nothing. With `whole` all text is for validation. Of a
    `part` of several only what is in it.
    """
    keys, left_out = parse_keys(record_keys), LeftOut(strict, special=special_tokens)
    reads = reading_marks(tokenizer) if special_tokens else tokenizer
    if holds_records(names, keys, text_key):
        found = find_files(names, validation)
        encode = partial(render, template=template, tokenizer=reads)
        facts = {"format": RECORDS, "source": found.name, "template": asdict(template)}
        facts["validation"] = found.share
        records = read_records(names, keys, left_out, validation, template.whole, part)
        return Work(records, found.size() // part[1], encode, (Record.split,), facts, left_out)
    source = find_source(names, validation, text_key, whole).part(part)
    encode = partial(_encode, reads)
    pieces, splits = source.pieces(left_out), (VALIDATION,) if whole else (TRAIN, VALIDATION)
    facts = {"format": TEXT, "source": source.name}
    return Work(pieces, source.size() // part[1], encode, splits, facts, left_out, source.key())


def _encode(tokenizer: Tokenizer, piece: Piece) -> Encoded:
    tokens = tokenizer.encode_array(piece.text)
    if piece.ends_document:
        tokens = np.append(tokens, tokens.dtype.type(tokenizer.eos_id))
    return Encoded(tokens, piece.ends_document)


def cached(work: Work, tokenizer: Tokenizer) -> Path:
    """The prepared directory for a text, kept in the user's cache: made on first use and again when
    a file of the source has changed.
    """
    kind = f"{work.key} {tokenizer.fingerprint} {work.left_out.special}"
    key = hashlib.sha256(kind.encode()).hexdigest()[:16]
    name = shorter(Path(work.facts["source"]).resolve().name, 60) or "data"
    out = cache_directory("data") / f"{name}-{tokenizer.name}-{key}"
    if not is_prepared(str(out)):
        try:
            make(work, tokenizer, out)
        except (StorageError, UsageError) as error:
            if not is_prepared(str(out)):  # else another process has made the same meanwhile
                fix = "free some space, or set XDG_CACHE_HOME to a folder that has some"
                raise StorageError(error.what, fix) from error
    return out


def is_prepared(names: Names) -> bool:
    """Whether `names` is a prepared directory."""
    return isinstance(names, str) and os.path.isfile(os.path.join(names, DATASET))


def make(
    work: Work, tokenizer: Tokenizer, out: Path, workers: int = 0, shard: int = SHARD_TOKENS
) -> None:
    """Makes the directory `out` of shards of `shard` tokens; `workers` 0 means one for each core.
    DataError when nothing fell to one of the splits, unless it is one of several parts.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # which macOS and Windows do not have
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    workers = 1 if work.size < _WORTH_PROCESSES else workers or cores
    with atomic_directory(out) as unfinished:
        how = (tokenizer.fingerprint, 2 if tokenizer.vocab_size <= 1 << 16 else 4, shard)
        writers = {split: SplitWriter(unfinished, split, *how) for split in work.splits}
        bar = tqdm(None, "tokenizing", work.size, unit="B", unit_scale=True, delay=2, disable=None)
        with closing(_encoded(work, workers)) as pairs, bar:  # which ends the processes
            for item, encoded in pairs:
                writers[item.split].write(encoded, item.size)
                bar.update(item.size)
        splits = {split: writer.close() for split, writer in writers.items()}
        if PART not in work.facts:
            require_splits(splits, work.facts["source"], work.left_out)
        tokenizer.save(unfinished)
        made_by = {"tokenizer": tokenizer.name, "tokenizer_sha256": tokenizer.fingerprint}
        facts = {**work.facts, "left_out": vars(work.left_out), **made_by, "splits": splits}
        write_json(unfinished / DATASET, facts)


def require_splits(splits: Dict[str, Any], source: str, left_out: LeftOut) -> None:
    """DataError when one of them has nothing."""
    for split, content in splits.items():
        if not content["tokens"]:
            what = f"{source} has too few documents: none fell to {split}"
            fix = "give more, or name a share or files with --validation"
            raise DataError("; ".join([what, *left_out.lines()]), fix)


def _encoded(work: Work, workers: int) -> Generator[Tuple[Any, Encoded], None, None]:
    if workers == 1:
        yield from ((item, work.encode(item)) for item in work.items)
        return
    try:
        yield from in_order(_batches(work.items), work.encode, workers)
    except WorkerLost as error:
        raise DataError(f"{work.facts['source']}: {error.what}", error.fix) from None


def _batches(items: Iterable[Any]) -> Iterator[List[Any]]:
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += item.size
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    yield batch
