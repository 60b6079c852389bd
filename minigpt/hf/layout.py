"""Hugging Face's GPT-2 and ours: one table of names, and both directions derive from it.

Theirs keeps the four matrices of a block as Conv1D, [in, out]; ours are nn.Linear, [out, in].
Embeddings and the head have the same layout on both sides.
"""

from __future__ import annotations

import re
from typing import Optional, Tuple

from torch import Tensor

# blocks.3.MODULE.weight is transformer.h.3.MODULE.weight; outside of the blocks nothing stands
# before the module.
_THEIRS = {
    "token_embedding": "wte",
    "position_embedding": "wpe",
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
    "final_norm": "ln_f",
}
_OURS = {theirs: ours for ours, theirs in _THEIRS.items()}

HEAD, _THEIR_HEAD = "head.weight", "lm_head.weight"  # the one name that never has the prefix
EMBEDDING = "token_embedding.weight"

# The causal mask, which old versions saved with the weights. It must not match attn.c_attn.bias.
_BUFFER = re.compile(r"(^|\.)attn\.(bias|masked_bias)$")


def is_buffer(theirs: str) -> bool:
    """Whether a tensor of theirs is a mask, which is no weight."""
    return _BUFFER.search(theirs) is not None


def to_ours(theirs: str) -> Optional[str]:
    """transformer.h.3.attn.c_attn.weight (or without the prefix) ->
    blocks.3.attention.qkv.weight; None: unknown.
    """
    if theirs == _THEIR_HEAD:
        return HEAD
    match = re.fullmatch(r"(?:transformer\.)?(?:h\.(\d+)\.)?(.+)\.(weight|bias)", theirs)
    if match is None or match[2] not in _OURS:
        return None
    block = f"blocks.{int(match[1])}." if match[1] else ""
    return f"{block}{_OURS[match[2]]}.{match[3]}"


def to_theirs(ours: str) -> str:
    """blocks.3.attention.qkv.weight -> transformer.h.3.attn.c_attn.weight"""
    if ours == HEAD:
        return _THEIR_HEAD
    module, _, leaf = ours.rpartition(".")
    block = ""
    if module.startswith("blocks."):
        _, layer, module = module.split(".", 2)
        block = f"h.{layer}."
    return f"transformer.{block}{_THEIRS[module]}.{leaf}"


def is_transposed(ours: str) -> bool:
    """Whether theirs is the transpose of the tensor that we call `ours`."""
    return ours.startswith("blocks.") and ours.endswith(".weight") and "norm" not in ours


def other_layout(ours: str, tensor: Tensor) -> Tensor:
    """Their tensor in the layout of the one we call `ours`, or ours in the layout of theirs."""
    return tensor.t() if is_transposed(ours) else tensor


def other_shape(ours: str, shape: Tuple[int, ...]) -> Tuple[int, ...]:
    """The shape of `other_layout` of a tensor of `shape`."""
    return shape[::-1] if is_transposed(ours) else shape
