"""nanoGPT's ckpt.pt (github.com/karpathy/nanoGPT) in the words of Hugging Face's GPT-2.

Its tensors have the same names; its matrices are nn.Linear and not Conv1D, the GELU is the exact
one, and with bias=False there are no biases, which is the same as zeros.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from minigpt.base.errors import CheckpointError
from minigpt.checkpoint.safetensors import LazyTensor
from minigpt.data.tokenizer import GPT2Tokenizer
from minigpt.hf import layout
from minigpt.hf.torch_pickle import open_trainers_file
from minigpt.hf.vocabulary import BESIDE, GPT2, find_vocabulary

_SHAPE = {
    "n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "block_size": "n_positions",
    "vocab_size": "vocab_size",
}  # fmt: skip
_GPT2_TOKENS = (50257, 50304)  # the latter is padded


def open_checkpoint(path: Path) -> Tuple[Dict[str, Any], Dict[str, LazyTensor]]:
    """(config.json's values, the tensors) as a GPT-2 of Hugging Face has them; CheckpointError for
    what is none of nanoGPT's.
    """
    layout.require_content(path)
    found, shape = open_trainers_file(path, "model_args")
    if type(shape) is not dict or any(type(shape.get(name)) is not int for name in _SHAPE):
        what = f"{path} is no checkpoint of nanoGPT: it has no model_args"
        raise CheckpointError(what, "convert a directory in Hugging Face's layout without --from")
    tensors = {layout.unwrapped(name): tensor for name, tensor in found.items()}
    for name, tensor in [*tensors.items()]:
        ours = layout.to_ours(name)
        if ours is None or ours.startswith(("token_embedding", "position_embedding", "head")):
            continue
        tensors[name] = _other(ours, tensor)
        bias = name.rpartition(".")[0] + ".bias"
        if bias not in tensors:
            size = tensor.shape[:1]  # of ours, [out, in]
            tensors[bias] = LazyTensor(
                tensor.dtype, size, partial(torch.zeros, size, dtype=tensor.dtype)
            )
    values = {theirs: shape[name] for name, theirs in _SHAPE.items()}
    dropout = {"resid_pdrop": shape.get("dropout", 0.0)}
    return {**values, **dropout, "activation_function": "gelu"}, tensors


def _other(ours: str, tensor: LazyTensor) -> LazyTensor:
    def read() -> Tensor:
        return layout.other_layout(ours, tensor.read())

    return LazyTensor(tensor.dtype, layout.other_shape(ours, tensor.shape), read)


def find_tokenizer(
    path: Path, tokens: int, choice: str
) -> Tuple[Optional[GPT2Tokenizer], List[str]]:
    """GPT-2's, unless the model has another number of tokens: then they are characters of a text,
    listed in a pickle, and CheckpointError says so.
    """
    if choice == BESIDE and tokens not in _GPT2_TOKENS:
        what = (
            f"the {tokens} tokens of {path} are the characters in nanoGPT's meta.pkl, not GPT-2's"
        )
        fix = "--tokenizer none converts the weights; to train on one's own, use --tokenizer bytes"
        raise CheckpointError(what, fix)
    return find_vocabulary(path.parent, tokens, GPT2 if choice == BESIDE else choice)
