"""convert_hf.py: downloads where needed, converts one way or the other, and says what was done."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Tuple

import tyro
from tqdm import tqdm
from typing_extensions import Annotated

from minigpt.cli import parse
from minigpt.errors import UsageError
from minigpt.hf.convert import DTYPES, convert
from minigpt.hf.download import Hub, download
from minigpt.hf.export import export
from minigpt.hf.verify import verify
from minigpt.model import zoo
from minigpt.text import nearest, size

_HIDDEN = tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: found by its usual name)")
_OUT = tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: checkpoints/NAME)")
_TO_HF = tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the other direction)")


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
    revision: str = "main"
    """Branch, tag or commit to download."""
    fold_mup: bool = False
    """With --to-hf: fold a muP model's scales into its weights, as GPT-2 has none."""
    verify: bool = False
    """Run a prompt through the result, and compare with transformers where it is installed."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        if self.dtype not in ("keep", *DTYPES):
            raise UsageError("--dtype is %r" % self.dtype, nearest(self.dtype, ("keep", *DTYPES)))
        self.shard_bytes = parse_size(self.shard_size)


def parse_size(text: str) -> int:
    """5GB, 500MB, 2e9 -> bytes."""
    match = re.match(r"^([0-9.e]+) *(k|m|g|t)?b?$", text.strip().lower())
    powers = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
    try:
        count = int(float(match.group(1)) * powers.get(match.group(2), 1)) if match else 0
    except ValueError:
        count = 0
    if count < 1:
        raise UsageError("--shard-size is %r" % text, "write a size such as 5GB or 500MB")
    return count


def convert_command(arguments: List[str]) -> int:
    """Does what `arguments` say; returns the exit code."""
    config = parse(ConvertConfig, "convert_hf.py", arguments)
    if config.to_hf is not None:
        return _export(config)
    if not config.source:
        raise UsageError("nothing to convert", "name a directory or a model, such as cerebras-111m")
    directory, out = _source(config)
    with _bar("converting") as bar:

        def progress(written: int, total: int) -> None:
            bar.total = total
            bar.update(written)

        lines = convert(directory, out, config.dtype, config.shard_bytes, config.weights, progress)
    print("\n".join(lines))
    if config.verify:
        print("\n".join(verify(out, directory)))
    print("next     python train.py --init %s, or: python -m minigpt generate --checkpoint %s" % (
        out, out))  # fmt: skip
    return 0


def _export(config: ConvertConfig) -> int:
    if config.out is None or config.source:
        raise UsageError("--to-hf takes --out and no SOURCE", "add --out DIR")
    assert config.to_hf is not None
    print(
        "\n".join(export(Path(config.to_hf), Path(config.out), config.fold_mup, config.shard_bytes))
    )
    return 0


def _source(config: ConvertConfig) -> Tuple[Path, Path]:
    """(the directory to read, the one to write); a zoo name is downloaded."""
    if Path(config.source).is_dir():
        name = Path(config.source).resolve().name
        return Path(config.source), Path(config.out or Path("checkpoints") / name)
    entry = zoo.ZOO.get(config.source)
    if entry is None or entry.repo is None:
        published = [name for name, each in zoo.ZOO.items() if each.repo]
        raise UsageError(
            "%s is neither a directory nor a published model" % config.source,
            nearest(config.source, published),
        )
    out = Path(config.out or Path("checkpoints") / config.source)
    return fetch_model(config.source, config.revision), out


def fetch_model(name: str, revision: str = "main") -> Path:
    """Downloads a published model; returns the directory its files are in."""
    entry = zoo.find(name)
    assert entry.repo is not None
    hub = Hub.from_environment(entry.repo, revision, entry.subfolder)
    directory = Path("downloads") / name
    print(
        "download %s to %s: about %s"
        % (hub.url(""), directory, size(4 * entry.config.parameter_count())),
        flush=True,
    )
    with _bar("downloading", 4 * entry.config.parameter_count()) as bar:
        download(hub, directory, bar.update)
    return directory


def _bar(what: str, total: Optional[int] = None) -> tqdm[None]:
    live = sys.stderr.isatty()
    return tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=not live)
