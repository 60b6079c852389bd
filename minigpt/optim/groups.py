"""Which weights decay, and which have a learning rate of their own."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from torch import nn


def decay_groups(
    model: nn.Module, weight_decay: float, hidden_lr_scale: float = 1.0
) -> List[Dict[str, Any]]:
    """Parameter groups for AdamW, without the frozen parameters. Matrices and embeddings decay,
    biases and LayerNorms do not.

    A group's `lr_scale` multiplies the scheduled learning rate. It is `hidden_lr_scale` for the
    matrices inside the blocks, which muP sets below 1 (Yang et al. 2022), and else 1.
    """
    groups: Dict[Tuple[float, float], List[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.dim() >= 2
        decay = weight_decay if is_matrix else 0.0
        lr_scale = hidden_lr_scale if is_matrix and "blocks." in name else 1.0
        groups.setdefault((decay, lr_scale), []).append(parameter)
    return [
        {"params": params, "weight_decay": decay, "lr_scale": lr_scale}
        for (decay, lr_scale), params in groups.items()
    ]
