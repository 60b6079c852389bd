"""What a run needs, beside the weights, to go on as if it had never stopped.

    optimizer.safetensors   the optimizer's states, in one file or several (optimizer_files.py)
    state.json              step, samples seen, random generators, best loss, data's fingerprint

All in formats that hold numbers and nothing else: reading them cannot run code.
"""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Dict, Optional

import torch
from torch import Tensor

from minigpt.base.errors import CheckpointError
from minigpt.base.files import as_dataclass, write_json
from minigpt.checkpoint import manifest, safetensors
from minigpt.checkpoint.model_files import SHARD_BYTES, Adapter, save_model, write_adapter
from minigpt.checkpoint.optimizer_files import Each, write_optimizer
from minigpt.data.template import Template
from minigpt.data.tokenizer import Tokenizer
from minigpt.model.gpt import GPT
from minigpt.model.lora import adapter_tensors
from minigpt.optim.adamw import AdamW

STATE = "state.json"


@dataclass
class RunState:
    """Where a run is."""

    step: int = 0
    samples_seen: int = 0
    tokens_seen: int = 0  # without padding
    best_loss: Optional[float] = None
    best_step: Optional[int] = None
    worse: int = 0  # validations since the best
    loss_scale: float = 0.0  # of fp16-mixed; elsewhere 0, for none
    clean_steps: int = 0  # since that last changed
    skipped_steps: int = 0  # in which a gradient overflowed, so that the optimizer took none
    data: str = ""  # fingerprint of the training data and how it is cut
    rng: Dict[str, str] = field(default_factory=dict)  # generator states, base64

    def __post_init__(self) -> None:
        counts = (self.samples_seen, self.tokens_seen, self.worse, self.clean_steps)
        if min(*counts, self.skipped_steps, self.step - self.skipped_steps) < 0:
            raise ValueError("no run can have counted what it says")
        if self.rng and self.kept_rng()["cpu"].numel() != torch.get_rng_state().numel():
            raise ValueError("its 'rng' is no state of this PyTorch's generator")

    def keep_rng(self, states: Dict[str, Tensor]) -> None:
        raw = {name: state.numpy().tobytes() for name, state in states.items()}
        self.rng = {name: base64.b64encode(data).decode() for name, data in raw.items()}

    def kept_rng(self) -> Dict[str, Tensor]:
        raw = {name: bytearray(base64.b64decode(text)) for name, text in self.rng.items()}
        return {name: torch.frombuffer(data, dtype=torch.uint8) for name, data in raw.items()}


def save_checkpoint(
    directory: Path, model: GPT, tokenizer: Tokenizer, optimizer: AdamW, state: RunState,
    template: Optional[Template] = None, adapter: Optional[Adapter] = None,
    each: Optional[Each] = None,
) -> None:  # fmt: skip
    """Writes a whole checkpoint, or nothing. Of a model with an adapter, only that is written.
    Where model and optimizer are divided among processes, the others call `help_to_save`, and
    `each` tells all of them what each says.
    """

    def write(partial: Path) -> Dict[str, safetensors.FileRecord]:
        if adapter is None:
            records = save_model(partial, model)
        else:
            records = write_adapter(partial, model, adapter)
        records.update(write_optimizer(directory, model, optimizer, each, partial))
        write_json(partial / STATE, asdict(state))
        return records

    manifest.write_checkpoint(directory, write, tokenizer, template, replace=True)


def help_to_save(
    directory: Path, model: GPT, optimizer: AdamW, adapter: Optional[Adapter], each: Each
) -> None:
    """Gives the weights' rows of this process to the one that writes, one tensor after the other,
    and writes those of the optimizer's states.
    """
    if adapter is None:
        tensors = safetensors.in_memory(dict(model.named_parameters()))
        safetensors.read_along(tensors, SHARD_BYTES)
    else:
        safetensors.read_along(safetensors.in_memory(adapter_tensors(model)))
    write_optimizer(directory, model, optimizer, each)


def load_state(directory: Path) -> RunState:
    """The RunState of a checkpoint; CheckpointError when it has none, as a converted model has."""
    if not (directory / STATE).exists():
        fix = "start from it with --init"
        raise CheckpointError(f"{directory} is a model without a run to resume", fix)
    try:
        state = as_dataclass(RunState, manifest.read_json(directory / STATE))
        state.kept_rng()["cpu"]
        return state
    except (ValueError, TypeError, KeyError) as error:
        fix = "resume from another checkpoint"
        raise CheckpointError(f"{directory / STATE}: {error!r:.200}", fix) from None
