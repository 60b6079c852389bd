"""A directory in Hugging Face's layout, opened: every tensor by name, none of them read yet."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, List, Optional

from minigpt.checkpoint.lazy import LazyTensor, open_safetensors
from minigpt.errors import CheckpointError
from minigpt.hf.torch_pickle import open_torch_file

# In the order in which they are looked for; safetensors first, since they need no pickle.
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEXED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def find_files(directory: Path, weights: Optional[str] = None) -> List[Path]:
    """The weight files of `directory`, in order; `weights` names one that is called otherwise."""
    if weights is not None:
        return _present(directory, [weights])
    for single, index in zip(_SINGLE, _INDEXED):
        if (directory / index).is_file():
            return _present(directory, _indexed(directory / index))
        if (directory / single).is_file():
            return [directory / single]
    raise CheckpointError(
        "%s has none of %s" % (directory, ", ".join((*_SINGLE, *_INDEXED))),
        "name a directory with weights, or the file with --weights",
    )


def _indexed(path: Path) -> List[str]:
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError("%s has no weight_map" % path, "get it again")
    return sorted({str(name) for name in names.values()})


def _present(directory: Path, names: List[str]) -> List[Path]:
    for name in names:
        # An index comes from outside: it may name files beside it and nothing else.
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(
                "%s names a file outside: %r" % (directory, name), "do not trust it"
            )
        if not (directory / name).is_file():
            raise CheckpointError("%s is missing" % (directory / name), "get it again")
    return [directory / name for name in names]


def read_json(path: Path) -> Dict[str, Any]:
    """A JSON object; CheckpointError when it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError("%s is missing" % path, "get it beside the weights") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError("%s cannot be read: %s" % (path, error), "get it again") from None
    if not isinstance(value, dict):
        raise CheckpointError("%s is no JSON object" % path, "get it again")
    return value


def open_tensors(paths: List[Path], stack: ExitStack) -> Dict[str, LazyTensor]:
    """The tensors of all `paths`; the files stay open as long as `stack`. A name may come only
    once.
    """
    tensors: Dict[str, LazyTensor] = {}
    for path in paths:
        opened = _torch(path) if _is_torch(path) else open_safetensors(path, stack)
        for name, tensor in opened.items():
            if name in tensors:
                raise CheckpointError("%s: %s comes twice" % (path, name), "get the shards again")
            tensors[name] = tensor
    return tensors


def _is_torch(path: Path) -> bool:
    return path.suffix != ".safetensors"


def _torch(path: Path) -> Dict[str, LazyTensor]:
    file = open_torch_file(path)
    return {
        name: LazyTensor(ref.dtype, ref.shape, lambda name=name: file.read(name))  # type: ignore[misc]
        for name, ref in file.tensors.items()
    }
