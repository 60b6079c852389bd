"""`python -m minigpt prepare SOURCE --out DIR`: token shards, made once and mapped ever after."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict

from minigpt.base.files import require_free
from minigpt.base.text import word
from minigpt.checkpoint.run_files import load_tokenizer
from minigpt.commands.options import PrepareConfig
from minigpt.data import parts
from minigpt.data.prepare import is_prepared, make, work_of
from minigpt.data.records import refuse
from minigpt.data.shards import PART, TEXT
from minigpt.data.sources import ALL, FUNCTIONS, find_files, listed, said
from minigpt.data.template import find_template
from minigpt.data.tokenizer import Tokenizer
from minigpt.training.config_file import flag_words

_NAMED = 8  # parts that are still to come


def prepare_command(config: PrepareConfig) -> None:
    """Prepares and says what was made."""
    out, (_, count) = prepare(config), parts.parse_part(config.part)
    missing = parts.missing_in(out, count) if count > 1 else []
    if missing:
        more = len(missing) - _NAMED
        lacks = ", ".join(map(str, missing[:_NAMED])) + f" and {more} more" * (more > 0)
        how = "copy there what is made elsewhere, and give any of the commands again"
        print(f"part {config.part} is ready in {out}; to come: {lacks} ({how})")
        return
    start = "--tokenizer" if config.tokenizer in ("bytes", "gpt2") else "--init"
    how = f"python train.py {start} {word(config.tokenizer)} --data {word(out)}"
    print(f"{out} is ready; train on it with: {how}")


def prepare(config: PrepareConfig) -> Path:
    """Makes `config.out`, or a part of it, and joins parts when all are there; UsageError when that
    is taken, DataError when the source is broken, and then nothing is left of it.
    """
    names, directory, part = config.source, Path(config.out), parts.parse_part(config.part)
    out = parts.place_of(directory, part)
    is_new = part == ALL or not is_prepared(str(out))
    for name in listed(names) if is_new else ():
        require_free(out, source=Path(name))
    find_files(names, whole=True)  # what is not there is named before a vocabulary that is not
    tokenizer, template = load_tokenizer(config.tokenizer), config.template
    how = {**config.reading(), "part": part}
    work = work_of(names, tokenizer, find_template(template or "instruct"), **how)
    if work.facts["format"] == TEXT:
        refuse({"template": template}, f"is for records, and {said(names)} is no file of them")
    if part != ALL:
        work.facts[PART] = _made_of(config, tokenizer, part[1])
        parts.require_alike(directory, work.facts[PART])
    if is_new:
        make(work, tokenizer, out, config.workers, config.shard_tokens)
        for line in work.left_out.lines():
            print(f"note: {line}", file=sys.stderr)
    if part != ALL and not parts.missing_in(directory, part[1]):
        parts.require_alike(directory, work.facts[PART])  # others may have come meanwhile
        parts.join(directory, tokenizer)
    return directory


def _made_of(config: PrepareConfig, tokenizer: Tokenizer, count: int) -> Dict[str, Any]:
    """What is the same for all parts, by the words for it."""
    refuse({"part": config.source == FUNCTIONS}, f"is for files, and {FUNCTIONS} is none")
    own = {"source", "out", "part", "workers"}
    values = {name: value for name, value in vars(config).items() if name not in own}
    flags = {name: v for name, v in values.items() if v != getattr(PrepareConfig, name)}
    files = find_files(config.source, config.validation).fingerprint()
    return {"names": [*listed(config.source)], "source": files, "flags": flag_words(flags),
            "vocabulary": tokenizer.fingerprint, "number of parts": count}  # fmt: skip
