"""train.py: reads the flags, plans, opens the data, trains, and says what came out of it."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import ContextManager, List, Optional, Tuple

from minigpt.base import cores
from minigpt.base.errors import DeviceError, UsageError
from minigpt.base.text import duration, word
from minigpt.checkpoint import run_files
from minigpt.commands.cli import going_on_unread
from minigpt.commands.convert import published
from minigpt.commands.flags import parse_settings
from minigpt.data.datasets import Opened
from minigpt.data.loader import Loader
from minigpt.data.sources import said
from minigpt.data.tokenizer import Tokenizer, load_tokenizer
from minigpt.devices.device import Device, find_device
from minigpt.optim.schedule import learning_rate
from minigpt.planning import peaks
from minigpt.planning.memory import Job, trained_count
from minigpt.training.build import build, create_run, open_data, open_state
from minigpt.training.claim import claimed, sign_of
from minigpt.training.closing import closing_report
from minigpt.training.config import Settings, TrainConfig
from minigpt.training.metrics import METRICS, read_metrics
from minigpt.training.parallel import (
    World,
    by_torchrun,
    first_here,
    joined,
    processes,
    restarted,
)
from minigpt.training.resolve import job_of, one_line, pace, resolve, too_long


@going_on_unread()
def train_command(config: TrainConfig) -> int:
    """Trains as `config` says; returns the exit code."""
    began = time.perf_counter()
    if restarted() and config.out and run_files.find(Path(config.out)) is not None:
        config = parse_settings(TrainConfig, "train.py", ["--resume", config.out])
    device = find_device(config.device)
    with joined(device, alone=config.parallel is None) as world:
        # Rank 0 alone takes the place; the others are told which.
        return _train(config if world.first else replace(config, out=None), device, world, began)


def _train(config: TrainConfig, device: Device, world: World, began: float) -> int:
    settings = resolve(config, device)
    _plan(config, settings, device)
    with world.one_by_one():
        if settings.start is not None and not settings.start.exists():
            published(config.init, may_fetch=not config.dry_run)
    if config.dry_run:
        _open(config, settings, device)
        return 0
    place: ContextManager[Path] = nullcontext(settings.run)
    if world.first:
        place = claimed(settings.run, named=bool(config.out or config.resume))
    with place as run:
        run = Path(world.told(str(run)))
        _look_for(run, world)
        if world.first and not config.resume:
            config = replace(config, out=str(run))
        with world.one_by_one():
            settings, tokenizer, data = _open(config, settings, device)
        settings = _agreed(settings, world)
        trainer = build(replace(settings, run=run), device, tokenizer, data, world)
        create_run(trainer)
        code = trainer.train()
        if code:
            print(f"\nstopped after step {trainer.state.step}; saved {trainer.save()}")
            print(f"go on with: python train.py --resume {word(trainer.run)}")
        else:
            print(closing_report(trainer))
            print(f"took {duration(time.perf_counter() - began)}")
        return code


def _look_for(run: Path, world: World) -> None:
    """Says how many machines do not see rank 0's directory of the run."""
    shared = world.told(sign_of(run)) == sign_of(run)
    (blind,) = world.total(first_here() and not shared)
    if blind:
        print(
            f"note     machines that do not share {run}: {blind:.0f}. What is saved is on that of"
        )
        print("         process 0 alone; to --resume, copy it to the same place on the others")


def _agreed(settings: Settings, world: World) -> Settings:
    """What follows from the memory that is free, as rank 0 sees it: the others may see another.
    UsageError when a machine would go on from another checkpoint.
    """
    start = world.told(str(settings.resumes))
    if world.largest(int(start != str(settings.resumes))):
        what = f"not all machines have {start} as the newest checkpoint"
        fix = "share the run's directory, or copy it to the same place on each"
        raise UsageError(what, fix)
    seen = {"micro_batch_size": settings.micro_batch_size, "division": settings.division}
    return replace(settings, **json.loads(world.told(json.dumps(seen))))


def _plan(config: TrainConfig, settings: Settings, device: Device) -> None:
    """Says what the run takes, and stops if that is not here. (A dry run may be for elsewhere.)"""
    plan = one_line(config, settings, device)
    print(plan.line, flush=True)
    if plan.fits or config.force:
        return
    fix = f"use {plan.advice or 'a smaller model'}, see what python -m minigpt plan says of it"
    fix += ", or start all the same with --force"
    if not config.dry_run:
        raise DeviceError(f"this run does not fit into what is free on the {device}", fix)
    print(f"         {fix}")


