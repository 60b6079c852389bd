"""A model on disk: `config.json` and `model.safetensors`, or shards of it with an index.

Names are the module tree's own (`blocks.3.attention.qkv.weight`), matrices lie as nn.Linear has
them ([out, in]), and a tied head is stored once, as the token embedding.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Dict, Mapping, Optional, Union

import torch
from torch import Tensor, nn

from minigpt.base.errors import CheckpointError
from minigpt.base.files import as_dataclass, write_json
from minigpt.checkpoint import manifest, safetensors
from minigpt.checkpoint.adapter import WEIGHTS, read_adapter
from minigpt.checkpoint.run_files import resolve
from minigpt.checkpoint.safetensors import FileRecord, LazyTensor
from minigpt.model.gpt import GPT, GPTConfig
from minigpt.model.lora import LoRAConfig, adapter_tensors, add_lora, merged

CONFIG = "config.json"
SHARD_BYTES = 5_000_000_000
# What the weights may be cast to on their way from one directory to another.
DTYPES = {"keep": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def write_model(
    directory: Path, config: GPTConfig, tensors: Mapping[str, LazyTensor],
    shard_bytes: Optional[int] = SHARD_BYTES,
) -> Dict[str, FileRecord]:  # fmt: skip
    """Writes `config.json` and the weights; returns what the manifest needs of the latter."""
    write_json(directory / CONFIG, asdict(config))
    return safetensors.write_sharded(directory, tensors, shard_bytes)


def save_model(directory: Path, model: GPT) -> Dict[str, FileRecord]:
    """`write_model` of a model in memory, each tensor leaving its device alone."""
    tensors = safetensors.in_memory(dict(model.named_parameters()))
    return write_model(directory, model.config, tensors)


def load_model(
    path: Union[str, Path], device: Union[str, torch.device] = "cpu",
    dtype: Optional[torch.dtype] = None,
) -> GPT:  # fmt: skip
    """The model of a checkpoint directory, or of a run directory's best checkpoint, in eval mode.

    `dtype` None keeps the file's. Every file is first compared with the manifest's sha256, then one
    tensor at a time goes from the mapped file to the device. CheckpointError for anything missing,
    damaged or of another shape. A LoRA checkpoint comes merged with its base.
    """
    directory = resolve(path)
    with ExitStack() as stack:
        weights = open_weights(directory, stack, dtype)
        model = GPT(read_config(directory), device=torch.device("meta"))
        for name, tensor in weights.items():
            # Copied, so that no parameter stays tied to the file.
            kind = dtype or tensor.dtype
            weight = nn.Parameter(tensor.read().to(device=device, dtype=kind, copy=True))
            # A parameter on "meta" can only be replaced; load_state_dict does so from PyTorch 2.1.
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, weight)
    return model.eval()


def load_adapted(directory: Path, device: torch.device, dtype: torch.dtype) -> GPT:
    """The base of a LoRA checkpoint with its adapter on it, unmerged, to go on training."""
    adapter = read_adapter(directory)
    assert adapter is not None
    manifest.check(directory)
    model = add_lora(load_model(adapter.base, device, dtype), adapter.lora)
    parameters = adapter_tensors(model)
    with ExitStack() as stack:
        for name, tensor in open_adapter(directory, parameters, stack).items():
            parameters[name].data.copy_(tensor.read())
    return model


def open_weights(
    directory: Path, stack: ExitStack, dtype: Optional[torch.dtype] = None
) -> Dict[str, LazyTensor]:
    """All weights of the checkpoint's model by name, none read yet; CheckpointError as by
    `load_model`. Those of a LoRA checkpoint are its base's, and each matrix with an adapter is
    merged with it when it is read, in float32, and then has `dtype` (None: the base's, so of a
    16-bit base the sum is rounded).
    """
    manifest.check(directory)
    adapter = read_adapter(directory)
    if adapter is None:
        weights = safetensors.open_sharded(directory, stack)
    else:
        weights = open_weights(adapter.base, stack, dtype)
    config = read_config(directory)
    if config.n_layer > len(weights):  # before so many are built
        what = f"{directory} has {len(weights)} tensors for {config.n_layer} layers"
        raise CheckpointError(what, "use another checkpoint")
    model = GPT(config, device=torch.device("meta"))
    _check_shapes(directory, weights, dict(model.named_parameters()))
    if adapter is None:
        return weights
    thin = open_adapter(directory, adapter_tensors(add_lora(model, adapter.lora)), stack)
    for name in thin:
        matrix, _, leaf = name.rpartition(".")
        if leaf == "a":
            base, a, b = weights[matrix + ".weight"], thin[name], thin[matrix + ".b"]
            kind = dtype or base.dtype
            read = partial(_merged, base, a, b, adapter.lora, kind)
            weights[matrix + ".weight"] = LazyTensor(kind, base.shape, read)
    return weights


def _merged(
    base: LazyTensor, a: LazyTensor, b: LazyTensor, config: LoRAConfig, dtype: torch.dtype
) -> Tensor:
    return merged(base.read(), a.read(), b.read(), config).to(dtype)


def open_adapter(
    directory: Path, expected: Mapping[str, Tensor], stack: ExitStack
) -> Dict[str, LazyTensor]:
    """A LoRA checkpoint's thin matrices by name; CheckpointError unless they are `expected`."""
    thin = safetensors.open_safetensors(directory / WEIGHTS, stack)
    _check_shapes(directory, thin, expected)
    return thin


def _check_shapes(
    directory: Path, found: Mapping[str, LazyTensor], expected: Mapping[str, Tensor]
) -> None:
    """CheckpointError unless what was found is what the model expects, by name and shape."""
    there = {(n, tuple(t.shape)) for n, t in found.items() if t.dtype.is_floating_point}
    wanted = {(name, tuple(tensor.shape)) for name, tensor in expected.items()}
    wrong = [name for name, _ in sorted(there ^ wanted)]
    if wrong:
        what = "does not belong to this model" if wrong[0] in found else "is missing"
        raise CheckpointError(f"{directory}: tensor {wrong[0]} {what}", "use another checkpoint")


def read_config(directory: Path) -> GPTConfig:
    """The GPTConfig in `config.json`; CheckpointError when it has other fields."""
    path = directory / CONFIG
    values = manifest.read_json(path)
    unknown = set(values) - {field.name for field in fields(GPTConfig)}
    if unknown or "activation" not in values:
        what = f"has unknown fields {sorted(unknown)}" if unknown else "does not say its activation"
        fix = f"convert a Hugging Face model with: python convert_hf.py {directory}"
        raise CheckpointError(f"{path} {what}", fix)
    try:
        return as_dataclass(GPTConfig, values)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}", "use another checkpoint") from None
