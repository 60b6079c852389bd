"""--data NAME to the two datasets of a run: text in windows, or records in packed rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

from minigpt.base.errors import DataError, UsageError, flag
from minigpt.data.loader import Dataset
from minigpt.data.packing import Example, RecordDataset, fit
from minigpt.data.passes import Passes
from minigpt.data.prepare import is_prepared, prepared
from minigpt.data.records import holds_records, parse_keys, read_records, render
from minigpt.data.shards import PREPARE, RECORDS, TEXT, Encoded, open_shards, read_dataset
from minigpt.data.sources import HELD_OUT, TRAIN, VALIDATION, LeftOut, Names, said, share_of
from minigpt.data.template import Template, find_template
from minigpt.data.tokenizer import Tokenizer, reading_marks
from minigpt.data.windows import TokenDataset

Records = Iterator[Tuple[str, Encoded]]  # rendered, each with where it is from


@dataclass
class Opened:
    """What --data was found to be. `template` is None for text."""

    train: Dataset
    validation: Dataset
    template: Optional[Template]
    prompt: List[int]  # the beginning of a held-out answer; empty for text
    notes: List[str]  # how many records, and what was left out, in words
    held_out: str = ""  # what `validation` is, in words


def open_datasets(
    names: Names, tokenizer: Tokenizer, block_size: int,
    template: Union[str, Template] = "instruct", packing: bool = True,
    record_keys: Optional[str] = None, strict: bool = False,
    origin: Union[str, Path, None] = None, validation: Union[Names, float, None] = None,
    text_key: Optional[str] = None, special_tokens: bool = False, whole: bool = False,
    stride: int = 0,
) -> Opened:  # fmt: skip
    """The datasets of --data `names`; DataError or UsageError when there is nothing to learn, or
    when they were prepared with another tokenizer than `tokenizer`, which is that of `origin`.

    With `whole` all of it is for validation. With a `stride` validation's windows overlap.
    """
    how = {"validation": validation, "text_key": text_key, "special_tokens": special_tokens}
    if is_prepared(names):
        _require_nothing_of(said(names), record_keys=record_keys, **how)
    held_out: Union[Names, float] = HELD_OUT if validation is None else validation
    reads = reading_marks(tokenizer) if special_tokens else tokenizer
    keys, left_out = parse_keys(record_keys), LeftOut(strict, special=special_tokens)
    content = read_dataset(Path(names), RECORDS) if isinstance(names, str) else None
    if content is None and not holds_records(names, keys, text_key):
        directory = prepared(
            names, reads, strict, validation=held_out, text_key=text_key, whole=whole
        )
        return _open_text(
            directory, said(names), tokenizer, block_size, origin, strict, whole, stride
        )
    if stride:
        raise UsageError(f"--stride is for text, and {said(names)} is records", "leave it out")
    chosen = find_template(template) if isinstance(template, str) else template
    records: Records
    if content is None:
        share = share_of(held_out) or HELD_OUT
        found = read_records(names, keys, left_out, held_out, chosen.whole)
        records = ((record.where, render(record, chosen, reads)) for record in found)
    else:
        left_out, share = _strict(content["left_out"], strict), content["validation"]
        if content["tokenizer_sha256"] != tokenizer.fingerprint:
            raise _another_tokenizer(said(names), origin, chosen)
        records = _rendered(Path(str(names)), content, chosen, tokenizer)
    settled = (chosen, tokenizer, block_size, packing, left_out, 1.0 if whole else share)
    train, held = split_datasets(records, *settled)
    used = len(train.examples) + len(held.examples)
    total = used + sum(left_out.counts.values())
    rows = f"{len(train):,} + {len(held):,} {'packed' if train.packed else 'padded'} rows"
    note = f"{used:,} of {total:,} records, as {rows}, template {chosen.name}"
    words = "all of it" if whole else left_out.held_out or f"{100 * share:.3g}% of the records"
    return Opened(train, held, chosen, held.prompt(), [note, *left_out.lines()], words)


def _require_nothing_of(name: str, **given: object) -> None:
    for one, value in given.items():
        if value:
            what = f"{flag(one)} is for records or text as they came, and {name} is prepared"
            raise UsageError(what, f"leave it out, or prepare it again with {flag(one)}")


def _strict(left_out: LeftOut, strict: bool) -> LeftOut:
    """What a prepared directory left out; DataError where `strict` wants nothing left out."""
    left_out.strict = strict
    for reason, places in left_out.places.items() if strict else ():
        left_out.add(reason, places[0])  # raises
    return left_out


def _open_text(
    directory: Path, name: str, tokenizer: Tokenizer, block_size: int,
    origin: Union[str, Path, None], strict: bool, whole: bool, stride: int,
) -> Opened:  # fmt: skip
    content = read_dataset(directory, TEXT)
    if content is None:
        raise DataError(f"{directory} is no prepared data", f"make it with: {PREPARE}")
    if content["tokenizer_sha256"] != tokenizer.fingerprint:
        raise _another_tokenizer(name, origin)
    shards = {
        split: open_shards(directory, own, tokenizer.vocab_size)
        for split, own in content["splits"].items()
    }
    left_out = _strict(content["left_out"], strict)
    texts = [shard.tokens for split, own in shards.items() if whole or split == VALIDATION
             for shard in own]  # fmt: skip
    if texts[-1][-1:] == tokenizer.eos_id:
        texts[-1] = texts[-1][:-1]  # where all ends is no part of the text
    if sum(map(len, texts)) < 2:
        fix = "name a larger share, or other files, with --validation"
        raise DataError(f"{name} has nothing to validate on", fix)
    width, apart = (block_size, stride) if stride else (block_size + 1, block_size)
    passes = Passes(texts, width, apart)
    if whole:
        return Opened(passes, passes, None, [], left_out.lines(), "all of it")
    train = TokenDataset(directory, TRAIN, block_size)
    short = stride or content["splits"][VALIDATION]["tokens"] <= block_size
    held = passes if short else TokenDataset(directory, VALIDATION, block_size)
    words = left_out.held_out or "as it was prepared"
    return Opened(train, held, None, [], left_out.lines(), words)


def _another_tokenizer(
    name: str, origin: Union[str, Path, None], template: Optional[Template] = None
) -> DataError:
    what = f"{name} was prepared with another tokenizer"
    if origin is None:
        return DataError(what, "name it with --tokenizer")
    how = f"--tokenizer {origin}" + (f" --template {template.name}" if template else "")
    return DataError(f"{what} than the model's", f"prepare it again with: {PREPARE} {how}")


def _rendered(
    directory: Path, content: Dict[str, Any], template: Template, tokenizer: Tokenizer
) -> Records:
    """The records of a prepared directory; DataError when another template rendered them."""
    made_by, (split,) = content["template"], content["splits"].values()
    if made_by != asdict(template):
        made = f"--template {made_by['name']}"
        again = PREPARE.replace("SOURCE", content["source"])
        fix = f"add {made}, or make it again with: {again} --template {template.name}"
        raise DataError(f"{directory} was prepared with {made}", fix)
    shards = open_shards(directory, split, tokenizer.vocab_size)
    records = (record for shard in shards for record in shard.records())
    return ((f"{directory}, record {n}", record) for n, record in enumerate(records, 1))


def split_datasets(
    records: Records, template: Template, tokenizer: Tokenizer, block_size: int, packed: bool,
    left_out: LeftOut, held_out: float = HELD_OUT,
) -> Tuple[RecordDataset, RecordDataset]:  # fmt: skip
    """(train, validation). DataError when one of them would be empty."""
    examples: List[Tuple[float, Example]] = []
    cut = 0
    for where, record in records:
        example = fit(record, template, tokenizer.eos_id, block_size)
        if example is None:
            left_out.add(f"longer than --block-size {block_size}", where)
        else:
            examples.append((record.drawn, example))
            cut += template.whole and len(record.tokens) > block_size
    if cut:
        left_out.passed.append(f"{cut:,} of them are cut at --block-size {block_size}")
    lowest = min((drawn for drawn, _ in examples), default=0.0)
    border = held_out if lowest < held_out else lowest + 1e-12  # one is always held out
    train = [example for drawn, example in examples if drawn >= border]
    validation = [example for drawn, example in examples if drawn < border]
    if not validation or (not train and held_out < 1.0):
        what = "; ".join([f"of the records {len(examples)} are usable", *left_out.lines()])
        raise DataError(what, "give at least two different ones, or a larger --block-size")
    how = (block_size, packed and not template.whole, tokenizer)
    return RecordDataset(train, *how), RecordDataset(validation, *how)
