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
from minigpt.checkpoint.safetensors import LazyTensor, open_safetensors
from minigpt.hf.torch_pickle import open_torch_file

# A single file, and the index of several, in the order in which they are looked for; safetensors
# first, since they need no pickle.
WEIGHT_FILES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)

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


# What wrappers of a model put into the names of its tensors.
_WRAPPED = re.compile(
    r"^(?:(?:module|model)\.)+|_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\."
)


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


def open_weights(
    directory: Path, stack: ExitStack, weights: Optional[str] = None
) -> Dict[str, LazyTensor]:
    """Every tensor by its name, none read yet; the files stay open as long as `stack`. `weights`
    names a single file that is called otherwise, in the directory or from here. CheckpointError
    for one that cannot be read, and for a name that comes twice.
    """
    if weights is None:
        paths = [directory / name for name in _weight_files(directory)]
    else:
        paths = [path for path in (directory / weights, Path(weights)) if path.is_file()][:1]
        if not paths:
            raise CheckpointError(
                f"there is no {directory / weights}", "name a file with --weights"
            )
    tensors: Dict[str, LazyTensor] = {}
    for path in paths:
        require_content(path)
        safe = path.suffix == ".safetensors"
        found = open_safetensors(path, stack) if safe else open_torch_file(path)
        opened = {unwrapped(name): tensor for name, tensor in found.items()}
        twice = sorted(tensors.keys() & opened.keys())
        if twice:
            raise CheckpointError(f"{path}: {twice[0]} comes twice", "get the shards again")
        tensors.update(opened)
    return tensors


def unwrapped(theirs: str) -> str:
    """module._orig_mod.transformer.wte.weight -> transformer.wte.weight"""
    name = _WRAPPED.sub("", theirs)
    return name if name == theirs else unwrapped(name)


def require_content(path: Path) -> None:
    """CheckpointError for what git leaves in the place of a large file."""
    if not path.is_file():  # opening a pipe would wait for ever
        return
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            what = f"{path} is git-lfs's pointer to the file, and not the file"
            raise CheckpointError(what, "get it with: git lfs pull")


def _weight_files(directory: Path) -> List[str]:
    for single, index in WEIGHT_FILES:  # the index of older shards may lie beside a single file
        if (directory / single).is_file():
            return [single]
        if (directory / index).is_file():
            return shard_names(directory / index)
    what = f"{directory} has neither model.safetensors nor pytorch_model.bin, nor an index of such"
    raise CheckpointError(what, "name a directory with weights, or the file with --weights")


def shard_names(index: Path) -> List[str]:
    """The files that an index names. It comes from outside, so only files beside it will do."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index} has no weight_map", "get it again")
    return [_beside(name, index) for name in sorted({str(name) for name in names.values()})]


def _beside(name: str, where: Path) -> str:
    if Path(name).name != name or name in ("", ".", ".."):
        what = f"{where} has no proper file names: {name!r} names a file outside"
        raise CheckpointError(what, "do not trust it")
    return name


def read_json(path: Path) -> Dict[str, Any]:
    """A JSON object of theirs; CheckpointError when it is none."""
    require_content(path)
    return read_object(path, CheckpointError, "get it again, from where the weights are")
