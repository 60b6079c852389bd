"""`python -m minigpt prepare SOURCE --out DIR`: token shards, made once and mapped ever after."""

from __future__ import annotations

import sys
from pathlib import Path

from minigpt.base.files import require_free
from minigpt.base.text import word
from minigpt.checkpoint.run_files import load_tokenizer
from minigpt.commands.options import PrepareConfig
from minigpt.data.prepare import make, work_of
from minigpt.data.records import refuse
from minigpt.data.shards import TEXT
from minigpt.data.sources import find_files, listed, said
from minigpt.data.template import find_template


def prepare_command(config: PrepareConfig) -> None:
    """Prepares and says what was made."""
    out = prepare(config)
    start = "--tokenizer" if config.tokenizer in ("bytes", "gpt2") else "--init"
    how = f"python train.py {start} {word(config.tokenizer)} --data {word(out)}"
    print(f"{out} is ready; train on it with: {how}")


def prepare(config: PrepareConfig) -> Path:
    """Makes `config.out`; UsageError when that is taken, DataError when the source is broken, and
    then nothing is left of it.
    """
    names, out = config.source, Path(config.out)
    for name in listed(names):
        require_free(out, source=Path(name))
    find_files(names, whole=True)  # what is not there is named before a vocabulary that is not
    tokenizer, template = load_tokenizer(config.tokenizer), config.template
    work = work_of(names, tokenizer, find_template(template or "instruct"), **config.reading())
    if work.facts["format"] == TEXT:
        refuse({"template": template}, f"is for records, and {said(names)} is no file of them")
    make(work, tokenizer, out, config.workers, config.shard_tokens)
    for line in work.left_out.lines():
        print(f"note: {line}", file=sys.stderr)
    return out
