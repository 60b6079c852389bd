"""`python -m minigpt merge`: a LoRA checkpoint becomes a whole one that needs no base."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from minigpt.base.errors import UsageError
from minigpt.base.files import atomic_directory, require_free
from minigpt.base.text import nearest
from minigpt.checkpoint import manifest
from minigpt.checkpoint.adapter import read_adapter
from minigpt.checkpoint.model_files import open_weights, read_config, write_model
from minigpt.checkpoint.run_files import resolve
from minigpt.checkpoint.safetensors import TensorSpec
from minigpt.data.template import load_template, save_template
from minigpt.data.tokenizer import load_tokenizer

_DTYPES = {"keep": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class MergeConfig:
    """Adds a LoRA adapter to the weights it was trained on."""

    checkpoint: str
    """A run with --lora-rank (its best checkpoint), or one of its checkpoints."""
    out: str
    """The directory to make."""
    dtype: str = "keep"
    """Of the weights: keep (the base's), fp32, bf16 or fp16."""

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise UsageError("--dtype is %r" % self.dtype, nearest(self.dtype, _DTYPES))


def merge_command(config: MergeConfig) -> None:
    """Writes the merged checkpoint, a tensor at a time, and says where."""
    directory, out = resolve(config.checkpoint), Path(config.out)
    if read_adapter(directory) is None:
        raise UsageError("%s has no adapter" % directory, "it is a whole checkpoint as it is")
    require_free(out, source=directory)
    template = load_template(directory)
    with ExitStack() as stack, atomic_directory(out) as partial:
        dtype = _DTYPES[config.dtype]
        weights = open_weights(directory, stack, dtype)
        specs = [TensorSpec(n, dtype or each.dtype, each.shape) for n, each in weights.items()]
        records = write_model(
            partial, read_config(directory), specs, lambda name: weights[name].read().to(dtype)
        )
        load_tokenizer(directory).save(partial)
        if template is not None:
            save_template(partial, template)
        manifest.write_manifest(partial, records)
    print("merged   %s into %s" % (directory, out))
