"""A LoRA checkpoint is small: the adapter's tensors, and which checkpoint they belong to.

adapter.safetensors  the thin matrices      adapter.json  how they are applied, where the base is
(from here, in case both move; and on this machine, in case only this does) and its sha256

A base that a run may remove one day, because it is one of its checkpoints, is kept in the adapter's
own run, as links to its files where the file system can.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Dict, Optional

from minigpt.base.errors import CheckpointError, UsageError
from minigpt.base.files import atomic_directory, write_json
from minigpt.checkpoint import manifest
from minigpt.checkpoint.safetensors import FileRecord, in_memory, write_safetensors
from minigpt.model.gpt import GPT
from minigpt.model.lora import LoRAConfig, adapter_tensors

FILE, WEIGHTS, _KEPT = "adapter.json", "adapter.safetensors", "base"


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
    write_json(directory / FILE, {**asdict(adapter.lora), **where})
    write_json(directory / "config.json", asdict(model.config))
    return {WEIGHTS: write_safetensors(directory / WEIGHTS, in_memory(adapter_tensors(model)))}


def keep_base(adapter: Adapter, run: Path) -> Adapter:
    """The adapter on a base that stays: another run's checkpoint is linked or copied into `run`."""
    if adapter.base.parent.name != "checkpoints" or not adapter.base.name.startswith("step_"):
        return adapter
    kept = run.resolve() / _KEPT
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
        _link(below.base, place / _KEPT)


def read_adapter(directory: Path) -> Optional[Adapter]:
    """The Adapter of a checkpoint, None of a plain one; CheckpointError when its base is gone."""
    if not (directory / FILE).exists():
        return None
    values = manifest.read_json(directory / FILE)
    try:
        places = [(directory / place).resolve() for place in (_KEPT, *values.pop("base"))]
        digest = str(values.pop("base_sha256"))
        lora = LoRAConfig(**{**values, "targets": tuple(values["targets"])})
    except (KeyError, TypeError, UsageError) as error:
        what = f"{directory / FILE} is not as it was written: {error!r}"
        raise CheckpointError(what, "use another checkpoint") from None
    state = "not there"
    for base in places:
        if (base / manifest.NAME).is_file():
            if manifest.sha256(base / manifest.NAME) == digest:
                return Adapter(lora, base, digest)
            state = "another one by now"
    fix = "put that back; an adapter goes anywhere once it is merged: python -m minigpt merge"
    raise CheckpointError(f"{directory} is an adapter for {places[-1]}, which is {state}", fix)
