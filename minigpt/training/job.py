"""A run as the memory plan sees it, from its settings alone, and what train.py says of it first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import List, NamedTuple, Optional, Set, Tuple

from minigpt.base.errors import UsageError
from minigpt.base.text import nearest, size
from minigpt.checkpoint.model_files import read_config as read_shape
from minigpt.checkpoint.run_files import LATEST, resolve
from minigpt.devices.device import PRECISIONS, Device, weight_dtype
from minigpt.model import zoo
from minigpt.model.attention import HAS_FUSED
from minigpt.model.gpt import GPTConfig
from minigpt.planning import peaks
from minigpt.planning.fit import FUSED, LORA, Advice, nearest_fit
from minigpt.planning.memory import Job, memory
from minigpt.training.config import FINE_TUNING, LORA_TUNING, TrainConfig, check_block

_LOGITS = 250_000_000  # of a micro-batch: 1 GB in fp32


class Verdict(NamedTuple):
    """What train.py says before it loads anything."""

    line: str
    fits: bool
    advice: str  # flags with which it fits; empty when none do


def one_line(config: TrainConfig, device: Device) -> Verdict:
    """The plan of a run on `device` in a line, whether it fits into what is free there, and what to
    change if not. `config` may have open settings; its model is looked up, not loaded.
    """
    job = job_of(config, device.kind)
    most, room = memory(job), peaks.free_memory(device)
    text = "plan     %s at most (%s)" % (size(most.total), most.moment)
    if room is None:
        flavors = "python -m minigpt plan --device FLAVOR says what fits on MoAI"
        return Verdict("%s, divided by the platform; %s" % (text, flavors), True, "")
    fits = most.total <= room
    text += ", %s free on the %s: %s" % (size(room), device, "fits" if fits else "does not fit")
    found = [] if fits else advice(job, room, config, device)
    return Verdict(text, fits, found[0][0] if found else "")


def job_of(config: TrainConfig, kind: str) -> Job:
    """The job of a run on a kind of device ("" for one that is not here)."""
    shape, recipe = find_shape(config)
    config = config.filled(recipe, shape.n_positions)
    check_block(config.block_size, shape.n_positions)
    if config.batch_size * config.block_size > 2**31:
        raise UsageError(
            "--batch-size %d makes steps of more than two billion tokens" % config.batch_size,
            "choose a smaller one",
        )
    if config.freeze_layers is not None and config.freeze_layers > shape.n_layer:
        raise UsageError(
            f"--freeze-layers is {config.freeze_layers}", f"the model has {shape.n_layer} layers"
        )
    if config.fused_backward or kind == "moai":
        config = config.in_one_piece()
    again = bool(config.moai_activation_recomputation) if kind == "moai" else config.recompute
    return Job(
        shape,
        rows=min(config.micro_batch_size or default_rows(config, shape), config.batch_size),
        batch=config.batch_size,
        block=config.block_size,
        precision=config.precision,
        recompute=again,
        fused_backward=config.fused_backward,
        lora=config.lora(),
        freeze_layers=config.freeze_layers,
        explicit=kind == "moai" or (kind != "" and not HAS_FUSED),
        whole_logits=kind == "moai",
        on_cpu=kind == "cpu",
    )


def find_shape(config: TrainConfig) -> Tuple[GPTConfig, zoo.Recipe]:
    """The shape and the recipe that a run with `config` starts from, without loading weights."""
    tuned = LORA_TUNING if config.lora_rank else FINE_TUNING
    if config.resume:
        return read_shape(resolve(config.resume, (LATEST,))), tuned
    if config.init == "scratch":
        entry = zoo.find(config.model)
        if entry.repo is None and config.tokenizer is not None:  # as many tokens as it has
            words = 257 if config.tokenizer == "bytes" else 50257
            return replace(entry.config, vocab_size=words), entry.recipe
        return entry.config, entry.recipe
    if config.init in zoo.ZOO:
        return zoo.find(config.init).config, tuned
    if not Path(config.init).exists():
        raise UsageError(
            "--init %s is neither a directory nor a model" % config.init,
            nearest(config.init, [*zoo.ZOO, "scratch"]),
        )
    return read_shape(resolve(config.init)), tuned


def default_rows(config: TrainConfig, shape: GPTConfig) -> int:
    """The micro-batch where none is given: as large as keeps its logits (fp32) under 1 GB."""
    return min(max(1, _LOGITS // (config.block_size * shape.vocab_size)), config.batch_size)


def advice(
    job: Job, room: int, config: TrainConfig, device: Optional[Device] = None
) -> List[Tuple[str, Job]]:
    """The flags, beside those of `config`, with which its job fits into `room` bytes, the nearest
    to what was asked first, and what it is then. `device`, where it is known, must support them.
    """
    found = nearest_fit(job, room, barred=_barred(config, device))
    return [(_flags(one, config), one.job) for one in found]


def _barred(config: TrainConfig, device: Optional[Device]) -> Set[str]:
    """The flags that a run with `config` cannot be advised to use."""
    barred = {LORA} if config.resume or config.init == "scratch" else set()
    for precision in PRECISIONS:
        other = config.resume and weight_dtype(precision) != weight_dtype(config.precision)
        if other or (device is not None and device.precision_missing(precision)):
            barred.add("--precision %s" % precision)
    if device is not None and device.fused_backward_missing():
        barred.add(FUSED)
    return barred


def _flags(advice: Advice, config: TrainConfig) -> str:
    """The advice, and what else it needs beside what was said."""
    text = str(advice)
    if FUSED in text and config.grad_clip:
        text += ", --grad-clip 0"
    if advice.job.whole_batch and config.micro_batch_size not in (None, advice.job.batch):
        text += ", --micro-batch-size %d" % advice.job.batch
    return text
