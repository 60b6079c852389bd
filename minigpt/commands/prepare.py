"""`python -m minigpt prepare SOURCE --out DIR`: token shards, made once and mapped ever after."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import tyro
from typing_extensions import Annotated

from minigpt.base.errors import UsageError, at_least
from minigpt.base.files import require_free
from minigpt.checkpoint.run_files import load_tokenizer
from minigpt.data.corpus import HELD_OUT, find_source
from minigpt.data.prepare import SHARD_TOKENS, make, record_work, text_work
from minigpt.data.records import LeftOut, holds_records, parse_keys, require_file
from minigpt.data.template import find_template

# Not left_open: nothing here takes the time to import PyTorch.
_TEMPLATE = tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: instruct)")
_KEYS = tyro.conf.arg(metavar="A,B", help_behavior_hint="(default: recognised)")


@dataclass
class PrepareConfig:
    """Turns text or records into token shards, for training on them many times or on many."""

    source: tyro.conf.Positional[str]
    """stdlib, stdlib-functions, a file (.txt .py .jsonl .json .parquet) or a directory of texts."""
    out: str
    """The directory to make."""
    tokenizer: str = "gpt2"
    """bytes, gpt2, or a checkpoint directory whose tokenizer to use."""
    template: Annotated[Optional[str], _TEMPLATE] = None
    """How records become text: instruct or moai."""
    record_keys: Annotated[Optional[str], _KEYS] = None
    """The names of instruction and answer in the records, as for training."""
    strict: bool = False
    """Stop at the first unusable record instead of leaving it out."""
    validation: float = HELD_OUT
    """The part of the documents or records held out for validation."""
    workers: int = 0
    """Processes that tokenize, 0 for as many as there are cores."""
    shard_tokens: int = SHARD_TOKENS
    """Tokens after which a new shard is begun."""

    def __post_init__(self) -> None:
        if not 0.0 < self.validation < 1.0:
            raise UsageError(f"--validation is {self.validation}", "it must be between 0 and 1")
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
    name, out = config.source, Path(config.out)
    require_free(out, source=Path(name))
    keys, left_out = parse_keys(config.record_keys), LeftOut(config.strict)
    # A source that is not there is named before a vocabulary that is not.
    if holds_records(name, keys, template=config.template, strict=config.strict):
        require_file(name)
        tokenizer = load_tokenizer(config.tokenizer)
        template = find_template(config.template or "instruct")
        work = record_work(name, keys, template, tokenizer, config.validation, left_out)
    else:
        source, tokenizer = find_source(name, config.validation), load_tokenizer(config.tokenizer)
        work = text_work(source, tokenizer)
    make(work, tokenizer, out, config.workers, config.shard_tokens)
    for line in left_out.lines():
        print(f"note: {line}", file=sys.stderr)
    return out
