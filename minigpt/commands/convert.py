"""convert_hf.py: downloads where needed, converts one way or the other, and says what was done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

import tyro
from typing_extensions import Annotated

from minigpt.base.errors import CheckpointError, UsageError
from minigpt.base.files import require_free
from minigpt.base.text import nearest
from minigpt.checkpoint.model_files import DTYPES
from minigpt.commands.cli import parse
from minigpt.commands.verify import NOT_EQUAL, verify
from minigpt.hf import published
from minigpt.hf.convert import USE_IT, convert
from minigpt.hf.export import export
from minigpt.hf.vocabulary import BESIDE, CHOICES

_HIDDEN = tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: found by its usual name)")
_OUT = tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: checkpoints/NAME)")
_TO_HF = tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the other direction)")

# What a conversion back does not do.
_ONLY_IN = ("dtype", "weights", "tokenizer", "revision", "verify")


@dataclass
class ConvertConfig:
    """Converts a Hugging Face GPT-2 or Cerebras-GPT checkpoint to minigpt's format, or back."""

    source: Annotated[str, tyro.conf.Positional] = ""
    """A directory in Hugging Face's layout, or a published model's name to download first."""
    out: Annotated[Optional[str], _OUT] = None
    """The directory to write."""
    to_hf: Annotated[Optional[str], _TO_HF] = None
    """A checkpoint of ours to turn into a directory that transformers opens."""
    dtype: str = "keep"
    """keep, fp32, bf16 or fp16."""
    shard_size: str = "5GB"
    """Weights go to several files of at most this size."""
    weights: Annotated[Optional[str], _HIDDEN] = None
    """The weight file in SOURCE, when it has an unusual name."""
    tokenizer: str = BESIDE
    """The vocabulary: the one beside the weights, gpt2 for GPT-2's own, or none."""
    revision: str = "main"
    """Branch, tag or commit to download; all but main go to NAME@REVISION."""
    fold_mup: bool = False
    """With --to-hf: fold a muP model's scales into its weights, as GPT-2 has none."""
    verify: bool = False
    """Run a prompt through the result, and compare with transformers where it is installed."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype is {self.dtype!r}", nearest(self.dtype, DTYPES))
        if self.tokenizer not in CHOICES:
            raise UsageError(f"--tokenizer is {self.tokenizer!r}", nearest(self.tokenizer, CHOICES))
        self.shard_bytes = parse_size(self.shard_size)


def parse_size(text: str) -> int:
    """5GB, 500MB, 2e9 -> bytes."""
    match = re.fullmatch(r"(\d*\.?\d+(?:e\d\d?)?) *([kmgt]?)b?", text.strip().lower())
    powers = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
    count = int(float(match[1]) * powers[match[2]]) if match else 0
    if count < 1:
        raise UsageError(f"--shard-size is {text!r}", "write a size such as 5GB or 500MB")
    return count


def convert_command(arguments: List[str]) -> None:
    """Does what `arguments` say."""
    config = parse(ConvertConfig, "convert_hf.py", arguments)
    if config.to_hf is None and config.fold_mup:
        raise UsageError("--fold-mup is for --to-hf", "leave it out")
    if config.to_hf is None:
        _convert(config)
    elif config.out is None or config.source:
        raise UsageError("--to-hf takes --out and no SOURCE", "add --out DIR")
    elif any(getattr(config, name) != getattr(ConvertConfig, name) for name in _ONLY_IN):
        names = ", ".join(f"--{name}" for name in _ONLY_IN)
        raise UsageError(f"--to-hf takes none of {names}", "convert back without them")
    else:
        source, out = Path(config.to_hf), Path(config.out)
        print("\n".join(export(source, out, config.fold_mup, config.shard_bytes)))


def _convert(config: ConvertConfig) -> None:
    if not config.source:
        raise UsageError("nothing to convert", "name a directory or a model, such as cerebras-111m")
    directory, name = Path(config.source), Path(config.source).resolve().name
    to_fetch = not directory.is_dir()
    if to_fetch:
        published.find(config.source)
        name = published.local_name(config.source, config.revision)
    out = Path(config.out or Path("checkpoints") / name)
    require_free(out, USE_IT, directory)  # before anything is downloaded
    if to_fetch:
        directory = published.fetch(config.source, config.revision)
    with published.progress_bar("converting") as bar:

        def tell(written: int, total: int) -> None:
            bar.total = total
            bar.update(written)

        lines = convert(
            directory, out, config.dtype, config.shard_bytes, config.weights, tell, config.tokenizer
        )
    print("\n".join(lines))
    if config.verify:
        found = verify(out, directory)
        print("\n".join(found))
        if any(NOT_EQUAL in line for line in found):
            raise CheckpointError(f"{out} computes something else", f"do not use it; remove {out}")
    generate = f"python -m minigpt generate --checkpoint {out}"
    print(f"next     python train.py --init {out}, or: {generate}")
