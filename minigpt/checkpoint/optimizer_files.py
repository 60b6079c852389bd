"""The optimizer's states on disk: mean.NAME and square.NAME of every parameter that has moved.

    optimizer.safetensors                   all of them, by one process that has them
    optimizer-00003-of-00008.safetensors    of a divided model: the rows that the third of eight
                                            processes holds, written by itself

The header of such a part says the optimizer's step, and of each tensor which row is its first. The
parts hold all rows in order, so that any number of processes finds its own in them.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Callable, Dict, List, Optional

from torch import Tensor

from minigpt.base.divided import division, first_row, local
from minigpt.base.errors import CheckpointError, StorageError, storage_error
from minigpt.base.files import fsync
from minigpt.checkpoint import manifest
from minigpt.checkpoint.safetensors import (
    FileRecord,
    LazyTensor,
    in_memory,
    open_safetensors,
    open_with_metadata,
    read_along,
    write_safetensors,
)
from minigpt.model.gpt import GPT
from minigpt.optim.adamw import AdamW

Each = Callable[[str], List[str]]  # from what this process says to what all of them say
_WHOLE, _PART = "optimizer.safetensors", "optimizer-%05d-of-%05d.safetensors"
_STEP, _FIX = "step", "resume from another checkpoint"


def write_optimizer(
    directory: Path, model: GPT, optimizer: AdamW, each: Optional[Each],
    partial: Optional[Path] = None,
) -> Dict[str, FileRecord]:  # fmt: skip
    """Writes the states into `partial`, the unfinished `directory`, which process 0 alone knows;
    returns the files' records. Of a divided model all processes call it, and where one cannot
    write, all have its StorageError.
    """
    states = _states(model, optimizer)
    _, parts, copy = division(next(model.parameters()))
    if parts > 1 and each is not None:
        place = Path(each(str(partial))[0])
        if "blind" not in each("seen" if copy or place.is_dir() else "blind"):
            return _write_parts(directory, place, model, optimizer, each)
    # One process has them all, or a machine has a disk of its own: they are gathered.
    if partial is None:
        read_along(in_memory(states))
        return {}
    return {_WHOLE: write_safetensors(partial / _WHOLE, in_memory(states))}


def _write_parts(
    directory: Path, place: Path, model: GPT, optimizer: AdamW, each: Each
) -> Dict[str, FileRecord]:
    part, parts, copy = division(next(model.parameters()))
    name, said = _PART % (part + 1, parts), {}
    if copy == 0:
        try:
            said = {name: asdict(_write_part(place / name, model, optimizer))}
        except OSError as error:
            failed = storage_error(error, directory / name)
            said = {"": {"what": failed.what, "fix": failed.fix}}
    records = {}
    for answer in each(json.dumps(said)):
        for file, record in json.loads(answer).items():
            if not file:
                raise StorageError(**record)
            records[file] = FileRecord(**record)
    return records


def _write_part(path: Path, model: GPT, optimizer: AdamW) -> FileRecord:
    states = _states(model, optimizer)
    header = {name: str(first_row(tensor)) for name, tensor in states.items()}
    header[_STEP] = str(optimizer.param_groups[0]["step"])
    rows = in_memory({name: local(tensor) for name, tensor in states.items()})
    record = write_safetensors(path, rows, header)
    fsync(path)
    return record


def _states(model: GPT, optimizer: AdamW) -> Dict[str, Tensor]:
    states = {}
    for name, parameter in model.named_parameters():
        for kind, tensor in optimizer.state.get(parameter, {}).items():
            states[f"{kind}.{name}"] = tensor
    return states


def load_optimizer(directory: Path, model: GPT, optimizer: AdamW, step: int) -> None:
    """Fills the optimizer with the states saved in `directory`, of which it reads the rows that
    this process holds, and sets its step count. CheckpointError where they are not those of the
    weights that learn, name by name and row by row.
    """
    for weight in (p for p in model.parameters() if p.requires_grad and step):
        optimizer.prepare(weight)
    states = _states(model, optimizer)
    places = _places(_files(directory), states, step)
    manifest.check(directory, [path.name for path in places])
    for path, begins in places.items():
        with ExitStack() as stack:
            tensors = open_safetensors(path, stack)
            for name, begin in begins.items():
                mine, first = local(states[name]), first_row(states[name])
                rows = _overlap(states[name], begin, tensors[name])
                values = tensors[name].read()[rows.start - begin : rows.stop - begin]
                mine[rows.start - first : rows.stop - first] = values
    for group in optimizer.param_groups:
        group["step"] = step


def _files(directory: Path) -> List[Path]:
    """The one file, or the parts in their order; CheckpointError unless they are all there."""
    there = {path.name for path in directory.glob("optimizer-*-of-*.safetensors")}
    if not there:
        return [directory / _WHOLE]
    said = max(there)[len("optimizer-00001-of-") : -len(".safetensors")]
    names: List[str] = []
    for number in range(1, 1 + int(said) if said.isdecimal() else 0):
        names.append(_PART % (number, int(said)))
        if names[-1] not in there:
            raise CheckpointError(f"{directory / names[-1]} is missing", _FIX)
    for name in there.difference(names):
        raise CheckpointError(f"{directory / name} does not belong to those beside it", _FIX)
    return [directory / name for name in names]


def _places(paths: List[Path], states: Dict[str, Tensor], step: int) -> Dict[Path, Dict[str, int]]:
    """Which files have rows for this process, and of each file's tensors which row is their first.
    CheckpointError unless the files together are the `states`, each row once and in order.
    """
    ends, places = dict.fromkeys(states, 0), {}
    for path in paths:
        with ExitStack() as stack:
            tensors, header = open_with_metadata(path, stack)
        if header.get(_STEP, str(step)) != str(step):
            raise CheckpointError(f"{path} is of step {header[_STEP]} and not of {step}", _FIX)
        begins = {name: ends.get(name, 0) for name in tensors}
        for name, tensor in tensors.items():
            _require(path, name, tensor, states.get(name), begins[name], header.get(name, "0"))
            ends[name] += tensor.shape[0]
        if any(_overlap(states[name], begins[name], tensors[name]) for name in tensors):
            places[path] = begins
    for name, end in ends.items():
        if end < states[name].shape[0]:
            what = f"{name} is missing" + f" from row {end} on" * (end > 0)
            raise CheckpointError(f"{paths[-1]}: {what}", _FIX)
    return places


def _require(
    path: Path, name: str, tensor: LazyTensor, state: Optional[Tensor], begin: int, said: str
) -> None:
    """CheckpointError unless it is rows of the `state`, and `said` to be those from `begin` on."""
    if state is None:
        raise CheckpointError(f"{path}: {name} does not belong to this run", _FIX)
    if said != str(begin):
        what = f"{path}: {name} begins with row {said}, and the rows before it end at {begin}"
        raise CheckpointError(what, _FIX)
    rows = tensor.shape[0] if tensor.shape else 0
    fits = (tensor.shape, tensor.dtype) == ((rows, *state.shape[1:]), state.dtype)
    if not fits or begin + rows > state.shape[0]:
        what = f"{path}: {name} has another shape or precision than the weight"
        raise CheckpointError(what, f"{_FIX}, or with the --precision it was saved with")


def _overlap(state: Tensor, begin: int, tensor: LazyTensor) -> range:
    """The rows of `tensor`, whose first is row `begin` of the state, that this process holds."""
    first, rows = first_row(state), local(state).shape[0]
    return range(max(first, begin), min(first + rows, begin + tensor.shape[0]))
