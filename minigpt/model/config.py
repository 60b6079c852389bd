"""What a model is, before there are any weights: its shape, and that of an adapter on it.

PyTorch is not needed for that, so a command line can be checked before that is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Tuple

from minigpt.base.errors import UsageError, at_least, require_known

# Two functions with one name in the literature. They differ by 5e-4, which is enough to spoil a
# converted model, so a config always says which one is meant. OpenAI's GPT-2 has the tanh form,
# Cerebras-GPT the exact one.
ACTIVATIONS = {"gelu": "none", "gelu_tanh": "tanh"}
TARGETS = ("qkv", "out", "up", "down")


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. The scales are 1 (and 1/sqrt(D)) but in muP models (Yang et al. 2022)."""

    vocab_size: int = 50257
    n_positions: int = 1024  # the longest context: learned positions end here
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_inner: Optional[int] = None  # width of the MLP; None: 4 * n_embd
    activation: str = "gelu_tanh"
    layer_norm_eps: float = 1e-5
    dropout: float = 0.0
    tied_head: bool = True  # the output projection is the token embedding
    embedding_scale: float = 1.0
    output_scale: float = 1.0
    attention_scale: Optional[float] = None  # None: 1 / sqrt(head_dim)
    init_std: float = 0.02
    hidden_init_std: Optional[float] = None  # of the matrices inside the blocks; None: init_std

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd", "inner"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", "it must be at least 1")
        if self.n_embd % self.n_head:
            raise UsageError(
                f"n_embd {self.n_embd} does not divide into {self.n_head} heads",
                "choose an n_embd that is a multiple of n_head",
            )
        if self.activation not in ACTIVATIONS:
            raise UsageError(
                f"unknown activation {self.activation!r}", f"use one of: {', '.join(ACTIVATIONS)}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise UsageError(f"dropout is {self.dropout}", "it must be at least 0 and below 1")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def inner(self) -> int:
        return self.n_inner or 4 * self.n_embd

    @property
    def qk_scale(self) -> float:
        return self.attention_scale or 1.0 / math.sqrt(self.head_dim)

    def parameter_count(self) -> int:
        """All parameters, a tied head counted once (reference: the published tables, exactly)."""
        C, I = self.n_embd, self.inner
        block = (3 * C + C + I + C) + 4 * C  # biases, and two norms
        embeddings = (self.vocab_size + self.n_positions) * C
        head = 0 if self.tied_head else self.vocab_size * C
        return embeddings + self.matrix_count() + self.n_layer * block + 2 * C + head

    def matrix_count(self) -> int:
        """Those in the matrices of the blocks: nearly all of a large model."""
        C, I = self.n_embd, self.inner
        return self.n_layer * (3 * C * C + C * C + C * I + I * C)


@dataclass(frozen=True)
class LoRAConfig:
    """Which matrices are adapted, and how. Defaults as in the paper's GPT-2 runs (table 11), but
    for the targets: all matrices of a block, where the paper has those of queries and values.
    """

    rank: int
    alpha: float = 32.0
    dropout: float = 0.1
    targets: Tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        at_least(1, lora_rank=self.rank)
        if not 0.0 < self.alpha < math.inf:
            raise UsageError(f"--lora-alpha is {self.alpha}", "it must be above 0")
        if not 0.0 <= self.dropout < 1.0:
            raise UsageError(f"--lora-dropout is {self.dropout}", "it must be in [0, 1)")
        for target in self.targets or ("none",):
            require_known("lora_targets", target, TARGETS)

    @property
    def scale(self) -> float:
        """What the product of the two thin matrices is multiplied by."""
        return self.alpha / self.rank
