"""LoRA (Hu et al. 2021): a matrix is tuned by adding a product of two thin ones to it.

    y = W x + (alpha / rank) B A dropout(x)        A (rank, in), B (out, rank), W stays as it was

B starts at zero, so a fresh adapter changes nothing, and afterwards W + (alpha / rank) B A is a
matrix like any other: merged, the adapter costs nothing. It is put on a finished model from
outside, and only A and B learn. Dropout is on the adapter's input alone, and both matrices decay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, Tuple

from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.base.errors import UsageError, at_least, require_known
from minigpt.model.gpt import GPT

TARGETS = ("qkv", "out", "up", "down")


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


class LoRALinear(nn.Module):
    """A linear layer and its adapter."""

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        super().__init__()
        self.base, self.dropout, self.scale = base, config.dropout, config.scale
        like = base.weight
        self.a = nn.Parameter(like.new_empty(config.rank, like.size(1)))
        self.b = nn.Parameter(like.new_zeros(like.size(0), config.rank))
        draw(self.a)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        thin = F.dropout(x, self.dropout, self.training) @ self.a.t()  # (..., rank)
        return self.base(x) + self.scale * (thin @ self.b.t())


def draw(a: Tensor) -> None:
    """Fills a fresh A (rank, in)."""
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))


def merged(weight: Tensor, a: Tensor, b: Tensor, config: LoRAConfig) -> Tensor:
    """weight (out, in) with its adapter a (rank, in), b (out, rank) added, in float32."""
    return weight.float() + config.scale * (b.float() @ a.float())


def add_lora(model: GPT, config: LoRAConfig) -> GPT:
    """Freezes the model and puts a fresh adapter on each target; returns the model."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if isinstance(module, nn.Linear) and leaf in config.targets:
            setattr(model.get_submodule(parent), leaf, LoRALinear(module, config))
    return model


def adapter_tensors(model: nn.Module) -> Dict[str, nn.Parameter]:
    """The adapters' parameters by the name of their matrix, such as `blocks.3.attention.qkv.a`."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            found.update({name + ".a": module.a, name + ".b": module.b})
    return found
