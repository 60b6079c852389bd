"""Hugging Face's GPT-2 and ours: one table of names, and both directions derive from it.

Theirs keeps the four matrices of a block as Conv1D, [in, out]; ours are nn.Linear, [out, in].
Embeddings and the head lie alike on both sides.
"""

from __future__ import annotations

import re
from typing import Optional

from torch import Tensor

_OUTSIDE = {
    "token_embedding.weight": "wte.weight",
    "position_embedding.weight": "wpe.weight",
    "final_norm.weight": "ln_f.weight",
    "final_norm.bias": "ln_f.bias",
}
_IN_BLOCK = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
_OURS_OUTSIDE = {theirs: ours for ours, theirs in _OUTSIDE.items()}
_OURS_IN_BLOCK = {theirs: ours for ours, theirs in _IN_BLOCK.items()}

HEAD, THEIR_HEAD = "head.weight", "lm_head.weight"
EMBEDDING = "token_embedding.weight"
PREFIX = "transformer."

# The causal mask, which old versions saved with the weights. It must not match attn.c_attn.bias.
_BUFFER = re.compile(r"(^|\.)attn\.(bias|masked_bias)$")


def is_buffer(theirs: str) -> bool:
    """Whether a tensor of theirs is a mask, which is no weight."""
    return _BUFFER.search(theirs) is not None


def to_ours(theirs: str) -> Optional[str]:
    """transformer.h.3.attn.c_attn.weight (or without the prefix) ->
    blocks.3.attention.qkv.weight; None: unknown.
    """
    if theirs == THEIR_HEAD:
        return HEAD
    if theirs.startswith(PREFIX):
        theirs = theirs[len(PREFIX) :]
    match = re.match(r"h\.(\d+)\.(.+)\.(weight|bias)$", theirs)
    if match is None:
        return _OURS_OUTSIDE.get(theirs)
    layer, module, leaf = match.groups()
    ours = _OURS_IN_BLOCK.get(module)
    return None if ours is None else "blocks.%d.%s.%s" % (int(layer), ours, leaf)


def to_theirs(ours: str) -> str:
    """blocks.3.attention.qkv.weight -> transformer.h.3.attn.c_attn.weight"""
    if ours == HEAD:
        return THEIR_HEAD
    if not ours.startswith("blocks."):
        return PREFIX + _OUTSIDE[ours]
    _, layer, rest = ours.split(".", 2)
    module, _, leaf = rest.rpartition(".")
    return "%sh.%s.%s.%s" % (PREFIX, layer, _IN_BLOCK[module], leaf)


def is_transposed(ours: str) -> bool:
    """Whether the tensor lies the other way round over there."""
    return ours.startswith("blocks.") and ours.endswith(".weight") and "norm" not in ours


def turn(ours: str, tensor: Tensor) -> Tensor:
    """A tensor of theirs as ours called `ours`, or the other way round."""
    return tensor.t() if is_transposed(ours) else tensor
