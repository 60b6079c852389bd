"""What was asked (config.py), and what was left open, settled (settings.py):

    flags and config.toml  ->  TrainConfig  ->  resolve  ->  Settings

No weights are read: of a checkpoint, config.json and template.json are opened, and a device is
asked for its free memory.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Union

from minigpt.base.errors import UsageError
from minigpt.base.files import shorter
from minigpt.base.text import nearest
from minigpt.checkpoint import run_files
from minigpt.checkpoint.model_files import read_config as read_shape
from minigpt.data.datasets import Opened
from minigpt.data.records import FUNCTIONS
from minigpt.data.template import TEMPLATES, Template, load_template
from minigpt.data.tokenizer import load_tokenizer
from minigpt.devices.device import Device
from minigpt.model import zoo
from minigpt.model.gpt import GPTConfig
from minigpt.model.zoo import Recipe
from minigpt.planning.fit import largest_rows
from minigpt.planning.memory import Job
from minigpt.training.claim import require_startable
from minigpt.training.config import TrainConfig, check_block
from minigpt.training.job import job_of
from minigpt.training.parallel import processes
from minigpt.training.settings import Settings
from minigpt.training.shape import require_own_shape, shape_of

FINE_TUNING = Recipe(
    lr=1e-5, min_lr=1e-6, warmup_steps=20, steps=500, batch_size=16, block_size=1024, beta2=0.999
)
# An adapter starts at nothing and bears, and needs, larger steps (Hu et al. 2021, table 11).
LORA_TUNING = replace(FINE_TUNING, lr=2e-4, min_lr=2e-5, weight_decay=0.01)

_LOGITS = 250_000_000  # of a micro-batch: 1 GB in fp32
_BUSY = 16 * 1024  # tokens at a time from which a GPU gains nothing by more
_STEP_TOKENS = 2**31
_FIFTHS = ("eval_every", "sample_every", "save_every")  # of the run, where they are left open
_VALIDATED = 0.3  # tokens for each that is trained on, at least and at most:
_FEWEST, _MOST = 4096, 1_000_000
_VOCABULARIES: Dict[Union[str, Path], int] = {"bytes": 257, "gpt2": 50257}


def resolve(
    config: TrainConfig, device: Optional[Device], data: Optional[Opened] = None,
    room: Optional[int] = None,
) -> Settings:  # fmt: skip
    """The run that `config` asks for on `device` (None: one that is not here, with `room` bytes).
    UsageError, DeviceError or CheckpointError for what cannot be.

    Once `data` are open, resolve again: only then --epochs can be counted in steps, which until
    then are the recipe's.
    """
    config.check_together()
    if device is not None:
        config.check_on(device)
    start = find_start(config)
    values = _values(config, start, data)
    _check_sizes(values, start.shape)
    values["micro_batch_size"] = _micro_batch(config, values, start.shape, device)
    settings = Settings(**{field.name: values[field.name] for field in fields(Settings)})
    if config.micro_batch_size is None and (device is None or device.is_gpu):
        room = device.free_memory() if device is not None else room
        return _rows_for_a_gpu(settings, job_of(settings, device), room)
    return settings


def _values(config: TrainConfig, start: Start, data: Optional[Opened]) -> Dict[str, Any]:
    """All settings by name: as asked, else as the recipe or the start has them."""
    asked = {name: value for name, value in vars(config).items() if value is not None}
    values = {**vars(config), **_of_the_recipe(config, start), **asked}
    if config.epochs is not None and data is not None:
        steps = config.epochs * len(data.train) / values["batch_size"]
        values["steps"] = max(1, round(steps))
    fifth = max(1, values["steps"] // 5)
    values.update((name, fifth) for name in _FIFTHS if values[name] is None)
    if config.warmup_steps is None:  # a shorter run than the recipe's gets a tenth, or its share
        share = max(0.1, start.recipe.warmup_steps / start.recipe.steps)
        values["warmup_steps"] = min(values["warmup_steps"], int(values["steps"] * share + 1e-6))
    if config.eval_tokens is None:  # forward alone, it is a third of the work of a step
        steps = values["eval_every"] or values["steps"]
        tokens = int(_VALIDATED * steps * values["batch_size"] * values["block_size"])
        values["eval_tokens"] = min(max(tokens, _FEWEST), _MOST)
    if data is not None and data.template is not None and data.template.name in TEMPLATES:
        values["template"] = data.template.name
    if config.data is None:
        values["data"] = "stdlib" if config.init == "scratch" else FUNCTIONS
    values.update(
        asked=config, run=_run_directory(config), lora=config.lora(), start=start.checkpoint,
        resumes=start.checkpoint if config.resume else None, shape=start.shape,
        vocabulary=start.vocabulary, tuned=start.tuned,
    )  # fmt: skip
    return values


def _of_the_recipe(config: TrainConfig, start: Start) -> Dict[str, Any]:
    recipe = asdict(start.recipe)
    recipe["block_size"] = min(start.recipe.block_size, start.shape.n_positions)
    if config.lr is not None:  # the last rate keeps its ratio to the peak
        recipe["min_lr"] = config.lr * start.recipe.min_lr / start.recipe.lr
    if config.fused_backward:
        recipe["grad_clip"] = 0.0
    return recipe


def _check_sizes(values: Dict[str, Any], shape: GPTConfig) -> None:
    longer = f", or --n-positions {values['block_size']}" if values["start"] is None else ""
    check_block(values["block_size"], shape.n_positions, longer)
    if values["batch_size"] * values["block_size"] > _STEP_TOKENS:
        what = f"--batch-size {values['batch_size']} makes steps of more than two billion tokens"
        raise UsageError(what, "choose a smaller one")
    _check_share(values["batch_size"], values["fused_backward"])
    if values["min_lr"] > values["lr"]:
        raise UsageError(
            f"--min-lr {values['min_lr']} is above --lr {values['lr']}, from which the rate falls",
            "make it smaller, or leave it out",
        )
    frozen = values["freeze_layers"]
    if frozen is not None and frozen > shape.n_layer:
        raise UsageError(f"--freeze-layers is {frozen}", f"the model has {shape.n_layer} layers")


def _check_share(batch: int, fused: bool) -> None:
    """Whether the batch can be divided among the processes that torchrun started."""
    size = processes()
    if batch % size:
        nearest_sizes = f"{max(1, batch // size) * size} or {(batch // size + 1) * size}"
        what = f"--batch-size {batch} does not divide among {size} processes"
        raise UsageError(what, f"use {nearest_sizes}")
    if size > 1 and fused:
        what = "--fused-backward steps before the other processes' gradients are there"
        raise UsageError(what, "leave it out under torchrun")


def _micro_batch(
    config: TrainConfig, values: Dict[str, Any], shape: GPTConfig, device: Optional[Device]
) -> int:
    batch: int = values["batch_size"]
    whole = config.fused_backward or (device is not None and device.static_shapes)
    rows = config.micro_batch_size
    if whole and rows not in (None, batch):
        what = f"the batch must be whole here, and --micro-batch-size is {rows} of {batch}"
        raise UsageError(what, f"say --micro-batch-size {batch}")
    if whole:
        return batch
    return rows or default_rows(batch, values["block_size"], shape.vocab_size)


def default_rows(batch_size: int, block_size: int, vocab_size: int) -> int:
    """The micro-batch where none is given: as large as keeps its logits (fp32) under 1 GB."""
    return min(max(1, _LOGITS // (block_size * vocab_size)), batch_size)


def _rows_for_a_gpu(settings: Settings, job: Job, room: Optional[int]) -> Settings:
    """As many rows at a time as keep a GPU busy, as far as `room` bytes hold them."""
    if job.whole_batch:
        return settings
    most = max(1, _BUSY // settings.block_size)
    if room is not None:
        most = max(1, min(most, largest_rows(job, room)))
    parts = math.ceil(job.batch / most)
    return replace(settings, micro_batch_size=math.ceil(job.batch / parts))


def _run_directory(config: TrainConfig) -> Path:
    if config.resume:
        return Path(config.resume)
    if config.out is None:
        name = config.model if config.init == "scratch" else Path(config.init).resolve().name
        return Path("runs") / f"{shorter(name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    require_startable(Path(config.out))
    return Path(config.out)


class Start(NamedTuple):
    """Where a run begins, known without a weight being read."""

    shape: GPTConfig
    recipe: Recipe
    vocabulary: Union[str, Path]  # what load_tokenizer opens
    checkpoint: Optional[Path] = None
    tuned: Optional[Template] = None


def find_start(config: TrainConfig) -> Start:
    """What --resume, --init and --model mean. A published model need not be here yet."""
    start = _find_start(config)
    if config.dropout is None:
        return start
    return start._replace(shape=replace(start.shape, dropout=config.dropout))


def _find_start(config: TrainConfig) -> Start:
    recipe = LORA_TUNING if config.lora_rank else FINE_TUNING
    if config.resume:
        return _at(run_files.resolve(config.resume, (run_files.LATEST,)), recipe)
    if config.init == "scratch":
        return _from_scratch(zoo.find(config.model), config)
    if config.tokenizer is not None:
        what = "--tokenizer is for training from scratch and --init brings its own"
        raise UsageError(what, "leave one out")
    require_own_shape(config)
    local = Path("checkpoints") / config.init
    if config.init in zoo.ZOO and not local.exists():
        return Start(zoo.find(config.init).config, recipe, local, local)
    path = local if config.init in zoo.ZOO else Path(config.init)
    if not path.exists():
        what = f"--init {config.init} is neither a directory nor a model"
        raise UsageError(what, nearest(config.init, [*zoo.ZOO, "scratch"]))
    return _at(run_files.resolve(path), recipe)


def _at(checkpoint: Path, recipe: Recipe) -> Start:
    shape, tuned = read_shape(checkpoint), load_template(checkpoint)
    return Start(shape, recipe, checkpoint, checkpoint, tuned)


def _from_scratch(entry: zoo.ZooEntry, config: TrainConfig) -> Start:
    vocabulary = run_files.tokenizer_source(config.tokenizer or entry.tokenizer)
    shape, recipe = shape_of(entry, config)
    if entry.repo is None:  # a shape of ours takes any vocabulary; a published one has its own
        words = _VOCABULARIES.get(vocabulary) or load_tokenizer(vocabulary).vocab_size
        shape = replace(shape, vocab_size=words)
    return Start(shape, recipe, vocabulary)
