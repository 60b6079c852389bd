"""--data NAME to the two datasets of a run: text in windows, or records in packed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Tuple, Union

from minigpt.data.loader import Dataset, TokenDataset
from minigpt.data.packing import in_words, split_datasets
from minigpt.data.prepare import prepared
from minigpt.data.records import LeftOut, holds_records, parse_keys, read_records
from minigpt.data.template import Template, find_template
from minigpt.data.tokenizer import Tokenizer
from minigpt.errors import UsageError


@dataclass
class Opened:
    """What --data was found to be. `template` is None for text."""

    train: Dataset
    validation: Dataset
    template: Optional[Template]
    prompt: List[int]  # the beginning of a held-out answer; empty for text
    notes: List[str]  # how many records, and what was left out, in words


def open_datasets(
    name: str,
    tokenizer: Tokenizer,
    block_size: int,
    template: Union[str, Template] = "instruct",
    packing: bool = True,
    record_keys: Optional[str] = None,
    strict: bool = False,
) -> Opened:
    """The datasets of --data `name`; DataError or UsageError when there is nothing to learn."""
    keys = parse_keys(record_keys)
    if not holds_records(name, keys):
        for flag, given in (("--record-keys", keys is not None), ("--strict", strict)):
            if given:
                raise UsageError("%s is for records, and %s is text" % (flag, name), "leave it out")
        return Opened(*_windows(name, tokenizer, block_size), None, [], [])
    chosen = find_template(template) if isinstance(template, str) else template
    left_out = LeftOut(strict)
    records = read_records(name, keys, left_out)
    train, validation = split_datasets(records, chosen, tokenizer, block_size, packing, left_out)
    notes = [in_words(train, validation, chosen, left_out), *left_out.lines()]
    return Opened(train, validation, chosen, validation.prompt(), notes)


def _windows(name: str, tokenizer: Tokenizer, block: int) -> Tuple[TokenDataset, TokenDataset]:
    directory = prepared(name, tokenizer)
    return (
        TokenDataset(directory, "train", block),
        TokenDataset(directory, "validation", block),
    )
