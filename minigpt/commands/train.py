"""train.py: reads the flags, plans, opens the data, trains, and says what came out of it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import List, Tuple

from minigpt.base.errors import DeviceError
from minigpt.base.text import duration
from minigpt.commands.cli import going_on_unread
from minigpt.commands.flags import parse_settings
from minigpt.data.datasets import Opened
from minigpt.data.loader import Loader
from minigpt.data.tokenizer import Tokenizer, load_tokenizer
from minigpt.devices.device import Device, find_device
from minigpt.hf.published import published
from minigpt.planning import peaks
from minigpt.planning.memory import Job, trained_count
from minigpt.training.build import build, create_run, open_data, open_state
from minigpt.training.claim import claimed
from minigpt.training.closing import closing_report
from minigpt.training.config import TrainConfig
from minigpt.training.job import job_of, one_line, pace
from minigpt.training.resolve import resolve
from minigpt.training.settings import Settings


def train_command(arguments: List[str]) -> int:
    """Trains as `arguments` say; returns the exit code."""
    began = time.perf_counter()
    config = parse_settings(TrainConfig, "train.py", arguments)
    device = find_device(config.device)
    settings = resolve(config, device)
    _plan(config, settings, device)
    if settings.start is not None and not settings.start.exists():
        published(config.init, may_fetch=not config.dry_run)
    if config.dry_run:
        settings, _, _, data = _open(config, settings, device)
        print(_dry_run(settings, device, data))
        return 0
    named = bool(config.out or config.resume)
    with claimed(settings.run, bool(config.resume), named) as run, going_on_unread():
        if not config.resume:
            config = replace(config, out=str(run))
        trainer = build(*_open(config, settings, device))
        create_run(trainer)
        code = trainer.train()
        if code:
            print(f"\nstopped after step {trainer.state.step}; saved {trainer.save()}")
            print(f"go on with: python train.py --resume {trainer.run}")
        else:
            print(closing_report(trainer))
            print(f"took {duration(time.perf_counter() - began)}")
        return code


def _open(
    config: TrainConfig, settings: Settings, device: Device
) -> Tuple[Settings, Device, Tokenizer, Opened]:
    """What `build` takes; says what was found."""
    tokenizer = load_tokenizer(settings.vocabulary)
    data = open_data(settings, tokenizer)
    settings = resolve(config, device, data)
    print(_opening(settings, device, tokenizer, data), flush=True)
    return settings, device, tokenizer, data


def _plan(config: TrainConfig, settings: Settings, device: Device) -> None:
    """Says what the run takes, and stops if that is not here. (A dry run may be for elsewhere.)"""
    plan = one_line(config, settings, device)
    print(plan.line, flush=True)
    if plan.fits or config.force:
        return
    fix = f"use {plan.advice or 'a smaller model'}, or start all the same with --force"
    if not config.dry_run:
        raise DeviceError(f"this run does not fit into what is free on the {device}", fix)
    print(f"         {fix}")


def _opening(settings: Settings, device: Device, tokenizer: Tokenizer, data: Opened) -> str:
    s, shape = settings, settings.shape
    learned, whole = trained_count(job_of(s, device)), shape.parameter_count()
    what = "the rest is frozen" if s.lora is None else f"an adapter of rank {s.lora.rank}"
    if s.lora is not None:
        whole += learned
    lines = [
        f"model    {whole:,} parameters: {shape.n_layer} layers, {shape.n_head} heads,"
        f" {shape.n_embd} wide; {tokenizer.name} tokenizer",
        *([f"trained  {learned:,} parameters, {what}"] if learned < whole else []),
        f"data     {s.data}: {data.train.token_count:,} tokens to train on,"
        f" {data.validation.token_count:,} to validate",
        *(f"         {note}" for note in data.notes),
        f"run      {s.run}: {s.steps} steps of {s.batch_size} x {s.block_size} tokens,"
        f" {s.precision} on {device}",
    ]
    return "\n".join(lines)


def _dry_run(settings: Settings, device: Device, data: Opened) -> str:
    """What would be done, without weights and without the device."""
    s, state = settings, open_state(settings, data)
    loader = Loader(data.train, s.batch_size, s.seed, state.samples_seen)
    batch = next(loader)
    loader.close()
    rows, length = batch.tokens.shape
    steps = s.steps - state.step
    epochs = steps * s.batch_size / len(data.train)
    after = f" after step {state.step}" if state.step else ""
    return (
        f"dry run  the first batch has {rows} x {length} tokens, {batch.supervised} to learn from;"
        f" no step was run\nto do    {steps:,} steps{after}, {steps * rows * length:,} tokens,"
        f" {epochs:,.2f} epochs; {_time(job_of(s, device), steps, device)}"
    )


def _time(job: Job, steps: int, device: Device) -> str:
    known = device.on_cpu or peaks.looked_up_peak(device, job.product_bytes) is not None
    step = pace(job, peaks.here(device, job.product_bytes)) if known else None
    if step is None:
        return "python -m minigpt plan --device NAME says how long it takes"
    return f"about {duration(steps * step.seconds)}, {step.assumed}"
