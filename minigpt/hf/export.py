"""minigpt to Hugging Face: a directory that transformers, and what reads its files, opens as it is.

A muP model has three scales that GPT-2 has not. They can be folded into the weights exactly (up
to rounding): the embeddings take the embedding scale, the keys the ratio of the attention scales,
and the head, no longer tied, the output scale. The result computes the same and is larger by one
embedding matrix.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Optional

import torch
from torch import Tensor

from minigpt.checkpoint.lazy import LazyTensor
from minigpt.checkpoint.model_files import open_weights, read_config
from minigpt.checkpoint.run_files import resolve
from minigpt.checkpoint.writer import TensorSpec, write_sharded
from minigpt.data.template import load_template, save_template
from minigpt.data.tokenizer import MARKER, VOCAB, GPT2Tokenizer, load_tokenizer
from minigpt.errors import CheckpointError
from minigpt.files import atomic_directory, write_json
from minigpt.hf import config as hf_config
from minigpt.hf import layout
from minigpt.model.gpt import GPTConfig
from minigpt.text import size

_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float64: "float64",
}
_SHARD_BYTES = 5_000_000_000


def is_plain(config: GPTConfig) -> bool:
    """Whether GPT-2 itself can represent the model: no scale differs from its own."""
    usual = math.isclose(config.qk_scale, config.head_dim**-0.5)
    return usual and config.embedding_scale == 1.0 and config.output_scale == 1.0


def export(
    checkpoint: Path, out: Path, fold: bool = False, shard_bytes: int = _SHARD_BYTES
) -> List[str]:
    """Writes the Hugging Face directory of a checkpoint of ours to `out`; returns the lines of a
    summary.

    A muP model is refused unless `fold` is asked for. A LoRA checkpoint is merged on the way.
    """
    directory = resolve(checkpoint)
    config = read_config(directory)
    tokenizer = _tokenizer(directory)
    if not is_plain(config) and not fold:
        raise CheckpointError(
            "%s is a muP model, whose scales GPT-2 has not" % directory,
            "fold them into the weights with --fold-mup",
        )
    with ExitStack() as stack:
        ours = open_weights(directory, stack)
        folded = config if is_plain(config) else _folded_config(config)
        specs = _specs(ours, folded)

        def fetch(theirs: str) -> Tensor:
            return _read(ours, theirs, config)

        with atomic_directory(out) as partial:
            write_sharded(partial, specs, fetch, shard_bytes)
            dtype = _DTYPE_NAMES[specs[0].dtype]
            write_json(partial / "config.json", hf_config.write(folded, dtype))
            if tokenizer is not None:
                _write_tokenizer(partial, tokenizer, folded)
            template = load_template(directory)
            if template is not None:  # of no use to others, and needed on the way back
                save_template(partial, template)
    total = size(sum(spec.nbytes for spec in specs))
    return [
        "wrote    %s: %d tensors, %s, opens in transformers as it is" % (out, len(specs), total)
    ]


def _tokenizer(directory: Path) -> Optional[GPT2Tokenizer]:
    if not any((directory / name).exists() for name in (VOCAB, MARKER)):
        return None  # converted from a directory that had none
    tokenizer = load_tokenizer(directory)
    if isinstance(tokenizer, GPT2Tokenizer):
        return tokenizer
    raise CheckpointError(
        "%s has the bytes tokenizer, which transformers does not know" % directory,
        "train with --tokenizer gpt2 to export a model",
    )


def _folded_config(config: GPTConfig) -> GPTConfig:
    return replace(
        config, tied_head=False, embedding_scale=1.0, output_scale=1.0, attention_scale=None
    )


def _specs(ours: Dict[str, LazyTensor], folded: GPTConfig) -> List[TensorSpec]:
    specs = []
    for name, tensor in ours.items():
        shape = tensor.shape[::-1] if layout.is_transposed(name) else tensor.shape
        specs.append(TensorSpec(layout.to_theirs(name), tensor.dtype, shape))
    if not folded.tied_head and layout.HEAD not in ours:
        embedding = ours[layout.EMBEDDING]
        specs.append(TensorSpec(layout.THEIR_HEAD, embedding.dtype, embedding.shape))
    return specs


def _read(ours: Dict[str, LazyTensor], theirs: str, config: GPTConfig) -> Tensor:
    name = layout.to_ours(theirs)
    assert name is not None
    source = name if name in ours else layout.EMBEDDING
    tensor = _fold(name, ours[source].read(), config)
    return layout.turn(name, tensor).contiguous()


def _fold(name: str, tensor: Tensor, config: GPTConfig) -> Tensor:
    if is_plain(config):
        return tensor
    if name in ("token_embedding.weight", "position_embedding.weight"):
        return tensor * config.embedding_scale
    if name == layout.HEAD:
        return tensor * config.output_scale
    if ".attention.qkv." in name:
        tensor = tensor.clone()
        C = config.n_embd
        tensor[C : 2 * C] *= config.qk_scale * math.sqrt(config.head_dim)
    return tensor


def _write_tokenizer(directory: Path, tokenizer: GPT2Tokenizer, config: GPTConfig) -> None:
    tokenizer.save(directory)
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "GPT2Tokenizer",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "add_prefix_space": False,
            "model_max_length": config.n_positions,
        },
    )
