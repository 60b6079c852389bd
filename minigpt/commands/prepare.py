"""`python -m minigpt prepare SOURCE --out DIR`: token shards, made once and mapped ever after."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import tyro
from typing_extensions import Annotated

from minigpt.base.errors import at_least
from minigpt.base.files import require_free
from minigpt.checkpoint.run_files import load_tokenizer
from minigpt.data.prepare import SHARD_TOKENS, make, work_of
from minigpt.data.records import refuse
from minigpt.data.shards import TEXT
from minigpt.data.sources import Names, find_files, listed, said
from minigpt.data.template import find_template
from minigpt.training.config import ReadingFlags, left_open


@dataclass
class PrepareConfig(ReadingFlags):
    """Turns text or records into token shards, for training on them many times or on many."""

    source: tyro.conf.Positional[Names] = tyro.MISSING
    """stdlib, stdlib-functions, files (.txt .py .jsonl .json .parquet) or directories of them."""
    out: str = tyro.MISSING
    """The directory to make."""
    tokenizer: str = "gpt2"
    """bytes, gpt2, or a checkpoint directory whose tokenizer to use."""
    template: Annotated[Optional[str], left_open("NAME", "instruct")] = None
    """How records become text: instruct or moai."""
    workers: int = 0
    """Processes that tokenize, 0 for as many as there are cores."""
    shard_tokens: int = SHARD_TOKENS
    """Tokens after which a new shard is begun."""

    def __post_init__(self) -> None:
        at_least(0, workers=self.workers)
        at_least(1, shard_tokens=self.shard_tokens)


def prepare_command(config: PrepareConfig) -> None:
    """Prepares and says what was made."""
    out = prepare(config)
    print(f"{out} is ready; train on it with: python train.py --data {out}")


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
