"""A model on disk: `config.json` and `model.safetensors`, or shards of it with an index.

Names are the module tree's own (`blocks.3.attention.qkv.weight`), matrices lie as nn.Linear has
them ([out, in]), and a tied head is stored once, as the token embedding.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple, Union

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from minigpt.checkpoint import manifest
from minigpt.checkpoint.run_files import resolve
from minigpt.checkpoint.writer import INDEX, Fetch, FileRecord, TensorSpec, write_sharded
from minigpt.errors import CheckpointError
from minigpt.files import write_json
from minigpt.model.gpt import GPT, GPTConfig

CONFIG = "config.json"
SHARD_BYTES = 5_000_000_000


def write_model(
    directory: Path,
    config: GPTConfig,
    specs: List[TensorSpec],
    fetch: Fetch,
    shard_bytes: Optional[int] = SHARD_BYTES,
) -> Dict[str, FileRecord]:
    """Writes `config.json` and the weights into `directory`; returns what the manifest needs of
    them.
    """
    records = write_sharded(directory, specs, fetch, shard_bytes)
    write_json(directory / CONFIG, asdict(config))
    return records


def save_model(directory: Path, model: GPT) -> Dict[str, FileRecord]:
    """`write_model` of a model in memory, each tensor leaving its device alone."""
    tensors = dict(model.named_parameters())
    specs = [TensorSpec.of(name, tensor) for name, tensor in tensors.items()]
    return write_model(directory, model.config, specs, tensors.__getitem__)


def load_model(
    path: Union[str, Path],
    device: Union[str, torch.device] = "cpu",
    dtype: Optional[torch.dtype] = None,
    verify: bool = True,
) -> GPT:
    """The model of a checkpoint directory, or of a run directory's best checkpoint, in eval mode.

    `dtype` None keeps the file's. `verify` compares every file with the manifest's sha256 first.
    One tensor at a time goes from the mapped file to the device. CheckpointError for anything
    missing, damaged or of another shape.
    """
    directory = resolve(path)
    manifest.check(directory, verify)
    model = GPT(read_config(directory), device=torch.device("meta"))
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, tensor in read_tensors(directory, weight_files(directory)):
        if expected.pop(name, None) != tuple(tensor.shape):
            raise CheckpointError(
                "%s: tensor %s %s does not belong to this shape"
                % (directory, name, [*tensor.shape]),
                "its config.json is of another model",
            )
        _assign(model, name, tensor.to(device, dtype or tensor.dtype, copy=True))
    if expected:
        raise CheckpointError(
            "%s lacks tensor %s" % (directory, min(expected)), "convert or save it again"
        )
    return model.eval()


def read_config(directory: Path) -> GPTConfig:
    """The GPTConfig in `config.json`; CheckpointError when it has other fields."""
    path = directory / CONFIG
    values = manifest.read_json(path)
    unknown = set(values) - {field.name for field in fields(GPTConfig)}
    if unknown or "activation" not in values:
        what = (
            "has unknown fields %s" % sorted(unknown) if unknown else "does not say its activation"
        )
        raise CheckpointError(
            "%s %s" % (path, what),
            "convert a Hugging Face model with: python convert_hf.py %s" % directory,
        )
    return GPTConfig(**values)


def weight_files(directory: Path) -> List[str]:
    """The names of the files that hold the weights, in order."""
    if not (directory / INDEX).exists():
        return ["model.safetensors"]
    names = manifest.read_json(directory / INDEX)["weight_map"].values()
    return sorted(set(names))


def read_tensors(directory: Path, names: List[str]) -> Iterator[Tuple[str, Tensor]]:
    """(name, tensor) of each tensor in the safetensors files `names`; the tensors are views of
    the mapped file.
    """
    for file_name in names:
        path = directory / file_name
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is no dict
                    yield name, file.get_tensor(name)
        except (SafetensorError, FileNotFoundError) as error:
            raise CheckpointError(
                "%s cannot be read: %s" % (path, error), "use another checkpoint"
            ) from error


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    # load_state_dict(assign=True) does this from PyTorch 2.1 on; a parameter on "meta" can only
    # be replaced.
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Parameter(tensor))
