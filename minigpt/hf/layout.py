"""A directory in Hugging Face's layout: its weight files, opened, and its tensors' names and ours.

One table has the names, and both directions derive from it. Theirs keeps the four matrices of a
block as Conv1D, [in, out]; ours are nn.Linear, [out, in]. All else is alike on both sides.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from torch import Tensor

from minigpt.base.errors import CheckpointError
from minigpt.base.files import read_object
from minigpt.checkpoint.safetensors import LazyTensor, open_safetensors, shard_names
from minigpt.hf.torch_pickle import open_torch_file

# A single file, and the index of several, in the order in which they are looked for; safetensors
# first, since they need no pickle.
WEIGHT_FILES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
AGAIN = "get it again, from where the weights are"

# blocks.3.MODULE.weight is transformer.h.3.MODULE.weight; outside of the blocks nothing stands
# before the module.
_THEIRS = {
    "token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f",
    "attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
}  # fmt: skip
HEAD, EMBEDDING = "head.weight", "token_embedding.weight"

# The causal mask, which old versions saved with the weights; none of them, but a buffer.
MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
# What GPT-2's own class and others that wrap a model put into the names of its tensors.
_WRAPPERS = (
    "transformer", "module", "model", "_orig_mod", "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)  # fmt: skip


def unwrapped(theirs: str) -> str:
    """module._orig_mod.transformer.wte.weight -> wte.weight"""
    return ".".join(part for part in theirs.split(".") if part not in _WRAPPERS)


def to_theirs(ours: str) -> str:
    """blocks.3.attention.qkv.weight -> transformer.h.3.attn.c_attn.weight"""
    if ours == HEAD:
        return "lm_head.weight"
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


def turned(ours: str, tensor: LazyTensor) -> LazyTensor:
    """`other_layout` of a tensor that is not here yet."""
    shape = other_shape(ours, tensor.shape)
    return LazyTensor(tensor.dtype, shape, lambda: other_layout(ours, tensor.read()))


def open_weights(
    directory: Path, stack: ExitStack, weights: Optional[str] = None
) -> Dict[str, LazyTensor]:
    """Every tensor by its name, without what wraps it, none read yet; the files stay open as long
    as `stack`. `weights` names a single file that is called otherwise, in the directory or from
    here. CheckpointError for one that cannot be read, and for a name that comes twice.
    """
    tensors: Dict[str, LazyTensor] = {}
    for path in _weight_files(directory, weights):
        _require_content(path)
        safe = path.suffix == ".safetensors"
        found = open_safetensors(path, stack) if safe else open_torch_file(path)
        for name, tensor in found.items():
            if tensors.setdefault(unwrapped(name), tensor) is not tensor:
                what = f"{path}: {name} comes twice"
                raise CheckpointError(what, "get the files again, or check where they are from")
    return tensors


def _require_content(path: Path) -> None:
    """CheckpointError for what git leaves in the place of a large file."""
    if not path.is_file():  # opening a pipe would wait for ever
        return
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            what = f"{path} is git-lfs's pointer to the file, and not the file"
            raise CheckpointError(what, "get it with: git lfs pull")


def _weight_files(directory: Path, weights: Optional[str]) -> List[Path]:
    if weights is not None:
        paths = [path for path in (directory / weights, Path(weights)) if path.is_file()]
        if not paths:
            raise CheckpointError(f"there is no {directory / weights}", "name one with --weights")
        return paths[:1]
    for single, index in WEIGHT_FILES:  # the index of older shards may lie beside a single file
        if (directory / single).is_file():
            return [directory / single]
        if (directory / index).is_file():
            return [directory / name for name in shard_names(directory / index, AGAIN)]
    what = f"{directory} has neither model.safetensors nor pytorch_model.bin, nor an index of such"
    raise CheckpointError(what, "name a directory with weights, or the file with --weights")


def read_json(path: Path) -> Dict[str, Any]:
    """A JSON object of theirs; CheckpointError when it is none."""
    _require_content(path)
    return read_object(path, CheckpointError, AGAIN)
