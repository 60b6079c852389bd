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
from minigpt.data.corpus import find_source
from minigpt.data.prepare import SHARD_TOKENS, make, record_work, text_work
from minigpt.data.records import holds_records, parse_keys
from minigpt.data.sources import HELD_OUT, LeftOut, Names, share_of
from minigpt.data.template import find_template
from minigpt.data.tokenizer import Tokenizer, reading_marks

# Not left_open: nothing here takes the time to import PyTorch.
_TEMPLATE = tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: instruct)")
_VALIDATION = tyro.conf.arg(metavar="SHARE|FILE|DIR")
_TEXT_KEY = tyro.conf.arg(metavar="KEY", help_behavior_hint="(default: text or content)")
_KEYS = tyro.conf.arg(metavar="A,B", help_behavior_hint="(default: recognised)")


@dataclass
class PrepareConfig:
    """Turns text or records into token shards, for training on them many times or on many."""

    source: tyro.conf.Positional[Names]
    """stdlib, stdlib-functions, files (.txt .py .jsonl .json .parquet) or directories of them."""
    out: str
    """The directory to make."""
    tokenizer: str = "gpt2"
    """bytes, gpt2, or a checkpoint directory whose tokenizer to use."""
    template: Annotated[Optional[str], _TEMPLATE] = None
    """How records become text: instruct or moai."""
    record_keys: Annotated[Optional[str], _KEYS] = None
    """The names of instruction and answer in the records, as for training."""
    text_key: Annotated[Optional[str], _TEXT_KEY] = None
    """Where the text of a .jsonl, .json or .parquet is."""
    special_tokens: bool = False
    """Read <|endoftext|> and <|startoftext|>, where they are written, as the end of a document."""
    strict: bool = False
    """Stop at the first unusable text or record instead of leaving it out."""
    validation: Annotated[Names, _VALIDATION] = str(HELD_OUT)
    """What to hold out: a share of the documents or records, or files or directories."""
    workers: int = 0
    """Processes that tokenize, 0 for as many as there are cores."""
    shard_tokens: int = SHARD_TOKENS
    """Tokens after which a new shard is begun."""

    def __post_init__(self) -> None:
        share_of(self.validation)
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
    names, out, held_out = config.source, Path(config.out), config.validation
    for name in (names,) if isinstance(names, str) else names:
        require_free(out, source=Path(name))
    keys, left_out = parse_keys(config.record_keys), LeftOut(config.strict)
    left_out.special = config.special_tokens
    # A source that is not there is named before a vocabulary that is not.
    if holds_records(names, keys, config.text_key, template=config.template):
        tokenizer = _tokenizer(config)
        template = find_template(config.template or "instruct")
        work = record_work(names, keys, template, tokenizer, held_out, left_out)
    else:
        source, tokenizer = find_source(names, held_out, config.text_key), _tokenizer(config)
        work = text_work(source, tokenizer, left_out)
    make(work, tokenizer, out, config.workers, config.shard_tokens)
    for line in left_out.lines():
        print(f"note: {line}", file=sys.stderr)
    return out


def _tokenizer(config: PrepareConfig) -> Tokenizer:
    tokenizer = load_tokenizer(config.tokenizer)
    return reading_marks(tokenizer) if config.special_tokens else tokenizer
