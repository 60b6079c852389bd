"""A model on disk: `config.json` and `model.safetensors`, or shards of it with an index.

Names are the module tree's own (`blocks.3.attention.qkv.weight`), matrices lie as nn.Linear has
them ([out, in]), and a tied head is stored once, as the token embedding.

A LoRA checkpoint has `adapter.safetensors` instead, the thin matrices, and `adapter.json`: how they
are applied, and where the base is (from here, in case both move; and on this machine, in case only
this does), with its sha256. A base that a run may remove one day, because it is one of its
checkpoints, is kept in the adapter's own run, as links to its files where the file system can.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Dict, Mapping, Optional, Union

import torch
from torch import Tensor, nn

from minigpt.base.errors import CheckpointError, UsageError
from minigpt.base.files import as_dataclass, atomic_directory, write_json
from minigpt.base.text import word
from minigpt.checkpoint import manifest, safetensors
from minigpt.checkpoint.run_files import resolve
from minigpt.checkpoint.safetensors import FileRecord, LazyTensor, in_memory, open_safetensors
from minigpt.model.config import GPTConfig, LoRAConfig
from minigpt.model.gpt import GPT
from minigpt.model.int8 import Int8Linear, quantize
from minigpt.model.lora import adapter_tensors, add_lora, merged

CONFIG, ADAPTER, WEIGHTS = "config.json", "adapter.json", "adapter.safetensors"
_BASE = "base"  # where a run keeps the base of its adapter
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
    return write_model(directory, model.config, in_memory(dict(model.named_parameters())))


def load_model(
    path: Union[str, Path], device: Union[str, torch.device] = "cpu",
    dtype: Optional[torch.dtype] = None, int8: bool = False,
) -> GPT:  # fmt: skip
    """The model of a checkpoint directory, or of a run directory's best checkpoint, in eval mode.

    `dtype` None keeps the file's, of several the widest. `int8`: the matrices of the blocks are
    held in 8 bits (model/int8.py), and at no time more than one of them in full. Every file is
    first compared with the manifest's sha256, then one tensor at a time goes from the mapped file
    to the device.
    CheckpointError for anything missing, damaged or of another shape. A LoRA checkpoint comes
    merged with its base.
    """
    directory = resolve(path)
    with ExitStack() as stack:
        weights = open_weights(directory, stack, dtype)
        model = GPT(read_config(directory), device=torch.device("meta"))
        model = quantize(model) if int8 else model
        kind = dtype or reduce(torch.promote_types, [tensor.dtype for tensor in weights.values()])
        for name, tensor in weights.items():
            # Copied, so that no parameter stays tied to the file.
            weight = nn.Parameter(tensor.read().to(device=device, dtype=kind, copy=True))
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            if isinstance(module, Int8Linear) and leaf == "weight":
                module.hold(weight)
            else:  # on "meta" it can only be replaced; load_state_dict does so from PyTorch 2.1
                setattr(module, leaf, weight)
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
    adapter, weights = read_adapter(directory), {}
    if adapter is not None:
        weights = open_weights(adapter.base, stack, dtype)
    else:
        for path in sorted(directory.glob("model*.safetensors")):  # the manifest has no others
            weights.update(open_safetensors(path, stack))
    config = read_config(directory)
    if config.n_layer > len(weights):  # before so many are built
        what = f"{directory} has {len(weights)} tensors for {config.n_layer} layers"
        raise CheckpointError(what, "use another checkpoint")
    model = GPT(config, device=torch.device("meta"))
    _checked(directory, weights, dict(model.named_parameters()))
    if adapter is None:
        return weights
    expected = adapter_tensors(add_lora(model, adapter.lora))
    thin = open_adapter(directory, expected, stack)
    for matrix in {name.rpartition(".")[0] for name in thin}:
        base, a, b = weights[matrix + ".weight"], thin[matrix + ".a"], thin[matrix + ".b"]
        whole = _merged(base, a, b, adapter.lora)
        weights[matrix + ".weight"] = whole.to(dtype or base.dtype)
    return weights


def _merged(base: LazyTensor, a: LazyTensor, b: LazyTensor, config: LoRAConfig) -> LazyTensor:
    def read() -> Tensor:
        return merged(base.read(), a.read(), b.read(), config)

    return LazyTensor(torch.float32, base.shape, read)


def open_adapter(
    directory: Path, expected: Mapping[str, Tensor], stack: ExitStack
) -> Dict[str, LazyTensor]:
    """A LoRA checkpoint's thin matrices by name; CheckpointError unless they are `expected`."""
    return _checked(directory, open_safetensors(directory / WEIGHTS, stack), expected)


