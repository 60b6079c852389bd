"""convert_hf.py: downloads where needed, converts one way or the other, and says what was done."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, List, Optional

import torch
import tyro
from typing_extensions import Annotated

from minigpt.base.errors import CheckpointError, UsageError, require_known
from minigpt.base.files import require_free
from minigpt.checkpoint.model_files import DTYPES, load_model
from minigpt.commands.cli import parse
from minigpt.data.tokenizer import MERGES, VOCAB, Tokenizer, load_tokenizer
from minigpt.decoding.generate import generate
from minigpt.hf import published
from minigpt.hf.convert import HF, KINDS, NANOGPT, USE_IT, convert
from minigpt.hf.export import export
from minigpt.hf.vocabulary import BESIDE, CHOICES
from minigpt.model.gpt import GPT
from minigpt.training.config import left_open
from minigpt.training.objective import cross_entropy_sum

NOT_EQUAL = "NOT EQUAL"
_PROSE = (
    "The quick brown fox jumps over the lazy dog. Once upon a time there was a small village by"
    " the sea, where everybody knew everybody else and nothing ever happened."
)
# What a conversion back does not do.
_ONLY_IN = ("dtype", "weights", "tokenizer", "revision", "verify", "kind")


@dataclass
class ConvertConfig:
    """Converts a Hugging Face GPT-2 or Cerebras-GPT, or a nanoGPT, to minigpt's format, or back."""

    source: Annotated[str, tyro.conf.Positional] = ""
    """A directory in Hugging Face's layout, or a published model's name to download first."""
    kind: Annotated[str, tyro.conf.arg(name="from")] = HF
    """hf, or nanogpt: then SOURCE is its ckpt.pt."""
    out: Annotated[Optional[str], left_open("DIR", "checkpoints/NAME")] = None
    """The directory to write."""
    to_hf: Annotated[Optional[str], left_open("DIR", "the other direction")] = None
    """A checkpoint of ours to turn into a directory that transformers opens."""
    dtype: str = "keep"
    """keep, fp32, bf16 or fp16."""
    shard_size: str = "5GB"
    """Weights go to several files of at most this size."""
    weights: Annotated[Optional[str], left_open("FILE", "found by its usual name")] = None
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
        require_known("dtype", self.dtype, DTYPES)
        require_known("tokenizer", self.tokenizer, CHOICES)
        require_known("from", self.kind, KINDS)
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
        names = ", ".join(f"--{name}" for name in _ONLY_IN[:-1]) + ", --from"
        raise UsageError(f"--to-hf takes none of {names}", "convert back without them")
    else:
        source, out = Path(config.to_hf), Path(config.out)
        print("\n".join(export(source, out, config.fold_mup, config.shard_bytes)))


def _convert(config: ConvertConfig) -> None:
    if not config.source:
        raise UsageError("nothing to convert", "name a directory or a model, such as cerebras-111m")
    directory, to_fetch = Path(config.source), not Path(config.source).exists()
    name = directory.resolve().stem if directory.is_file() else directory.resolve().name
    if config.kind == NANOGPT and not directory.is_file():
        raise UsageError(f"{directory} is no file", "name nanoGPT's ckpt.pt")
    if config.kind == HF and directory.is_file():
        what = f"{directory} is a file"
        fix = "name its directory (and the file with --weights), or say --from nanogpt of a ckpt.pt"
        raise UsageError(what, fix)
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
            directory, out, config.dtype, config.shard_bytes, config.weights, tell,
            config.tokenizer, config.kind,
        )  # fmt: skip
    print("\n".join(lines))
    if config.verify:
        found = _verify(out, directory)
        print("\n".join(found))
        if any(NOT_EQUAL in line for line in found):
            raise CheckpointError(f"{out} computes something else", f"do not use it; remove {out}")
    next_ = f"python train.py --init {out}, or: python -m minigpt generate --checkpoint {out}"
    if not (out / VOCAB).exists():
        next_ = f"put the {VOCAB} and {MERGES} of its vocabulary into {out}, to train or generate"
    print(f"next     {next_}")


@torch.no_grad()
def _verify(checkpoint: Path, source: Path) -> List[str]:
    """How the model does on English prose, and how far its logits are from transformers'."""
    model = load_model(checkpoint, dtype=torch.float32)
    tokens = torch.arange(min(32, model.config.n_positions)).unsqueeze(0) % model.config.vocab_size
    lines = ["verify   there is no vocabulary, so no prompt to try"]
    if (checkpoint / VOCAB).exists():
        tokenizer = load_tokenizer(checkpoint)
        tokens = torch.tensor([tokenizer.encode(_PROSE)[: model.config.n_positions]])
        lines = _spoken(model, tokenizer, tokens)
    return [*lines, _compared(model, source, tokens)] if source.is_dir() else lines


def _spoken(model: GPT, tokenizer: Tokenizer, tokens: torch.Tensor) -> List[str]:
    ids = tokens[0].tolist()
    loss = cross_entropy_sum(model(tokens)[:, :-1], tokens[:, 1:]).item() / (len(ids) - 1)
    text = tokenizer.decode(generate(model, ids[:8], 12, temperature=0))
    return [
        f"verify   loss on English prose {loss:.2f} nats a token (2.5 to 4.5 is usual for"
        f" a trained model, {math.log(model.config.vocab_size):.1f} is guessing)",
        f"verify   {tokenizer.decode(ids[:8])!r} goes on: {text!r}",
    ]


def _compared(model: GPT, source: Path, tokens: torch.Tensor) -> str:
    try:
        transformers: Any = import_module("transformers")
    except ImportError:
        return "verify   transformers is not installed, so nothing to compare with"
    try:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32)
    except Exception as error:
        return f"verify   transformers does not open {source}: {error}"
    expected = theirs.eval()(tokens).logits
    difference = (model(tokens) - expected).abs().max().item() / expected.abs().max().item()
    verdict = "equal" if difference <= 1e-5 else NOT_EQUAL  # nan is not
    return f"verify   logits against transformers': {verdict} ({difference:.1e} of the largest)"
