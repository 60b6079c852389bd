"""The published shapes, by name: how each model looks, where its weights are, how it was trained.

Sources. Cerebras-GPT: Dey et al. 2023 and the training configurations published with it, which
correct the paper's and the model cards' tables in places (2.7B has 32 heads of 80, not 20 of 128;
several decays are linear). GPT-2: Radford et al. 2019; its learning rates were never published,
so the recipe beside it is the one of the GPT-3 paper (Brown et al. 2020, table 2.1) for the model
of that size. DistilGPT-2: Sanh et al. 2019.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, Optional, Tuple

from minigpt.base.errors import UsageError
from minigpt.base.text import nearest
from minigpt.model.gpt import GPTConfig


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

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_size * self.block_size


@dataclass(frozen=True)
class ZooEntry:
    """A shape, its recipe, and the Hugging Face repository of its weights (None: not published)."""

    config: GPTConfig
    recipe: Recipe
    repo: Optional[str] = None
    subfolder: str = ""  # where in the repository, when not at its top
    tokenizer: str = "gpt2"


# name: (n_embd, n_layer, n_head, lr, schedule, warmup, steps, batch, eps)
_CEREBRAS: Dict[str, Tuple[int, int, int, float, str, int, int, int, float]] = {
    "111m": (768, 10, 12, 6e-4, "linear", 1525, 9037, 120, 1e-8),
    "256m": (1088, 14, 17, 6e-4, "linear", 693, 9468, 264, 1e-8),
    "590m": (1536, 18, 12, 2e-4, "linear", 693, 21836, 264, 1e-8),
    "1.3b": (2048, 24, 16, 2e-4, "cosine", 346, 24334, 528, 1e-8),
    "2.7b": (2560, 32, 32, 2e-4, "cosine", 346, 49041, 528, 1e-8),
    "6.7b": (4096, 32, 32, 1.2e-4, "linear", 176, 62522, 1040, 1e-9),
    # Trained at batch 720 to step 57,000, then at 1080 from a step counter reset to 38,000.
    "13b": (5120, 40, 40, 1.2e-4, "cosine", 169, 116223, 1080, 1e-9),
}
_CEREBRAS_MUP = ("111m", "256m", "590m", "1.3b", "2.7b")

# name: (repo, n_embd, n_layer, n_head, lr, batch)
_GPT2: Dict[str, Tuple[str, int, int, int, float, int]] = {
    "gpt2": ("openai-community/gpt2", 768, 12, 12, 6e-4, 512),
    "gpt2-medium": ("openai-community/gpt2-medium", 1024, 24, 16, 3e-4, 512),
    "gpt2-large": ("openai-community/gpt2-large", 1280, 36, 20, 2.5e-4, 512),
    "gpt2-xl": ("openai-community/gpt2-xl", 1600, 48, 25, 2e-4, 1024),
    "distilgpt2": ("distilbert/distilgpt2", 768, 6, 12, 6e-4, 512),
}

# For a laptop, with the tokenizer named unless told otherwise. name: (n_embd, n_layer, n_head,
# lr, steps, batch, block, tokenizer). Found by trying: with minutes to spend, short rows and many
# small steps learn most.
_SMALL: Dict[str, Tuple[int, int, int, float, int, int, int, str]] = {
    "mini": (128, 3, 2, 5e-3, 6000, 6, 96, "bytes"),
    "small": (256, 6, 4, 2e-3, 10_000, 16, 256, "bytes"),
    "medium": (512, 8, 8, 1e-3, 20_000, 32, 512, "bytes"),
    "words": (128, 4, 2, 3e-3, 2000, 2, 512, "gpt2"),
}


def _cerebras(name: str) -> ZooEntry:
    n_embd, n_layer, n_head, lr, schedule, warmup, steps, batch, eps = _CEREBRAS[name]
    config = GPTConfig(50257, 2048, n_layer, n_head, n_embd, activation="gelu")
    recipe = Recipe(lr, lr / 10, warmup, steps, batch, 2048, schedule, eps=eps)
    return ZooEntry(config, recipe, f"cerebras/Cerebras-GPT-{name.upper()}")


def _cerebras_mup(name: str) -> ZooEntry:
    """The sibling in maximal update parametrization (Yang et al. 2022), tuned at width 256."""
    entry = _cerebras(name)
    width_scale = 256 / entry.config.n_embd
    config = replace(
        entry.config,
        embedding_scale=10.0,
        output_scale=width_scale,
        attention_scale=1.0 / entry.config.head_dim,
        init_std=0.08,
        hidden_init_std=0.08 * width_scale**0.5,
    )
    recipe = replace(entry.recipe, lr=6e-3, min_lr=6e-4, hidden_lr_scale=width_scale)
    label = name.upper().rstrip("M")
    subfolder = f"CerebrasGPT-{label}_muP/checkpoint_{recipe.steps}"
    return ZooEntry(config, recipe, "cerebras/Cerebras-GPT-Intermediate", subfolder)


def _gpt2(name: str) -> ZooEntry:
    repo, n_embd, n_layer, n_head, lr, batch = _GPT2[name]
    config = GPTConfig(50257, 1024, n_layer, n_head, n_embd, activation="gelu_tanh", dropout=0.1)
    warmup, steps = (tokens // (batch * 1024) for tokens in (375_000_000, 300_000_000_000))
    return ZooEntry(config, Recipe(lr, lr / 10, warmup, steps, batch, 1024), repo)


def _small(name: str) -> ZooEntry:
    n_embd, n_layer, n_head, lr, steps, batch, block, tokenizer = _SMALL[name]
    config = GPTConfig(257 if tokenizer == "bytes" else 50257, block, n_layer, n_head, n_embd)
    # So narrow, weights of 0.02 would need thousands of steps only to grow.
    config = replace(config, init_std=0.1, hidden_init_std=0.05)
    return ZooEntry(config, Recipe(lr, lr / 20, 100, steps, batch, block), tokenizer=tokenizer)


ZOO: Dict[str, ZooEntry] = {
    **{name: _small(name) for name in _SMALL},
    **{name: _gpt2(name) for name in _GPT2},
    **{f"cerebras-{name}": _cerebras(name) for name in _CEREBRAS},
    **{f"cerebras-{name}-mup": _cerebras_mup(name) for name in _CEREBRAS_MUP},
}


def find(name: str) -> ZooEntry:
    """The entry called `name`; UsageError with the nearest name otherwise."""
    if name not in ZOO:
        raise UsageError(f"there is no model named {name!r}", nearest(name, ZOO))
    return ZOO[name]
