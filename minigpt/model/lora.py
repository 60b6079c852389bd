"""LoRA (Hu et al. 2021): a matrix is tuned by adding a product of two thin ones to it.

    y = W x + (alpha / rank) B A dropout(x)        A (rank, in), B (out, rank), W stays as it was

B starts at zero, so a fresh adapter changes nothing, and afterwards W + (alpha / rank) B A is a
matrix like any other: merged, the adapter costs nothing. It is put on a finished model from
outside, and only A and B learn. Dropout is on the adapter's input alone, and both matrices decay.
"""

from __future__ import annotations

import math
from typing import Dict

from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.model.config import LoRAConfig
from minigpt.model.gpt import GPT


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
