"""--verify: does the converted model speak, and say what transformers makes of the same files?"""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import Any, List, Optional

import torch

from minigpt.checkpoint.model_files import load_model
from minigpt.data.tokenizer import VOCAB, Tokenizer, load_tokenizer
from minigpt.decoding.generate import generate
from minigpt.model.gpt import GPT
from minigpt.training.objective import cross_entropy_sum

NOT_EQUAL = "NOT EQUAL"
_PROSE = (
    "The quick brown fox jumps over the lazy dog. Once upon a time there was a small village by"
    " the sea, where everybody knew everybody else and nothing ever happened."
)


@torch.no_grad()
def verify(checkpoint: Path, source: Optional[Path] = None) -> List[str]:
    """How the model does on English prose, and how far its logits are from transformers'."""
    model = load_model(checkpoint, dtype=torch.float32)
    tokens = torch.arange(min(32, model.config.n_positions)).unsqueeze(0) % model.config.vocab_size
    lines = ["verify   there is no vocabulary, so no prompt to try"]
    if (checkpoint / VOCAB).exists():
        tokenizer = load_tokenizer(checkpoint)
        tokens = torch.tensor([tokenizer.encode(_PROSE)[: model.config.n_positions]])
        lines = _spoken(model, tokenizer, tokens)
    return lines + ([_compared(model, source, tokens)] if source is not None else [])


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
