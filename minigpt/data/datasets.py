"""--data NAME to the two datasets of a run: text in windows, or records in packed rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

from minigpt.base.errors import DataError
from minigpt.data.corpus import HELD_OUT, TRAIN, VALIDATION
from minigpt.data.loader import Dataset
from minigpt.data.packing import Example, RecordDataset, fit
from minigpt.data.prepare import prepared
from minigpt.data.records import LeftOut, holds_records, parse_keys, read_records, render
from minigpt.data.shards import PREPARE, RECORDS, Encoded, open_records, read_dataset
from minigpt.data.template import Template, find_template
from minigpt.data.tokenizer import Tokenizer
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


def open_datasets(
    name: str, tokenizer: Tokenizer, block_size: int, template: Union[str, Template] = "instruct",
    packing: bool = True, record_keys: Optional[str] = None, strict: bool = False,
    origin: Union[str, Path, None] = None,
) -> Opened:  # fmt: skip
    """The datasets of --data `name`; DataError or UsageError when there is nothing to learn, or
    when they were prepared with another tokenizer than `tokenizer`, which is that of `origin`.
    """
    keys = parse_keys(record_keys)
    content = None if keys else read_dataset(Path(name), RECORDS)
    if content is None and not holds_records(name, keys, strict=strict):
        directory = prepared(name, tokenizer)
        text = [TokenDataset(directory, split, block_size) for split in (TRAIN, VALIDATION)]
        if text[0].tokenizer_fingerprint != tokenizer.fingerprint:
            raise _another_tokenizer(name, origin)
        return Opened(text[0], text[1], None, [], [])
    chosen = find_template(template) if isinstance(template, str) else template
    records: Records
    if content is None:
        left_out, held_out = LeftOut(strict), HELD_OUT
        found = read_records(name, keys, left_out)
        records = ((record.where, render(record, chosen, tokenizer)) for record in found)
    else:
        left_out = LeftOut(**{**content["left_out"], "strict": strict})
        for reason, places in left_out.places.items() if strict else ():
            left_out.add(reason, places[0])  # raises
        held_out, records = content["validation"], _rendered(Path(name), content, chosen)
        if content["tokenizer_sha256"] != tokenizer.fingerprint:
            raise _another_tokenizer(name, origin, chosen)
    given = (chosen, tokenizer, block_size, packing, left_out, held_out)
    train, validation = split_datasets(records, *given)
    used = len(train.examples) + len(validation.examples)
    total = used + sum(left_out.counts.values())
    rows = f"{len(train):,} + {len(validation):,} {'packed' if train.packed else 'padded'} rows"
    note = f"{used:,} of {total:,} records, as {rows}, template {chosen.name}"
    return Opened(train, validation, chosen, validation.prompt(), [note, *left_out.lines()])


def _another_tokenizer(
    name: str, origin: Union[str, Path, None], template: Optional[Template] = None
) -> DataError:
    what = f"{name} was prepared with another tokenizer"
    if origin is None:
        return DataError(what, "name it with --tokenizer")
    how = f"--tokenizer {origin}" + (f" --template {template.name}" if template else "")
    return DataError(f"{what} than the model's", f"prepare it again with: {PREPARE} {how}")


def _rendered(directory: Path, content: Dict[str, Any], template: Template) -> Records:
    """The records of a prepared directory; DataError when another template rendered them."""
    made_by, (split,) = content["template"], content["splits"].values()
    if made_by != asdict(template):
        made = f"--template {made_by['name']}"
        again = PREPARE.replace("SOURCE", content["source"])
        fix = f"add {made}, or make it again with: {again} --template {template.name}"
        raise DataError(f"{directory} was prepared with {made}", fix)
    records = open_records(directory, split["shards"], split["sha256"])
    return ((f"{directory}, record {n}", record) for n, record in enumerate(records, 1))


def split_datasets(
    records: Records, template: Template, tokenizer: Tokenizer, block_size: int, packed: bool,
    left_out: LeftOut, held_out: float = HELD_OUT,
) -> Tuple[RecordDataset, RecordDataset]:  # fmt: skip
    """(train, validation). DataError when one of them would be empty."""
    examples: List[Tuple[float, Example]] = []
    for where, record in records:
        example = fit(record, template, tokenizer.eos_id, block_size)
        if example is None:
            left_out.add(f"longer than --block-size {block_size}", where)
        else:
            examples.append((record.drawn, example))
    lowest = min((drawn for drawn, _ in examples), default=0.0)
    border = held_out if lowest < held_out else lowest + 1e-12  # one is always held out
    train = [example for drawn, example in examples if drawn >= border]
    validation = [example for drawn, example in examples if drawn < border]
    if not train or not validation:
        what = "; ".join([f"of the records {len(examples)} are usable", *left_out.lines()])
        raise DataError(what, "give at least two different ones, or a larger --block-size")
    how = (block_size, packed and not template.whole, tokenizer)
    return RecordDataset(train, *how), RecordDataset(validation, *how)
