"""What was asked, and what was left open, settled:  TrainConfig  ->  resolve  ->  Settings
And what the memory plan says of that, before anything is loaded.

No weights are read: of a checkpoint, config.json and template.json are opened, and a device is
asked for its free memory.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from minigpt.base.errors import UsageError, flag, require_known
from minigpt.base.files import shorter
from minigpt.base.text import duration, nearest, size
from minigpt.checkpoint import run_files
from minigpt.checkpoint.model_files import read_config as read_shape
from minigpt.data.datasets import Opened
from minigpt.data.sources import FUNCTIONS
from minigpt.data.template import TEMPLATES, Template, load_template
from minigpt.data.tokenizer import load_tokenizer
from minigpt.devices import PRECISIONS
from minigpt.devices.device import Device, weight_dtype
from minigpt.model import zoo
from minigpt.model.config import GPTConfig
from minigpt.model.zoo import Recipe, ZooEntry
from minigpt.optim.execution import compiles
from minigpt.planning import peaks
from minigpt.planning.fit import FUSED, LORA, flops, largest_rows, nearest_fit
from minigpt.planning.memory import Job, memory
from minigpt.planning.sending import Cluster, sending_seconds
from minigpt.training.claim import require_startable
from minigpt.training.config import SHAPE, Settings, TrainConfig, check_block, refuse
from minigpt.training.parallel import by_torchrun, local_processes, processes

FINE_TUNING = Recipe(
    lr=1e-5, min_lr=1e-6, warmup_steps=20, steps=500, batch_size=16, block_size=1024, beta2=0.999
)
# An adapter starts at nothing and bears, and needs, larger steps (Hu et al. 2021, table 11).
LORA_TUNING = replace(FINE_TUNING, lr=2e-4, min_lr=2e-5, weight_decay=0.01)

_LOGITS = 250_000_000  # of a micro-batch: 1 GB in fp32
_BUSY = 16 * 1024  # tokens at a time from which a GPU gains nothing by more
_STEP_TOKENS = 2**31
PARALLEL = ("ddp", "fsdp", "hsdp")
_VALIDATED = 0.3  # tokens for each that is trained on, at least and at most:
_FEWEST, _MOST = 4096, 1_000_000
_VOCABULARIES: Dict[Union[str, Path], int] = {"bytes": 257, "gpt2": 50257}

# Shares of the peak that a step is assumed to reach. MoAI's is that of its tutorial: 27.2 million
# tokens in the published 81 minutes, on 16 MI250.
_SHARE, _MOAI_SHARE = 0.4, 0.08
_MOST_EPOCHS, _WEEK = 10, 7 * 24 * 3600


def resolve(
    config: TrainConfig, device: Optional[Device], data: Optional[Opened] = None,
    room: Optional[int] = None,
) -> Settings:  # fmt: skip
    """The run that `config` asks for on `device` (None: one that is not here, with `room` bytes);
    UsageError, DeviceError or CheckpointError for what cannot be. Once `data` are open, resolve
    again: only then --epochs can be counted in steps, which until then are the recipe's.
    """
    config.check_together()
    if device is not None:
        config.check_on(device)
    start, template = find_start(config), config.template
    if data is not None and data.template is not None and data.template.name in TEMPLATES:
        template = data.template.name
    steps = _steps(config, start, None if data is None else len(data.train))
    settings = Settings(
        asked=config, run=_run_directory(config), start=start.checkpoint,
        resumes=start.checkpoint if config.resume else None, vocabulary=start.vocabulary,
        shape=start.shape, lora=config.lora(), template=template, tuned=start.tuned,
        data=config.data or ("stdlib" if config.init == "scratch" else FUNCTIONS),
        micro_batch_size=steps["batch_size"], division="none", **steps,
    )  # fmt: skip
    settings = replace(settings, division=_division(settings, device, room))
    _check_sizes(settings)
    return replace(settings, micro_batch_size=_rows(settings, device, room))


def _steps(config: TrainConfig, start: Start, rows: Optional[int]) -> Dict[str, Any]:
    """How the run steps: as asked, else as the recipe does, or in proportion to the rest."""
    recipe, values = start.recipe, asdict(start.recipe)
    values["block_size"] = min(recipe.block_size, start.shape.n_positions)
    if config.lr is not None:  # the last rate keeps its ratio to the peak
        values["min_lr"] = config.lr * recipe.min_lr / recipe.lr
    if config.fused_backward:
        values["grad_clip"] = 0.0
    asked = {name: value for name, value in vars(config).items() if value is not None}
    values.update((name, asked[name]) for name in asked.keys() & values.keys())
    if config.epochs is not None and rows is not None:
        values["steps"] = max(1, round(config.epochs * rows / values["batch_size"]))
    if config.warmup_steps is None:  # a shorter run than the recipe's gets a tenth, or its share
        share = max(0.1, recipe.warmup_steps / recipe.steps)
        values["warmup_steps"] = min(recipe.warmup_steps, int(values["steps"] * share + 1e-6))
    for name in ("eval_every", "sample_every", "save_every"):
        values[name] = asked.get(name, max(1, values["steps"] // 5))
    # Forward alone, validation is a third of the work of a step.
    between = (values["eval_every"] or values["steps"]) * values["batch_size"]
    tokens = int(_VALIDATED * between * values["block_size"])
    values["eval_tokens"] = asked.get("eval_tokens", min(max(tokens, _FEWEST), _MOST))
    return values


def _check_sizes(s: Settings) -> None:
    longer = f", or --n-positions {s.block_size}" if s.start is None else ""
    check_block(s.block_size, s.shape.n_positions, longer)
    ranks, frozen = processes(), s.asked.freeze_layers or 0
    fewer, more = s.batch_size // ranks * ranks, (s.batch_size // ranks + 1) * ranks
    sizes = f"{fewer} or {more}" if fewer else str(more)
    refuse(
        (s.batch_size * s.block_size > _STEP_TOKENS,
         f"--batch-size {s.batch_size} makes steps of more than two billion tokens",
         "choose a smaller one"),
        (s.batch_size % ranks,
         f"--batch-size {s.batch_size} does not divide among {ranks} processes", f"use {sizes}"),
        (s.asked.fused_backward and s.division == "ddp",
         "--fused-backward steps before the other processes' gradients are there",
         "use --parallel fsdp, or leave it out"),
        (s.division == "hsdp" and local_processes() == ranks,
         "--parallel hsdp is for several machines", "use --parallel fsdp on one"),
        (s.min_lr > s.lr, f"--min-lr {s.min_lr} is above --lr {s.lr}, from which the rate falls",
         "make it smaller, or leave it out"),
        (frozen > s.shape.n_layer, f"--freeze-layers is {frozen}",
         f"the model has {s.shape.n_layer} layers"),
    )  # fmt: skip


def _division(s: Settings, device: Optional[Device], room: Optional[int]) -> str:
    """How several processes train: as asked, or each with the whole model, where that fits."""
    require_known("parallel", s.asked.parallel, PARALLEL)
    if s.asked.parallel is not None and (processes() > 1 or by_torchrun()):
        return s.asked.parallel
    if processes() == 1:
        return "none"
    room = room if device is None else device.free_memory()
    fits = room is None or memory(replace(job_of(s, device), rows=1)).total <= room
    return "ddp" if fits else "fsdp"


def _rows(s: Settings, device: Optional[Device], room: Optional[int]) -> int:
    """Of a micro-batch: as asked, or what suits the device: a GPU is kept busy, where that fits."""
    rows = s.asked.micro_batch_size
    if s.asked.fused_backward or (device is not None and device.static_shapes):
        if rows not in (None, s.batch_size):
            what = f"the batch must be whole here, and --micro-batch-size is {rows}"
            raise UsageError(f"{what} of {s.batch_size}", f"say --micro-batch-size {s.batch_size}")
        return s.batch_size
    if rows is not None:
        return rows
    if device is not None and not device.is_gpu:
        return default_rows(s.batch_size, s.block_size, s.shape.vocab_size)
    job, most = job_of(s, device), max(1, _BUSY // s.block_size)
    room = room if device is None else device.free_memory()
    if room is not None:
        most = max(1, min(most, largest_rows(job, room)))
    return math.ceil(job.batch / math.ceil(job.batch / most))


def default_rows(batch_size: int, block_size: int, vocab_size: int) -> int:
    """The micro-batch where none is given: as large as keeps its logits (fp32) under 1 GB."""
    return min(max(1, _LOGITS // (block_size * vocab_size)), batch_size)


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
    if config.init == "scratch" and not config.resume:
        start = _from_scratch(zoo.find(config.model), config)
    else:
        recipe = LORA_TUNING if config.lora_rank else FINE_TUNING
        place = _checkpoint(config)
        if place.exists():
            shape, tuned = read_shape(place), load_template(place)
        else:
            shape, tuned = zoo.find(config.init).config, None
        start = Start(shape, recipe, place, place, tuned)
    if config.dropout is None:
        return start
    return start._replace(shape=replace(start.shape, dropout=config.dropout))


def _checkpoint(config: TrainConfig) -> Path:
    """That of --resume or --init; of a published model, where it is or will be."""
    if config.resume:
        return run_files.resolve(config.resume, (run_files.LATEST,))
    for name in ("tokenizer", *SHAPE):
        if getattr(config, name) is not None:
            what = f"{flag(name)} is for training from scratch, and --init has its own"
            raise UsageError(what, "leave one of them out")
    published = config.init in zoo.ZOO
    path = Path("checkpoints") / config.init if published else Path(config.init)
    if path.exists():
        return run_files.resolve(path)
    if not published:
        what = f"--init {config.init} is neither a directory nor a model"
        raise UsageError(what, nearest(config.init, [*zoo.ZOO, "scratch"]))
    return path


def _from_scratch(entry: ZooEntry, config: TrainConfig) -> Start:
    vocabulary = run_files.tokenizer_source(config.tokenizer or entry.tokenizer)
    shape, recipe = shape_of(entry, config)
    if entry.repo is None:  # a shape of ours takes any vocabulary; a published one has its own
        words = _VOCABULARIES.get(vocabulary) or load_tokenizer(vocabulary).vocab_size
        shape = replace(shape, vocab_size=words)
    return Start(shape, recipe, vocabulary)


def shape_of(entry: ZooEntry, config: TrainConfig) -> Tuple[GPTConfig, Recipe]:
    """The shape and recipe of `entry` with what `config` asks for instead, fitted to the width.

    What is summed over the width is drawn with a deviation of 1 / sqrt(width), and the rate of a
    wider model falls with 1 / width, as those of the published ones about do; muP has its own rules
    (Yang et al. 2022). Rows fill the context if the recipe's do. UsageError for no shape.
    """
    base, recipe = entry.config, entry.recipe
    asked = {name: getattr(config, name) for name in SHAPE if getattr(config, name) is not None}
    if recipe.block_size == base.n_positions:
        recipe = replace(recipe, block_size=asked.get("n_positions", base.n_positions))
    width, heads = asked.get("n_embd", base.n_embd), asked.get("n_head", base.n_head)
    if width % heads:
        few = min(range(1, 257), key=lambda n: (width % n > 0, abs(width / n - 64)))
        what = f"a width of {width} does not divide into {heads} heads"
        raise UsageError(what, f"say --n-head {few}, or --n-embd {width // heads * heads + heads}")
    part, hidden = base.n_embd / width, base.hidden_init_std  # 1 where the width is the model's
    fitted: Dict[str, Any] = {"hidden_init_std": hidden and hidden * part**0.5}
    fitted["n_inner"] = base.n_inner and round(base.n_inner / part)
    if base.attention_scale is None:
        fitted["init_std"] = base.init_std * part**0.5
        slower = min(1.0, part)
        recipe = replace(recipe, lr=recipe.lr * slower, min_lr=recipe.min_lr * slower)
    else:
        fitted.update(output_scale=base.output_scale * part, attention_scale=heads / width)
        recipe = replace(recipe, hidden_lr_scale=recipe.hidden_lr_scale * part)
    return replace(base, **{**fitted, **asked}), recipe


class Verdict(NamedTuple):
    """What train.py says before it loads anything."""

    line: str
    fits: bool
    advice: str  # flags with which it fits; empty when none do


class Pace(NamedTuple):
    """How long a step is expected to take."""

    seconds: float
    assumed: str  # what that rests on, in words
    sending: float = 0.0  # seconds in which something is sent,
    added: float = 0.0  # and those of them that make the step longer


def job_of(settings: Settings, device: Optional[Device]) -> Job:
    """The job of a run on a device; None for one that is not here."""
    s, asked, batch = settings, settings.asked, settings.batch_size // processes()
    moai = device is not None and device.static_shapes
    return Job(
        s.shape, min(s.micro_batch_size, batch), batch, s.block_size, asked.precision,
        bool(asked.moai_activation_recomputation) if moai else asked.recompute,
        asked.fused_backward, s.lora, asked.freeze_layers, whole_logits=moai,
        explicit=device is not None and not device.fused_attention,
        compiled_update=device is None or compiles_update(asked, device),
        on_cpu=device is not None and device.on_cpu, shards=_shards(s.division),
    )  # fmt: skip


def _shards(division: str) -> int:
    """Among how many processes the model is divided."""
    return {"fsdp": processes(), "hsdp": local_processes()}.get(division, 1)


def compiles_update(asked: TrainConfig, device: Device) -> bool:
    """Whether AdamW's step is compiled: on every GPU, else some 80 kernels are sent a weight."""
    wanted = (asked.compile or device.is_gpu) and not device.compiler_missing()
    return wanted and compiles(weight_dtype(asked.precision), device.torch_device.type)


