"""`python -m minigpt prepare SOURCE --out DIR`: token shards, made once and mapped ever after."""

from __future__ import annotations

from dataclasses import replace

from minigpt.checkpoint.run_files import tokenizer_source
from minigpt.data.prepare import PrepareConfig, prepare


def prepare_command(config: PrepareConfig) -> None:
    """Prepares and says what was made."""
    out = prepare(replace(config, tokenizer=str(tokenizer_source(config.tokenizer))))
    print(f"{out} is ready; train on it with: python train.py --data {out}")
