"""A source prepared in parts, on one machine or many; whoever makes the last one joins them.

    DIR/part-00003-of-00016    a prepared directory of its own, there as a whole or not at all
    DIR/dataset.json           when all are there: their shards in order, as they are

The parts have about as many bytes of the source each, and in order they are the undivided source,
document for document; a long text goes on in the next. Of text the sha256 is the same, too.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, Dict, List, Optional

from minigpt.base.errors import DataError, UsageError
from minigpt.base.files import require_free, write_json, write_text
from minigpt.base.text import word
from minigpt.data.prepare import is_prepared, require_splits
from minigpt.data.shards import DATASET, PART, RECORDS, TEXT, open_shards, read_dataset
from minigpt.data.sources import ALL, Part
from minigpt.data.tokenizer import Tokenizer

_NAME = re.compile(r"\.?part-[0-9]{5}-of-[0-9]{5}")  # of one that is there, or being made
_ALIKE = ("vocabulary", "number of parts", "flags", "source")


def parse_part(text: Optional[str]) -> Part:
    """What --part says: 3/16; ALL where it says nothing."""
    match = re.fullmatch("([0-9]{1,5})/([0-9]{1,5})", "1/1" if text is None else text)
    part = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part[0] <= part[1]:
        fix = "say 3/16 for the third of sixteen, 1/16 for the first"
        raise UsageError(f"--part is {text!r}", fix)
    return part


def place_of(directory: Path, part: Part) -> Path:
    """Where a part is; undivided, `directory` itself."""
    return directory if part == ALL else directory / "part-{:05}-of-{:05}".format(*part)


def parts_in(directory: Path) -> Dict[str, Any]:
    """What each part that is in `directory` says of itself, by its name, in order."""
    found = {}
    for place in sorted(directory.glob("part-*-of-*")) if os.path.isdir(str(directory)) else ():
        content = read_dataset(place, TEXT) or read_dataset(place, RECORDS)
        made_of = (content or {}).get(PART)
        if isinstance(made_of, dict) and {*_ALIKE, "names"}.issubset(made_of):
            found[place.name] = content
    return found


def missing_in(directory: Path, count: int) -> List[int]:
    """The numbers of the parts that are not there yet."""
    there, numbers = parts_in(directory), range(1, count + 1)
    return [n for n in numbers if place_of(directory, (n, count)).name not in there]


def require_alike(directory: Path, made_of: Dict[str, Any]) -> None:
    """UsageError where a part in `directory` is made of something else, or that is taken."""
    if not any(_NAME.match(path.name) for path in directory.glob("*part-*")):
        require_free(directory)
    for place, content in parts_in(directory).items():
        for name in _ALIKE:
            if content[PART][name] != made_of[name]:
                what = f"{directory / place} was made with another {name}"
                raise UsageError(what, "make each part with the same, or name another --out")


def join(directory: Path, tokenizer: Tokenizer) -> None:
    """Makes all parts one prepared directory. DataError when one is damaged, or when nothing fell
    to one of the splits.
    """
    contents = parts_in(directory)
    first, *others = contents.values()
    for other in others:
        first["left_out"].include(other["left_out"])
    splits = {split: _joined(directory, contents, split, tokenizer) for split in first["splits"]}
    require_splits(splits, first["source"], first["left_out"])
    for name, data in tokenizer.files:
        write_text(directory / name, data.decode("utf-8"))
    del first[PART]
    first.update(left_out=vars(first["left_out"]), splits=splits)
    write_json(directory / DATASET, first)


def _joined(
    directory: Path, contents: Dict[str, Any], split: str, tokenizer: Tokenizer
) -> Dict[str, Any]:
    """What dataset.json says of a split of all parts."""
    digest = hashlib.sha256()
    facts: Dict[str, Any] = {"shards": [], "tokens": 0, "documents": 0, "bytes": 0}
    for place, content in contents.items():
        own = content["splits"][split]
        opened = open_shards(directory / place, own, tokenizer.vocab_size)
        for name, shard in zip(own["shards"], opened):
            facts["shards"] += [f"{place}/{name}"] * (len(shard.tokens) > 0)
            digest.update(shard.tokens.data)
            digest.update(shard.index.data if len(shard.draws) else b"")
        for name in ("tokens", "documents", "bytes"):
            facts[name] += own[name]
    return {**facts, "sha256": digest.hexdigest()}


def require_joined(directory: Path) -> None:
    """DataError that says how to make the first part that `directory` lacks, if any, or how to join
    them.
    """
    made_of = next((content[PART] for content in parts_in(directory).values()), None)
    if made_of is None:
        return
    count = made_of["number of parts"]
    missing = missing_in(directory, count)
    if missing or not is_prepared(str(directory)):
        number = missing[0] if missing else 1
        what = f"lacks part {number} of {count}" if missing else "has all parts, not joined yet"
        words = [*made_of["names"], *made_of["flags"], "--out", directory]
        command = f"python -m minigpt prepare {' '.join(map(word, words))} --part {number}/{count}"
        raise DataError(f"{directory} {what}", f"make it with: {command}")
