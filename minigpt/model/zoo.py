"""The published shapes, by name: how each model looks, where its weights are, how it was trained.

Sources. Cerebras-GPT: Dey et al. 2023 and the training configurations published with it, which
correct the paper's and the model cards' tables in places (2.7B has 32 heads of 80, not 20 of 128;
several decays are linear). GPT-2: Radford et al. 2019; its learning rates were never published,
so the recipe beside it is the one of the GPT-3 paper (Brown et al. 2020, table 2.1) for the model
of that size. DistilGPT-2: Sanh et al. 2019.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, Optional

from minigpt.base.errors import UsageError
from minigpt.base.text import nearest
from minigpt.model.config import GPTConfig


@dataclass(frozen=True)
class Recipe:
    """How a model was, or for the small ones should be, trained from scratch."""

    lr: float
    min_lr: float
    warmup_steps: int
    steps: int
    batch_size: int  # sequences per optimizer step
    block_size: int  # tokens per sequence
    schedule: str = "cosine"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    hidden_lr_scale: float = 1.0  # muP: the matrices inside the blocks learn at lr times this


@dataclass(frozen=True)
class ZooEntry:
    """A shape, its recipe, and the Hugging Face repository of its weights (None: not published)."""

    config: GPTConfig
    recipe: Recipe
    repo: Optional[str] = None
    subfolder: str = ""  # where in the repository, when not at its top
    tokenizer: str = "gpt2"


def _small(
    n_embd: int, n_layer: int, n_head: int, lr: float, steps: int, batch: int, block: int,
    tokenizer: str = "bytes",
) -> ZooEntry:  # fmt: skip
    """For a laptop. Found by trying: with minutes to spend, short rows and many small steps learn
    most; and so narrow, weights of 0.02 would need thousands of steps only to grow.
    """
    words = 257 if tokenizer == "bytes" else 50257
    config = GPTConfig(words, block, n_layer, n_head, n_embd, init_std=0.1, hidden_init_std=0.05)
    return ZooEntry(config, Recipe(lr, lr / 20, 100, steps, batch, block), tokenizer=tokenizer)


def _gpt2(
    repo: str, n_embd: int, n_layer: int, n_head: int, lr: float, batch: int = 512
) -> ZooEntry:
    config = GPTConfig(50257, 1024, n_layer, n_head, n_embd, activation="gelu_tanh", dropout=0.1)
    warmup, steps = (tokens // (batch * 1024) for tokens in (375_000_000, 300_000_000_000))
    return ZooEntry(config, Recipe(lr, lr / 10, warmup, steps, batch, 1024), repo)


def _cerebras(
    size: str, n_embd: int, n_layer: int, n_head: int, lr: float, schedule: str, warmup: int,
    steps: int, batch: int, eps: float = 1e-8,
) -> ZooEntry:  # fmt: skip
    config = GPTConfig(50257, 2048, n_layer, n_head, n_embd, activation="gelu")
    recipe = Recipe(lr, lr / 10, warmup, steps, batch, 2048, schedule, eps=eps)
    return ZooEntry(config, recipe, f"cerebras/Cerebras-GPT-{size}")


def _cerebras_mup(label: str, entry: ZooEntry) -> ZooEntry:
    """The sibling in maximal update parametrization (Yang et al. 2022), tuned at width 256."""
    width_scale = 256 / entry.config.n_embd
    config = replace(
        entry.config, embedding_scale=10.0, output_scale=width_scale,
        attention_scale=1.0 / entry.config.head_dim,
        init_std=0.08, hidden_init_std=0.08 * width_scale**0.5,
    )  # fmt: skip
    recipe = replace(entry.recipe, lr=6e-3, min_lr=6e-4, hidden_lr_scale=width_scale)
    subfolder = f"CerebrasGPT-{label}_muP/checkpoint_{recipe.steps}"
    return ZooEntry(config, recipe, "cerebras/Cerebras-GPT-Intermediate", subfolder)


ZOO: Dict[str, ZooEntry] = {
    # width, layers, heads, lr, steps, batch, block
    "mini": _small(128, 3, 2, 5e-3, 6000, 6, 96),
    "small": _small(256, 6, 4, 2e-3, 10_000, 16, 256),
    "medium": _small(512, 8, 8, 1e-3, 20_000, 32, 512),
    "words": _small(128, 4, 2, 3e-3, 2000, 2, 512, "gpt2"),
    # width, layers, heads, lr, batch
    "gpt2": _gpt2("openai-community/gpt2", 768, 12, 12, 6e-4),
    "gpt2-medium": _gpt2("openai-community/gpt2-medium", 1024, 24, 16, 3e-4),
    "gpt2-large": _gpt2("openai-community/gpt2-large", 1280, 36, 20, 2.5e-4),
    "gpt2-xl": _gpt2("openai-community/gpt2-xl", 1600, 48, 25, 2e-4, 1024),
    "distilgpt2": _gpt2("distilbert/distilgpt2", 768, 6, 12, 6e-4),
    # width, layers, heads, lr, schedule, warmup, steps, batch, eps
    "cerebras-111m": _cerebras("111M", 768, 10, 12, 6e-4, "linear", 1525, 9037, 120),
    "cerebras-256m": _cerebras("256M", 1088, 14, 17, 6e-4, "linear", 693, 9468, 264),
    "cerebras-590m": _cerebras("590M", 1536, 18, 12, 2e-4, "linear", 693, 21836, 264),
    "cerebras-1.3b": _cerebras("1.3B", 2048, 24, 16, 2e-4, "cosine", 346, 24334, 528),
    "cerebras-2.7b": _cerebras("2.7B", 2560, 32, 32, 2e-4, "cosine", 346, 49041, 528),
    "cerebras-6.7b": _cerebras("6.7B", 4096, 32, 32, 1.2e-4, "linear", 176, 62522, 1040, 1e-9),
    # Trained at batch 720 to step 57,000, then at 1080 from a step counter reset to 38,000.
    "cerebras-13b": _cerebras("13B", 5120, 40, 40, 1.2e-4, "cosine", 169, 116223, 1080, 1e-9),
}
_MUP = {"111m": "111", "256m": "256", "590m": "590", "1.3b": "1.3B", "2.7b": "2.7B"}
for _name, _label in _MUP.items():
    ZOO[f"cerebras-{_name}-mup"] = _cerebras_mup(_label, ZOO[f"cerebras-{_name}"])


def find(name: str) -> ZooEntry:
    """The entry called `name`; UsageError with the nearest name otherwise."""
    if name not in ZOO:
        raise UsageError(f"there is no model named {name!r}", nearest(name, ZOO))
    return ZOO[name]
