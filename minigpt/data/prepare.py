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
from typing import Any, Callable, Dict, Generator, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np
from tqdm import tqdm

from minigpt.base.errors import DataError, StorageError, UsageError
from minigpt.base.files import atomic_directory, cache_directory, shorter, write_json
from minigpt.data.corpus import Piece, Source, find_source
from minigpt.data.records import Keys, Record, read_records, render
from minigpt.data.shards import DATASET, RECORDS, TEXT, Encoded, SplitWriter
from minigpt.data.sources import HELD_OUT, TRAIN, VALIDATION, LeftOut, Names, said, share_of
from minigpt.data.template import Template
from minigpt.data.tokenizer import Tokenizer
from minigpt.data.workers import WorkerLost, in_order

_BATCH = 1 << 20  # bytes of text that travel to a process at a time
_WORTH_PROCESSES = 64 << 20  # below this, starting them takes longer than the work
SHARD_TOKENS = 100_000_000

Item = Union[Piece, Record]


@dataclass
class Work:
    """What is to be tokenized, and how."""

    items: Iterable[Item]
    size: int  # of them all, in bytes, of records about
    encode: Callable[[Any], Encoded]
    splits: Tuple[str, ...]
    facts: Dict[str, Any]  # for dataset.json


def text_work(source: Source, tokenizer: Tokenizer, left_out: LeftOut) -> Work:
    """The documents of `source`, each followed by EOS; what cannot be read goes to `left_out`."""
    # What was left out is written as it is when all is read.
    facts = {"format": TEXT, "source": source.name, "left_out": vars(left_out)}
    encode = partial(_encode_piece, tokenizer=tokenizer)
    splits = (VALIDATION,) if source.found.share == 1.0 else (TRAIN, VALIDATION)
    return Work(source.pieces(left_out), source.size(), encode, splits, facts)


def _encode_piece(piece: Piece, tokenizer: Tokenizer) -> Encoded:
    tokens = tokenizer.encode_array(piece.text)
    if piece.ends_document:
        tokens = np.append(tokens, tokens.dtype.type(tokenizer.eos_id))
    return Encoded(tokens, piece.ends_document)


def record_work(
    names: Names, keys: Optional[Keys], template: Template, tokenizer: Tokenizer,
    validation: Union[Names, float], left_out: LeftOut,
) -> Work:  # fmt: skip
    """The usable records of `names`, rendered; the others are added to `left_out`."""
    facts = {"format": RECORDS, "source": said(names), "template": asdict(template)}
    facts.update(validation=share_of(validation) or HELD_OUT, left_out=vars(left_out))
    encode = partial(render, template=template, tokenizer=tokenizer)
    listed = (names,) if isinstance(names, str) else names
    size = sum(os.path.getsize(name) for name in listed if os.path.isfile(name))
    records = read_records(names, keys, left_out, validation, template.whole)
    return Work(records, size, encode, (Record.split,), facts)


def prepared(names: Names, tokenizer: Tokenizer, strict: bool = False, **how: Any) -> Path:
    """The prepared directory for `names`: itself if it is one, else one kept in the user's cache,
    made on first use and again when a file of the source has changed. `how` is for `find_source`.
    """
    if is_prepared(names):
        return Path(str(names))
    found, left_out = find_source(names, **how), LeftOut(strict)
    left_out.special = tokenizer.reads_marks
    kind = f"{found.key()} {tokenizer.fingerprint} {left_out.special}"
    key = hashlib.sha256(kind.encode()).hexdigest()[:16]
    name = shorter(Path(found.name).resolve().name, 60) or "data"
    out = cache_directory("data") / f"{name}-{tokenizer.name}-{key}"
    if not (out / DATASET).is_file():
        try:
            make(text_work(found, tokenizer, left_out), tokenizer, out, 0, SHARD_TOKENS)
        except (StorageError, UsageError) as error:
            if not (out / DATASET).is_file():  # else another process has made the same meanwhile
                fix = "free some space, or set XDG_CACHE_HOME to a folder that has some"
                raise StorageError(error.what, fix) from error
    return out


def is_prepared(names: Names) -> bool:
    """Whether `names` is a prepared directory."""
    return isinstance(names, str) and os.path.isfile(os.path.join(names, DATASET))


def make(work: Work, tokenizer: Tokenizer, out: Path, workers: int, shard: int) -> None:
    """Makes the directory `out` of shards of `shard` tokens; `workers` 0 means one for each core.
    DataError when nothing fell to one of the splits.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # which macOS and Windows do not have
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    workers = 1 if work.size < _WORTH_PROCESSES else workers or cores
    with atomic_directory(out) as unfinished:
        how = (tokenizer.fingerprint, 2 if tokenizer.vocab_size <= 1 << 16 else 4, shard)
        writers = {split: SplitWriter(unfinished, split, *how) for split in work.splits}
        bar = tqdm(None, "tokenizing", work.size, unit="B", unit_scale=True, delay=2, disable=None)
        # Closing ends the processes at once, whatever happens here.
        with closing(_encoded(work, workers)) as pairs, bar:
            for item, encoded in pairs:
                writers[item.split].write(encoded, item.size)
                bar.update(item.size)
        splits = {split: writer.close() for split, writer in writers.items()}
        for split, content in splits.items():
            if content["tokens"] == 0:
                lines = LeftOut(**work.facts["left_out"]).lines()
                what = f"{work.facts['source']} has too few documents: none fell to {split}"
                fix = "give more, or name a share or files with --validation"
                raise DataError("; ".join([what, *lines]), fix)
        tokenizer.save(unfinished)
        made_by = {"tokenizer": tokenizer.name, "tokenizer_sha256": tokenizer.fingerprint}
        write_json(unfinished / DATASET, {**work.facts, **made_by, "splits": splits})


def _encoded(work: Work, workers: int) -> Generator[Tuple[Item, Encoded], None, None]:
    encode = partial(_encode, encode=work.encode, name=work.facts["source"])
    if workers == 1:
        yield from ((item, encode(item)) for item in work.items)
        return
    try:
        yield from in_order(_batches(work.items), encode, workers)
    except WorkerLost as error:
        raise DataError(f"{work.facts['source']}: {error.what}", error.fix) from None


def _encode(item: Item, encode: Callable[[Any], Encoded], name: str) -> Encoded:
    try:
        return encode(item)
    except DataError as error:  # it knows the text and not whose it is
        raise DataError(f"{name}: {error.what}", error.fix) from None


def _batches(items: Iterable[Item]) -> Iterator[List[Item]]:
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += item.size
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    yield batch
