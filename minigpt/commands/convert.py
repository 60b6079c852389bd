"""convert_hf.py: downloads where needed, converts one way or the other, and says what was done."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import Any, Tuple
from urllib.parse import quote

import torch
from tqdm import tqdm

from minigpt.base.errors import CheckpointError, UsageError
from minigpt.base.files import require_free
from minigpt.base.text import nearest, size, word
from minigpt.checkpoint.model_files import load_model
from minigpt.commands.options import ConvertConfig
from minigpt.data.tokenizer import MERGES, VOCAB, load_tokenizer
from minigpt.decoding.generate import generate
from minigpt.hf import HF, NANOGPT
from minigpt.hf.convert import USE_IT, convert
from minigpt.hf.download import Hub, download
from minigpt.hf.export import export
from minigpt.model import zoo
from minigpt.training.objective import cross_entropy_sum

_PROSE = (
    "The quick brown fox jumps over the lazy dog. Once upon a time there was a small village by"
    " the sea, where everybody knew everybody else and nothing ever happened."
)
# What a conversion back does not do.
_ONLY_IN = ("dtype", "weights", "tokenizer", "revision", "verify", "kind")


def convert_command(config: ConvertConfig) -> None:
    """Converts as `config` says, and says what was made."""
    if config.to_hf is not None:
        _convert_back(config, Path(config.to_hf))
        return
    if config.fold_mup:
        raise UsageError("--fold-mup is for --to-hf", "leave it out")
    if not config.source:
        raise UsageError("nothing to convert", "name a directory or a model, such as cerebras-111m")
    source, out = _convert(config, fetches=config.kind == HF and not Path(config.source).exists())
    if config.verify:
        _verify(out, source)
    next_ = f"python train.py --init {word(out)}"
    next_ += f", or: python -m minigpt generate --checkpoint {word(out)}"
    if not (out / VOCAB).exists():
        next_ = f"put the {VOCAB} and {MERGES} of its vocabulary into {out}, to train or generate"
    print(f"next     {next_}")


def _convert_back(config: ConvertConfig, checkpoint: Path) -> None:
    if config.out is None or config.source:
        raise UsageError("--to-hf takes --out and no SOURCE", "add --out DIR")
    if any(getattr(config, name) != getattr(ConvertConfig, name) for name in _ONLY_IN):
        names = ", ".join(f"--{name}" for name in _ONLY_IN[:-1]) + ", --from"
        raise UsageError(f"--to-hf takes none of {names}", "convert back without them")
    print("\n".join(export(checkpoint, Path(config.out), config.fold_mup, config.shard_bytes)))


def published(name: str, may_fetch: bool) -> None:
    """Makes checkpoints/NAME of a model of the zoo; CheckpointError where it may not be fetched."""
    _published(name)
    if not may_fetch:
        fix = f"get the weights with: python convert_hf.py {name}"
        raise CheckpointError(f"{Path('checkpoints') / name} is not there", fix)
    _convert(ConvertConfig(name), fetches=True)


def _published(name: str) -> zoo.ZooEntry:
    entry = zoo.ZOO.get(name)
    if entry is None:
        what = f"{name} is neither a directory nor a published model"
        raise UsageError(what, nearest(name, [known for known in zoo.ZOO if zoo.ZOO[known].repo]))
    if entry.repo is None:
        fix = f"train it from scratch with --model {name}"
        raise UsageError(f"{name} has no published weights", fix)
    return entry


def _convert(config: ConvertConfig, fetches: bool) -> Tuple[Path, Path]:
    """Downloads what `fetches` says and converts; returns (what was read, what was written)."""
    source, name = Path(config.source), config.source
    if fetches:
        entry = _published(name)
        if config.revision != "main":  # each is a model of its own
            name += f"@{quote(config.revision, '')}"
        source = Path("downloads") / name
    else:
        name = _name_of(source, config.kind)
    out = Path(config.out or Path("checkpoints") / name)
    require_free(out, USE_IT, source)  # before anything is downloaded
    if fetches:
        hub = Hub.from_environment(entry.repo or "", config.revision, entry.subfolder)
        about = size(4 * entry.config.parameter_count())
        print(f"download {hub.url('')} to {source}: about {about}", flush=True)
        download(hub, source)
    with tqdm(unit="B", unit_scale=True, desc="converting", disable=None) as bar:

        def tell(written: int, total: int) -> None:
            bar.total = total
            bar.update(written)

        how = (config.dtype, config.shard_bytes, config.weights, tell, config.tokenizer)
        lines = convert(source, out, *how, config.kind)
    print("\n".join(lines), flush=True)
    return source, out


def _name_of(source: Path, kind: str) -> str:
    if kind == NANOGPT and not source.is_file():
        raise UsageError(f"{source} is no file", "name nanoGPT's ckpt.pt")
    if kind == HF and source.is_file():
        fix = "name its directory (and the file with --weights), or say --from nanogpt of a ckpt.pt"
        raise UsageError(f"{source} is a file", fix)
    return source.resolve().stem if source.is_file() else source.resolve().name


@torch.no_grad()
def _verify(out: Path, source: Path) -> None:
    """Says how the model does on English prose, and how far its logits are from transformers';
    CheckpointError if they are others.
    """
    model = load_model(out, dtype=torch.float32)
    config = model.config
    tokens = torch.arange(min(32, config.n_positions)).unsqueeze(0) % config.vocab_size
    if (out / VOCAB).exists():
        tokenizer = load_tokenizer(out)
        tokens = torch.tensor([tokenizer.encode(_PROSE)[: config.n_positions]])
        ids, begin = tokens[0].tolist(), tokens[0, :8].tolist()
        loss = cross_entropy_sum(model(tokens)[:, :-1], tokens[:, 1:]).item() / (len(ids) - 1)
        text = tokenizer.decode(generate(model, begin, 12, temperature=0))
        print(f"verify   loss on English prose {loss:.2f} nats a token (2.5 to 4.5 is usual for"
              f" a trained model, {math.log(config.vocab_size):.1f} is guessing)\n"
              f"verify   {tokenizer.decode(begin)!r} goes on: {text!r}")  # fmt: skip
    else:
        print("verify   there is no vocabulary, so no prompt to try")
    if source.is_dir():
        _compare(model(tokens), tokens, source, out)


def _compare(logits: torch.Tensor, tokens: torch.Tensor, source: Path, out: Path) -> None:
    try:
        transformers: Any = import_module("transformers")
        model = transformers.AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32)
    except ImportError:
        print("verify   transformers is not installed, so nothing to compare with")
        return
    except Exception as error:
        print(f"verify   transformers does not open {source}: {error}")
        return
    expected = model.eval()(tokens).logits
    difference = (logits - expected).abs().max().item() / expected.abs().max().item()
    equal = difference <= 1e-5  # nan is not
    verdict = f"{'equal' if equal else 'NOT EQUAL'} ({difference:.1e} of the largest)"
    print(f"verify   logits against transformers': {verdict}")
    if not equal:
        raise CheckpointError(f"{out} computes something else", f"do not use it; remove {out}")
