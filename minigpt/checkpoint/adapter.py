"""A LoRA checkpoint is small: the adapter's tensors, and which checkpoint they belong to.

adapter.safetensors  the thin matrices      adapter.json  how they are applied, and the base's
path and sha256
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, Optional

from minigpt.checkpoint import manifest
from minigpt.checkpoint.writer import FileRecord, TensorSpec, write_safetensors
from minigpt.errors import CheckpointError
from minigpt.files import write_json
from minigpt.model.gpt import GPT
from minigpt.model.lora import LoRAConfig, adapter_tensors

FILE, WEIGHTS = "adapter.json", "adapter.safetensors"


@dataclass(frozen=True)
class Adapter:
    """An adapter's settings and the checkpoint it was trained on."""

    lora: LoRAConfig
    base: Path
    base_sha256: str  # of the base's manifest, which has those of its files

    @classmethod
    def on(cls, base: Path, lora: LoRAConfig) -> Adapter:
        """A new adapter on the checkpoint `base`."""
        base = base.resolve()
        return cls(lora, base, manifest.sha256(base / manifest.NAME))


def write_adapter(directory: Path, model: GPT, adapter: Adapter) -> Dict[str, FileRecord]:
    """Writes both files, and the model's shape; returns what the manifest needs of them."""
    tensors = adapter_tensors(model)
    specs = [TensorSpec.of(name, tensor) for name, tensor in tensors.items()]
    values = {"base": str(adapter.base), "base_sha256": adapter.base_sha256}
    write_json(directory / FILE, {**asdict(adapter.lora), **values})
    write_json(directory / "config.json", asdict(model.config))
    return {WEIGHTS: write_safetensors(directory / WEIGHTS, specs, tensors.__getitem__)}


def read_adapter(directory: Path) -> Optional[Adapter]:
    """The Adapter of a checkpoint, None of a plain one; CheckpointError when its base is gone."""
    if not (directory / FILE).exists():
        return None
    values = manifest.read_json(directory / FILE)
    base, digest = Path(values.pop("base")), str(values.pop("base_sha256"))
    path = base / manifest.NAME
    if not path.is_file() or manifest.sha256(path) != digest:
        raise CheckpointError(
            "%s is an adapter for %s, which is %s"
            % (directory, base, "another one by now" if path.is_file() else "not there"),
            "put that back; an adapter goes anywhere once it is merged: python -m minigpt merge",
        )
    values["targets"] = tuple(values["targets"])
    return Adapter(LoRAConfig(**values), base, digest)