def one_line(config: TrainConfig, settings: Settings, device: Device) -> Verdict:
    """The plan on `device`, whether that is free there, and what to change in `config` if not."""
    job = job_of(settings, device)
    most, room = memory(job), device.free_memory()
    text = f"plan     {size(most.total)} at most ({most.moment})"
    if room is None:
        flavors = "python -m minigpt plan --device FLAVOR says what fits on MoAI"
        return Verdict(f"{text}, divided by the platform; {flavors}", True, "")
    fits = most.total <= room
    text += f", {size(room)} free on the {device}: {'fits' if fits else 'does not fit'}"
    found = [] if fits else advice(job, room, config, device)
    return Verdict(text, fits, found[0][0] if found else "")


def pace(job: Job, device: peaks.Accelerator, cluster: Optional[Cluster] = None) -> Optional[Pace]:
    """How fast `device` is expected to be, sending included; None where its peak is not known."""
    share = _MOAI_SHARE if device.flavor else _SHARE
    peak = device.bf16 if device.flavor else device.flops(job.product_bytes)
    if not peak:
        return None
    assumed = f"assumed {share * 100:.0f}% of a peak of {peak / peaks.TERA:.4g} TFLOP/s"
    among = local_processes() if job.on_cpu else 1  # who compute on the same cores
    assumed += f", which {among} processes share" if among > 1 else ""
    seconds, sending, added = flops(job) / (peak * share / among), 0.0, 0.0
    if cluster is not None and not cluster.unknown:
        sending, added = sending_seconds(job, cluster, seconds)
    return Pace(seconds + added, assumed, sending, added)


