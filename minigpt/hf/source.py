"""A directory in Hugging Face's layout, opened: every tensor by name, none of them read yet."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, List, Optional

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


def find_files(directory: Path, weights: Optional[str] = None) -> List[Path]:
    """The weight files of `directory`, in order; `weights` names one that is called otherwise."""
    names = _names(directory) if weights is None else [_beside(weights, directory)]
    paths = [directory / name for name in names]
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing", "get it again")
    return paths


def _names(directory: Path) -> List[str]:
    for single, index in WEIGHT_FILES:  # the index of older shards may lie beside a single file
        if (directory / single).is_file():
            return [single]
        if (directory / index).is_file():
            return shard_names(directory / index)
    raise CheckpointError(
        f"{directory} has neither model.safetensors nor pytorch_model.bin, nor an index of such",
        "name a directory with weights, or the file with --weights",
    )


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
    return read_object(path, CheckpointError, "get it again, from where the weights are")


def open_tensors(paths: List[Path], stack: ExitStack) -> Dict[str, LazyTensor]:
    """The tensors of all `paths`, which stay open as long as `stack`. No name may come twice."""
    tensors: Dict[str, LazyTensor] = {}
    for path in paths:
        safe = path.suffix == ".safetensors"
        opened = open_safetensors(path, stack) if safe else open_torch_file(path)
        for name, tensor in opened.items():
            if name in tensors:
                raise CheckpointError(f"{path}: {name} comes twice", "get the shards again")
            tensors[name] = tensor
    return tensors
