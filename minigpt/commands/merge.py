"""`python -m minigpt merge`: a LoRA checkpoint becomes a whole one that needs no base."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from minigpt.base.errors import UsageError
from minigpt.base.files import require_free
from minigpt.checkpoint import model_files
from minigpt.checkpoint.manifest import write_checkpoint
from minigpt.checkpoint.model_files import DTYPES
from minigpt.checkpoint.run_files import resolve
from minigpt.commands.options import MergeConfig
from minigpt.data.template import load_template
from minigpt.data.tokenizer import load_tokenizer


def merge_command(config: MergeConfig) -> None:
    """Writes the merged checkpoint, a tensor at a time, and says where."""
    directory, out = resolve(config.checkpoint), Path(config.out)
    if model_files.read_adapter(directory) is None:
        raise UsageError(f"{directory} has no adapter", "it is a whole checkpoint as it is")
    require_free(out, source=directory)
    shape, dtype = model_files.read_config(directory), DTYPES[config.dtype]
    tokenizer, template = load_tokenizer(directory), load_template(directory)
    with ExitStack() as stack:
        weights = model_files.open_weights(directory, stack, dtype)
        merged = {name: tensor.to(dtype) for name, tensor in weights.items()}
        write = partial(model_files.write_model, config=shape, tensors=merged)
        write_checkpoint(out, write, tokenizer, template)
    print(f"merged   {directory} into {out}")