def _checked(
    directory: Path, found: Dict[str, LazyTensor], expected: Mapping[str, Tensor]
) -> Dict[str, LazyTensor]:
    """What was `found`; CheckpointError unless it is what a model expects, by name and shape."""
    there = {(n, tuple(t.shape), t.dtype.is_floating_point) for n, t in found.items()}
    wanted = {(name, tuple(tensor.shape), True) for name, tensor in expected.items()}
    wrong = [name for name, *_ in sorted(there ^ wanted)]
    if wrong:
        what = "does not belong to this model" if wrong[0] in found else "is missing"
        raise CheckpointError(f"{directory}: tensor {wrong[0]} {what}", "use another checkpoint")
    return found


def read_config(directory: Path) -> GPTConfig:
    """The GPTConfig in `config.json`; CheckpointError when it has other fields."""
    values = manifest.read_json(directory / CONFIG)
    try:
        if "activation" not in values:
            raise ValueError("it does not say its activation")
        return as_dataclass(GPTConfig, values)
    except (ValueError, UsageError) as error:
        fix = f"convert a Hugging Face model with: python convert_hf.py {word(directory)}"
        what = f"{directory / CONFIG}: {getattr(error, 'what', error)}"
        raise CheckpointError(what, fix) from None


@dataclass(frozen=True)
class Adapter:
    """An adapter's settings and the checkpoint it was trained on."""

    lora: LoRAConfig
    base: Path
    base_sha256: str  # of the base's manifest, which has those of its files

    @classmethod
    def on(cls, base: Path, lora: LoRAConfig) -> Adapter:
        """A new adapter on the checkpoint `base`."""
        return cls(lora, base.resolve(), manifest.sha256(base / manifest.NAME))


def write_adapter(directory: Path, model: GPT, adapter: Adapter) -> Dict[str, FileRecord]:
    """Writes both files, and the model's shape; returns what the manifest needs of the weights."""
    places = [os.path.relpath(str(adapter.base), str(directory.resolve())), str(adapter.base)]
    where = {"base": places, "base_sha256": adapter.base_sha256}
    write_json(directory / ADAPTER, {**asdict(adapter.lora), **where})
    write_json(directory / CONFIG, asdict(model.config))
    thin = in_memory(adapter_tensors(model))
    return {WEIGHTS: safetensors.write_safetensors(directory / WEIGHTS, thin)}


def keep_base(adapter: Adapter, run: Path) -> Adapter:
    """The adapter on a base that stays: another run's checkpoint is linked or copied into `run`."""
    if adapter.base.parent.name != "checkpoints" or not adapter.base.name.startswith("step_"):
        return adapter
    kept = run.resolve() / _BASE
    with atomic_directory(kept) as partial:
        _link(adapter.base, partial)
    return replace(adapter, base=kept)


def _link(base: Path, place: Path) -> None:
    """The files of a checkpoint in `place`, and with them those of the one it is an adapter for."""
    place.mkdir(exist_ok=True)
    for path in filter(Path.is_file, base.iterdir()):
        try:
            os.link(str(path), str(place / path.name))
        except OSError:
            shutil.copy2(str(path), str(place / path.name))
    below = read_adapter(base)
    if below is not None:
        _link(below.base, place / _BASE)


def read_adapter(directory: Path) -> Optional[Adapter]:
    """The Adapter of a checkpoint, None of a plain one; CheckpointError when its base is gone."""
    if not (directory / ADAPTER).exists():
        return None
    values = manifest.read_json(directory / ADAPTER)
    try:
        places = [(directory / place).resolve() for place in (_BASE, *values.pop("base"))]
        digest = str(values.pop("base_sha256"))
        lora = LoRAConfig(**{**values, "targets": tuple(values["targets"])})
    except (KeyError, TypeError, ValueError, UsageError) as error:
        what = f"{directory / ADAPTER} is not as it was written: {error!r:.200}"
        raise CheckpointError(what, "use another checkpoint") from None
    there = [base for base in places if os.path.isfile(base / manifest.NAME)]
    for base in there:
        if manifest.sha256(base / manifest.NAME) == digest:
            return Adapter(lora, base, digest)
    what = f"an adapter for {places[-1]}, which is {'another one by now' if there else 'not there'}"
    fix = "put that back; an adapter goes anywhere once it is merged: python -m minigpt merge"
    raise CheckpointError(f"{directory} is {what}", fix)
