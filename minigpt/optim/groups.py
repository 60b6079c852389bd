"""Which parameters decay, and which move at another rate than the rest."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from torch import nn


def decay_groups(
    model: nn.Module, weight_decay: float, hidden_lr_scale: float = 1.0
) -> List[Dict[str, Any]]:
    """Parameter groups: matrices and embeddings decay, biases and LayerNorms do not, and
    what is frozen is in none.

    `lr_scale` multiplies the scheduled rate; under muP (Yang et al. 2022) it is below 1 for the
    matrices inside the blocks.
    """
    groups: Dict[Tuple[float, float], List[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.dim() >= 2
        lr_scale = hidden_lr_scale if matrix and "blocks." in name else 1.0
        groups.setdefault((weight_decay if matrix else 0.0, lr_scale), []).append(parameter)
    return [
        {"params": params, "weight_decay": decay, "lr_scale": lr_scale}
        for (decay, lr_scale), params in groups.items()
    ]
