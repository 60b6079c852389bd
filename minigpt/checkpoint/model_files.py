"""A model on disk: `config.json` and `model.safetensors`, or shards of it with an index.

Names are the module tree's own (`blocks.3.attention.qkv.weight`), matrices lie as nn.Linear has
them ([out, in]), and a tied head is stored once, as the token embedding.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Dict, List, Optional, Union

import torch
from torch import Tensor, nn

from minigpt.checkpoint import manifest
from minigpt.checkpoint.adapter import WEIGHTS, read_adapter
from minigpt.checkpoint.lazy import LazyTensor, open_safetensors
from minigpt.checkpoint.run_files import resolve
from minigpt.checkpoint.writer import INDEX, Fetch, FileRecord, TensorSpec, write_sharded
from minigpt.errors import CheckpointError
from minigpt.files import write_json
from minigpt.model.gpt import GPT, GPTConfig
from minigpt.model.lora import LoRAConfig, adapter_tensors, add_lora, merged

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
    missing, damaged or of another shape. A LoRA checkpoint comes merged with its base.
    """
    directory = resolve(path)
    model = GPT(read_config(directory), device=torch.device("meta"))
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    with ExitStack() as stack:
        for name, tensor in open_weights(directory, stack, verify, dtype).items():
            if expected.pop(name, None) != tensor.shape:
                raise CheckpointError(
                    "%s: tensor %s does not belong to this model" % (directory, name),
                    "check its config.json",
                )
            # Copied, so that no parameter stays tied to the file.
            kind = dtype or tensor.dtype
            _assign(model, name, tensor.read().to(device=device, dtype=kind, copy=True))
    if expected:
        raise CheckpointError(
            "%s has no tensor %s" % (directory, sorted(expected)[0]), "use another checkpoint"
        )
    return model.eval()


def load_adapted(
    directory: Path,
    device: Union[str, torch.device] = "cpu",
    dtype: Optional[torch.dtype] = None,
    verify: bool = True,
) -> GPT:
    """The base of a LoRA checkpoint with its adapter on it, unmerged, to go on training."""
    adapter = read_adapter(directory)
    assert adapter is not None
    manifest.check(directory, verify)
    model = add_lora(load_model(adapter.base, device, dtype, verify), adapter.lora)
    with ExitStack() as stack:
        thin = open_safetensors(directory / WEIGHTS, stack)
        for name, parameter in adapter_tensors(model).items():
            if name not in thin or thin[name].shape != parameter.shape:
                raise CheckpointError(
                    "%s has no fitting tensor %s" % (directory, name), "use another checkpoint"
                )
            parameter.data.copy_(thin[name].read())
    return model


def open_weights(
    directory: Path,
    stack: ExitStack,
    verify: bool = True,
    dtype: Optional[torch.dtype] = None,
) -> Dict[str, LazyTensor]:
    """The weights of a checkpoint by name, none read yet. Those of a LoRA checkpoint are its
    base's, and each matrix with an adapter is merged with it when it is read, in float32, and then
    has `dtype` (None: the base's, so of a 16-bit base the sum is rounded).
    """
    manifest.check(directory, verify)
    adapter = read_adapter(directory)
    if adapter is None:
        weights: Dict[str, LazyTensor] = {}
        for name in weight_files(directory):
            weights.update(open_safetensors(directory / name, stack))
        return weights
    weights = open_weights(adapter.base, stack, verify, dtype)
    thin = open_safetensors(directory / WEIGHTS, stack)
    for name in thin:
        matrix, _, leaf = name.rpartition(".")
        if leaf == "a":
            base = weights[matrix + ".weight"]
            pair = thin[name], thin[matrix + ".b"]
            kind = dtype or base.dtype
            read = partial(_merge, base, *pair, adapter.lora, kind)
            weights[matrix + ".weight"] = LazyTensor(kind, base.shape, read)
    return weights


def _merge(
    base: LazyTensor, a: LazyTensor, b: LazyTensor, config: LoRAConfig, dtype: torch.dtype
) -> Tensor:
    return merged(base.read(), a.read(), b.read(), config).to(dtype)


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


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    # load_state_dict(assign=True) does this from PyTorch 2.1 on; a parameter on "meta" can only
    # be replaced.
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Parameter(tensor))