def too_long(epochs: Optional[float], seconds: Optional[float]) -> List[str]:
    """A line for each way in which a whole run is longer than people mean runs to be."""
    lines = []
    if epochs and epochs > _MOST_EPOCHS:
        seldom = "more than ten seldom help; --epochs 3"
        lines.append(f"note     all texts {epochs:,.0f} times: {seldom}")
    if seconds and seconds > _WEEK:
        lines.append(f"note     {duration(seconds)} are long: fewer --steps, or a smaller model")
    return lines


def advice(
    job: Job, room: int, config: TrainConfig, device: Optional[Device] = None
) -> List[Tuple[str, Job]]:
    """The flags, beside those of `config`, with which its job fits into `room` bytes, the nearest
    to what was asked first, and what it is then. `device`, where known, must support them.
    """
    barred = {LORA} if config.resume or config.init == "scratch" else set()
    for precision in PRECISIONS:
        other = config.resume and weight_dtype(precision) != weight_dtype(config.precision)
        if other or (device is not None and device.precision_missing(precision)):
            barred.add(f"--precision {precision}")
    if device is not None and device.fused_backward_missing():
        barred.add(FUSED)
    found = []
    for one in nearest_fit(job, room, barred=barred):
        flags = str(one)
        if FUSED in flags and config.grad_clip:
            flags += ", --grad-clip 0"
        if one.job.whole_batch and config.micro_batch_size not in (None, one.job.batch):
            flags += f", --micro-batch-size {one.job.batch}"
        found.append((flags, one.job))
    return found