def _open(
    config: TrainConfig, settings: Settings, device: Device
) -> Tuple[Settings, Tokenizer, Opened]:
    """What `build` takes; says what was found, and what is to be done with it."""
    tokenizer = load_tokenizer(settings.vocabulary)
    data = open_data(settings, tokenizer)
    settings = resolve(config, device, data)
    state, lines = open_state(settings, data), _opening(settings, device, tokenizer, data)
    if config.dry_run:
        loader = Loader(data.train, settings.batch_size, settings.asked.seed, state.samples_seen)
        batch = next(loader)
        loader.close()
        rows, length = batch.tokens.shape
        what = f"the first batch has {rows} x {length} tokens, {batch.supervised} to learn from"
        lines.append(f"dry run  {what}; no step was run")
    print(*lines, *_to_do(settings, device, data, state.step), sep="\n", flush=True)
    return settings, tokenizer, data


def _opening(settings: Settings, device: Device, tokenizer: Tokenizer, data: Opened) -> List[str]:
    s, shape = settings, settings.shape
    learned, whole = trained_count(job_of(s, device)), shape.parameter_count()
    what, together, gpus = "the rest is frozen", processes(), device.gpus()
    if s.lora is not None:
        what, whole = f"an adapter of rank {s.lora.rank}", whole + learned
    layers = f"{shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} wide"
    lines = [f"model    {whole:,} parameters: {layers}; {tokenizer.name} tokenizer"]
    if learned < whole:
        lines.append(f"trained  {learned:,} parameters, {what}")
    held_out = f"{data.validation.token_count:,} to validate: {data.held_out}"
    train = f"{data.train.token_count:,} tokens to train on"
    lines.append(f"data     {said(s.data)}: {train}, {held_out}")
    lines += [f"         {note}" for note in data.notes]
    if together > 1:
        lines.append(f"together {together} processes, {s.batch_size // together} rows each")
    elif s.asked.parallel is not None and not by_torchrun():
        lines.append("together one process: --parallel is for those that torchrun starts")
    elif gpus > 1:
        all_of_them = f"torchrun --nproc-per-node {gpus} train.py ..."
        lines.append(f"device   one of {gpus} GPUs; all: {all_of_them}")
    lines += [f"cores    {line}" for line in cores.found]
    steps = f"{s.steps} steps of {s.batch_size} x {s.block_size} tokens"
    return [*lines, f"run      {s.run}: {steps}, {s.asked.precision} on {device}"]


def _to_do(settings: Settings, device: Device, data: Opened, step: int) -> List[str]:
    """How many steps are to be done, at which rate, and how long that takes."""
    s, left = settings, max(0, settings.steps - step)
    epochs, whole = (steps * s.batch_size / len(data.train) for steps in (left, s.steps))
    time, seconds = _time(job_of(s, device), left, device)
    tokens, after = left * s.batch_size * s.block_size, f" after step {step}" if step else ""
    lines = [f"go on    from {s.resumes}"] if s.resumes else []
    lines.append(_rate(s, step))
    lines.append(f"to do    {left:,} steps{after}, {tokens:,} tokens, {epochs:,.2f} epochs; {time}")
    return lines + too_long(whole, seconds)


def _rate(settings: Settings, step: int) -> str:
    s = settings
    line = f"rate     {s.lr:.3g} after {s.warmup_steps} steps of warmup"
    if s.asked.warmup_steps is None and s.warmup_steps == s.steps // 10:
        line += " (a tenth of the run)"
    line += f", {s.schedule}" + (f" to {s.min_lr:.3g}" if s.schedule != "constant" else "")
    if s.warmup_steps >= s.steps:
        line += ": the run ends before, fewer --warmup-steps let it get there"
    log = s.run / METRICS
    records = read_metrics(log) if s.resumes and log.is_file() else []
    before = next((r["lr"] for r in records if "lr" in r and r["step"] == step), math.inf)
    now = learning_rate(step, s.steps, s.lr, s.min_lr, s.warmup_steps, s.schedule)
    if s.warmup_steps <= step < s.steps and now > 1.01 * before:
        line += f"\n         after step {step} it goes up, from {before:.3g} to {now:.3g}"
    return line


def _time(job: Job, steps: int, device: Device) -> Tuple[str, Optional[float]]:
    known = device.on_cpu or peaks.looked_up_peak(device, job.product_bytes) is not None
    step = pace(job, peaks.here(device, job.product_bytes)) if known else None
    if step is None:
        return "python -m minigpt plan --device NAME says how long it takes", None
    return f"about {duration(steps * step.seconds)}, {step.assumed}", steps * step.seconds
