"""What is put on a model from outside, in this order: dropout, frozen layers, the form of
attention, recomputation, compilation, precision. (An adapter has come before: model/lora.py.)
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Callable, Optional

import torch
from torch.utils.checkpoint import checkpoint as keep_input_only

from minigpt.data.batch import Batch
from minigpt.devices.device import Device
from minigpt.model.attention import Attention, explicit_attention
from minigpt.model.cache import KVCache
from minigpt.model.gpt import GPT, MLP
from minigpt.training.fast_loss import softmax_and_loss_to_compile
from minigpt.training.objective import Objective
from minigpt.training.varlen import serves, varlen_attention

# Before PyTorch 2.5 every layer was compiled anew, so there the model is compiled as a whole.
COMPILES_BLOCKS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 5)


def freeze(model: GPT, layers: Optional[int]) -> None:
    """Keeps the embeddings and the first `layers` blocks as they are (None: nothing)."""
    if layers is None:
        return
    for module in (model.token_embedding, model.position_embedding, *model.blocks[:layers]):
        module.requires_grad_(False)


def set_dropout(model: GPT, dropout: float) -> None:
    """Gives a model that is there another dropout than it was made with; an adapter has its own."""
    model.config = replace(model.config, dropout=dropout)
    model.embedding_dropout.p = dropout
    for module in model.modules():
        if isinstance(module, (Attention, MLP)):
            module.dropout = dropout


def objective_for(
    model: GPT, device: Device, precision: str = "fp32", recompute: bool = False,
    compiled: bool = False,
) -> Objective:  # fmt: skip
    """The objective of `model` on `device`. `recompute`: a block keeps its input alone."""
    if not device.fused_attention:
        model.use_attention(explicit_attention)
    varlen = serves(device, model.config, device.product_dtype(precision))
    if varlen:
        model.use_attention(varlen_attention)
    if compiled and not COMPILES_BLOCKS:
        vars(model)["features"] = torch.compile(model.features)
    for block in model.blocks:
        if compiled and COMPILES_BLOCKS:  # one compilation serves them all
            vars(block)["forward"] = _compiled(block.forward)
        if recompute:  # activation checkpointing (Chen et al. 2016)
            forward = partial(keep_input_only, block.forward, use_reentrant=False)
            vars(block)["forward"] = forward
    objective = Objective(
        model, device.send, device.product_dtype(precision), device.static_shapes,
        compiled and not varlen, varlen,
    )  # fmt: skip
    if compiled:
        objective.softmax = torch.compile(softmax_and_loss_to_compile)
    if precision.endswith("-mixed"):
        exact = objective.forward

        def mixed(batch: Batch) -> torch.Tensor:
            with device.autocast(precision):
                return exact(batch)

        vars(objective)["forward"] = mixed
    return objective


def _compiled(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A block's forward pass, compiled but for decoding, where each layer has its own cache."""
    compiled = torch.compile(forward)

    def either(
        x: torch.Tensor, mask: Optional[torch.Tensor] = None, cache: Optional[KVCache] = None,
        layer: int = 0,
    ) -> torch.Tensor:  # fmt: skip
        return compiled(x, mask) if cache is None else forward(x, mask, cache, layer)

    return either
