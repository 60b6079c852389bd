"""What a run needs, beside the weights, to go on as if it had never stopped.

    optimizer.safetensors   mean.NAME and square.NAME of every parameter that has moved
    state.json              step, samples seen, random generators, best loss, data's fingerprint

Of a divided model each process writes its own rows, as optimizer-00003-of-00008.safetensors, whose
header has the step and the first row of each tensor. Any number of processes finds its rows there.

All in formats that hold numbers and nothing else: reading them cannot run code.
"""

from __future__ import annotations

import base64
import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Callable, Dict, List, Optional

import torch
from torch import Tensor

from minigpt.base.divided import division, first_row, keep_rows, local, rows_here
from minigpt.base.errors import CheckpointError, StorageError, storage_error
from minigpt.base.files import as_dataclass, fsync, write_json
from minigpt.checkpoint import manifest, safetensors
from minigpt.checkpoint.model_files import SHARD_BYTES, Adapter, save_model, write_adapter
from minigpt.data.template import Template
from minigpt.data.tokenizer import Tokenizer
from minigpt.model.gpt import GPT
from minigpt.model.lora import adapter_tensors
from minigpt.optim.adamw import AdamW

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
_ANOTHER = "resume from another checkpoint"
_PART, _ROWS = "optimizer-%05d-of-%05d.safetensors", "step %d, rows from %d on"
Each = Callable[[str], List[str]]  # from what this process says to what all of them say


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
    each: Each = lambda text: [text],
) -> None:  # fmt: skip
    """Writes a whole checkpoint, or nothing. Of a model with an adapter, only that is written.
    Where model and optimizer are divided among processes, the others call `help_to_save`.
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
    """Gives the rows of this process to the one that writes the weights, one tensor after the
    other, and writes those of the optimizer.
    """
    if adapter is None:
        tensors = safetensors.in_memory(dict(model.named_parameters()))
        safetensors.read_along(tensors, SHARD_BYTES)
    else:
        safetensors.read_along(safetensors.in_memory(adapter_tensors(model)))
    write_optimizer(directory, model, optimizer, each)


def write_optimizer(
    directory: Path, model: GPT, optimizer: AdamW, each: Each, partial: Optional[Path] = None
) -> Dict[str, safetensors.FileRecord]:
    """Writes the states into `partial`, the unfinished `directory`, which process 0 alone knows;
    returns the files' records. StorageError, of all processes, when one cannot write.
    """
    moments, step = _moments(model, optimizer), optimizer.param_groups[0]["step"]
    part, parts, copy = division(next(model.parameters()))
    place = Path(each(str(partial))[0]) if parts > 1 else Path()
    if parts == 1 or "blind" in each("" if copy or place.is_dir() else "blind"):
        # All of them are here, or a machine has a disk of its own: process 0 gathers them.
        whole = safetensors.in_memory(moments)
        if partial is not None:
            return {OPTIMIZER: safetensors.write_safetensors(partial / OPTIMIZER, whole)}
        safetensors.read_along(whole)
        return {}
    name, said, records = _PART % (part + 1, parts), {}, {}
    try:
        if copy == 0:
            said = asdict(_write_rows(place / name, moments, step))
    except OSError as error:
        said = vars(storage_error(error, directory / name))
    for number, answer in enumerate(map(json.loads, each(json.dumps(said))), 1):
        if "what" in answer:
            raise StorageError(**answer)
        if answer:
            records[_PART % (number, parts)] = safetensors.FileRecord(**answer)
    return records


def _write_rows(path: Path, moments: Dict[str, Tensor], step: int) -> safetensors.FileRecord:
    here = safetensors.in_memory({name: local(tensor) for name, tensor in moments.items()})
    notes = {name: _ROWS % (step, first_row(tensor)) for name, tensor in moments.items()}
    rows = {name: replace(tensor, note=notes[name]) for name, tensor in here.items()}
    record = safetensors.write_safetensors(path, rows)
    fsync(path)
    return record


def _moments(model: GPT, optimizer: AdamW) -> Dict[str, Tensor]:
    moments = {}
    for name, parameter in model.named_parameters():
        for kind, tensor in optimizer.state.get(parameter, {}).items():
            moments[f"{kind}.{name}"] = tensor
    return moments


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
        raise CheckpointError(f"{directory / STATE}: {error!r:.200}", _ANOTHER) from None


def load_optimizer(directory: Path, model: GPT, optimizer: AdamW, step: int) -> None:
    """Fills the optimizer with the states saved in `directory`, reading no more than the rows that
    this process holds, and sets its step count; CheckpointError where they are not those of the
    weights that learn, name by name and each row once.
    """
    for weight in (p for p in model.parameters() if p.requires_grad and step):
        optimizer.prepare(weight)
    moments, used = _moments(model, optimizer), set()
    ends = dict.fromkeys(moments, 0)  # of the rows in the files so far
    for path in sorted(directory.glob("optimizer-*-of-*.safetensors")) or [directory / OPTIMIZER]:
        with ExitStack() as stack:
            for name, tensor in safetensors.open_safetensors(path, stack).items():
                begin = ends.get(name, 0)
                _require(path, name, tensor, moments.get(name), begin, _ROWS % (step, begin))
                ends[name] += tensor.shape[0]
                low, high = rows_here(moments[name], begin, tensor.shape[0])
                if low < high:
                    keep_rows(moments[name], tensor.read(), begin)
                    used.add(path.name)
    for name, end in ends.items():
        if end < moments[name].shape[0]:
            what = f"{path}: {name} is missing" + f" from row {end} on" * (end > 0)
            raise CheckpointError(what, _ANOTHER)
    manifest.check(directory, read=used.__contains__)
    for group in optimizer.param_groups:
        group["step"] = step


def _require(
    path: Path, name: str, tensor: safetensors.LazyTensor, moment: Optional[Tensor], begin: int,
    note: str,
) -> None:  # fmt: skip
    """CheckpointError unless what was found is rows of the `moment`, those that `note` says."""
    if moment is None:
        raise CheckpointError(f"{path}: {name} does not belong to this run", _ANOTHER)
    if tensor.note not in ("", note):
        what = f"{path}: {name} has {tensor.note!a:.80}, and {note!a} should come"
        raise CheckpointError(what, _ANOTHER)
    rows = tensor.shape[0] if tensor.shape else 0
    fits = (tensor.shape, tensor.dtype) == ((rows, *moment.shape[1:]), moment.dtype)
    if not fits or begin + rows > moment.shape[0]:
        what = f"{path}: {name} has another shape or precision than the weight"
        raise CheckpointError(what, f"{_ANOTHER}, or with the --precision it was saved with")
