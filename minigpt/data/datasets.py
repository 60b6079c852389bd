"""--data NAME to the two datasets of a run: text in windows, or records in packed rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple, Union

from minigpt.base.errors import DataError
from minigpt.base.text import word
from minigpt.data.loader import Dataset
from minigpt.data.packing import Example, RecordDataset, fit
from minigpt.data.parts import require_joined
from minigpt.data.prepare import cached, is_prepared, work_of
from minigpt.data.records import refuse
from minigpt.data.shards import PREPARE, RECORDS, TEXT, Encoded, open_shards, read_dataset
from minigpt.data.sources import HELD_OUT, TRAIN, VALIDATION, HeldOut, Names, said
from minigpt.data.template import Template, find_template
from minigpt.data.tokenizer import Tokenizer
from minigpt.data.values import LeftOut
from minigpt.data.windows import Passes, TokenDataset

Records = Iterator[Tuple[str, Encoded]]  # rendered, each with where it is from


@dataclass
class Opened:
    """What --data was found to be. `template` is None for text."""

    train: Dataset
    validation: Dataset
    template: Optional[Template]
    prompt: List[int]  # the beginning of a held-out answer; empty for text
    notes: List[str]  # how many records, and what was left out, in words
    held_out: str  # what `validation` is, in words


def open_datasets(
    names: Names, tokenizer: Tokenizer, block_size: int,
    template: Union[str, Template] = "instruct", packing: bool = True,
    record_keys: Optional[str] = None, strict: bool = False,
    origin: Union[str, Path, None] = None, validation: HeldOut = None,
    text_key: Optional[str] = None, special_tokens: bool = False, whole: bool = False,
    stride: int = 0,
) -> Opened:  # fmt: skip
    """The datasets of --data `names`; DataError or UsageError when there is nothing to learn, or
    when they were prepared with another tokenizer than `tokenizer`, which is that of `origin`.

    With `whole` all of it is for validation. With a `stride` validation's windows overlap.
    """
    chosen = find_template(template) if isinstance(template, str) else template
    how: Dict[str, Any] = {"validation": validation, "text_key": text_key}
    how.update(special_tokens=special_tokens, record_keys=record_keys)
    if isinstance(names, str):
        require_joined(Path(names))
    if is_prepared(names):
        why = f"is for records or text as they came, and {said(names)} is prepared"
        refuse(how, why, "leave it out, or prepare it again with it")
        directory: Optional[Path] = Path(str(names))
    else:
        work = work_of(names, tokenizer, chosen, strict=strict, whole=whole, **how)
        left_out, share = work.left_out, work.facts.get("validation", 0.0)
        items: Iterable[Any] = work.items
        records: Records = ((record.where, work.encode(record)) for record in items)
        directory = cached(work, tokenizer) if work.facts["format"] == TEXT else None
    if directory is not None:
        content = _content(directory, said(names), tokenizer, origin, chosen, strict)
        if content["format"] == TEXT:
            return _open_text(directory, content, tokenizer, block_size, whole, stride)
        left_out, share = content["left_out"], content["validation"]
        records = _rendered(directory, content, chosen, tokenizer)
    refuse({"stride": stride}, f"is for text, and {said(names)} is records")
    settled = (chosen, tokenizer, block_size, packing, left_out, 1.0 if whole else share)
    train, held = split_datasets(records, *settled)
    words = "all of it" if whole else left_out.held_out or f"{100 * share:.3g}% of the records"
    return Opened(train, held, chosen, held.prompt(), _notes(train, held, chosen, left_out), words)


def _notes(
    train: RecordDataset, held: RecordDataset, template: Template, left_out: LeftOut
) -> List[str]:
    used = len(train.examples) + len(held.examples)
    total = used + sum(left_out.counts.values())
    rows = f"{len(train):,} + {len(held):,} {'packed' if train.packed else 'padded'} rows"
    note = f"{used:,} of {total:,} records, as {rows}, template {template.name}"
    return [note, *left_out.lines()]


def _content(
    directory: Path, name: str, tokenizer: Tokenizer, origin: Union[str, Path, None],
    template: Template, strict: bool,
) -> Dict[str, Any]:  # fmt: skip
    """What a prepared directory says of itself; DataError where another tokenizer made it, or where
    `strict` wants nothing left out and something was.
    """
    content = read_dataset(directory, TEXT) or read_dataset(directory, RECORDS)
    if content is None:
        raise DataError(f"{directory} is no prepared data", f"make it with: {PREPARE}")
    if content["tokenizer_sha256"] != tokenizer.fingerprint:
        what = f"{name} was prepared with another tokenizer"
        if origin is None:
            raise DataError(what, "name it with --tokenizer")
        how = f"--tokenizer {word(origin)}"
        how += f" --template {template.name}" if content["format"] == RECORDS else ""
        raise DataError(f"{what} than the model's", f"prepare it again with: {PREPARE} {how}")
    left_out = content["left_out"]
    left_out.strict = strict
    for reason, places in left_out.places.items() if strict else ():
        left_out.add(reason, places[0])  # raises
    return content


def _open_text(
    directory: Path, content: Dict[str, Any], tokenizer: Tokenizer, block_size: int, whole: bool,
    stride: int,
) -> Opened:  # fmt: skip
    splits, left_out = content["splits"], content["left_out"]
    shards = {name: open_shards(directory, splits[name], tokenizer.vocab_size) for name in splits}
    texts = [shard.tokens for name in shards if whole or name == VALIDATION
             for shard in shards[name]]  # fmt: skip
    if texts[-1][-1:] == tokenizer.eos_id:
        texts[-1] = texts[-1][:-1]  # where all ends is no part of the text
    if sum(map(len, texts)) < 2:
        fix = "name a larger share, or other files, with --validation"
        what = f"{content.get('source', directory)} has nothing to validate on"
        raise DataError("; ".join([what, *left_out.lines()]), fix)
    width, apart = (block_size, stride) if stride else (block_size + 1, block_size)
    passes = Passes(texts, width, apart, tokenizer.vocab_size)
    if whole:
        return Opened(passes, passes, None, [], left_out.lines(), "all of it")
    train = TokenDataset(directory, TRAIN, block_size, tokenizer.vocab_size)
    short = stride or splits[VALIDATION]["tokens"] <= block_size
    held = passes
    if not short:
        held = TokenDataset(directory, VALIDATION, block_size, tokenizer.vocab_size)
    words = left_out.held_out or "as it was prepared"
    return Opened(train, held, None, [], left_out.lines(), words)


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
