"""From Settings to a Trainer: opens the data, then the weights, and what a run left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import List, Optional, Tuple

import numpy as np
import torch

from minigpt.base.errors import UsageError, storage_error
from minigpt.base.text import word
from minigpt.checkpoint import run_files
from minigpt.checkpoint.model_files import (
    Adapter,
    keep_base,
    load_adapted,
    load_model,
    read_adapter,
)
from minigpt.checkpoint.resume import RunState, load_optimizer, load_state
from minigpt.data.datasets import Opened, open_datasets
from minigpt.data.loader import Loader
from minigpt.data.sources import said
from minigpt.data.tokenizer import Tokenizer
from minigpt.devices.device import Device, weight_dtype
from minigpt.model.gpt import GPT
from minigpt.model.lora import add_lora
from minigpt.optim.adamw import AdamW, decay_groups
from minigpt.optim.execution import compiled, in_slices, plain
from minigpt.optim.update import Clipped, InBackward, Scaled, Update
from minigpt.planning.fit import flops, more_memory
from minigpt.planning.peaks import looked_up_peak
from minigpt.training.apply import COMPILES_BLOCKS, freeze, objective_for, set_dropout
from minigpt.training.config import Settings, TrainConfig
from minigpt.training.config_file import CONFIG, differ, write_settings
from minigpt.training.parallel import ALONE, World, processes
from minigpt.training.resolve import compiles_update, job_of
from minigpt.training.sharded import fill, mesh_of, on_meta, shard
from minigpt.training.trainer import Trainer

_FIRST_LOSS_SCALE = 2.0**16


def open_data(settings: Settings, tokenizer: Tokenizer) -> Opened:
    """The datasets of a run; UsageError or DataError when they do not suit tokenizer and model."""
    s, asked = settings, settings.asked
    if tokenizer.vocab_size > s.shape.vocab_size:
        what = f"the {tokenizer.name} tokenizer has {tokenizer.vocab_size} tokens and the model"
        fix = "use the tokenizer the model was made for"
        raise UsageError(f"{what} {s.shape.vocab_size}", fix)
    found = open_datasets(
        s.data, tokenizer, s.block_size, s.rendering, asked.packing, asked.record_keys,
        asked.strict, s.vocabulary, asked.validation, asked.text_key, asked.special_tokens,
    )  # fmt: skip
    if found.template is None and s.template:
        raise UsageError(f"--template is for records, and {said(s.data)} is text", "leave it out")
    return found


def build(
    settings: Settings, device: Device, tokenizer: Tokenizer, data: Opened, world: World = ALONE
) -> Trainer:
    """A Trainer ready to run, from the settings resolved with `data`."""
    asked, state = settings.asked, open_state(settings, data)
    if asked.deterministic:
        device.be_deterministic()
    device.start(asked.moai_options())
    torch.manual_seed(asked.seed)
    divided = settings.division in ("fsdp", "hsdp")
    if divided:
        world = replace(world, mesh=mesh_of(settings.division, device, world.size))
    model, adapter = (on_meta(settings), None) if divided else _weights(settings, device)
    set_dropout(model, settings.shape.dropout)
    freeze(model, asked.freeze_layers)
    compiles = _compiles(asked, device)
    objective = objective_for(model, device, asked.precision, asked.recompute, compiles)
    if divided:
        shard(objective, world.mesh, asked.precision)
        objective.to_empty(device=device.torch_device)
        adapter = fill(model, settings, device)
    optimizer = _optimizer(settings, model, device)
    if settings.resumes is not None:
        load_optimizer(settings.resumes, model, optimizer, state.step - state.skipped_steps)
        device.set_rng_state(state.kept_rng())
    objective.train()  # and not the model alone: this mode is what follows a validation
    return Trainer(
        settings=settings, run=settings.run, device=device, model=model, world=world,
        objective=objective, tokenizer=tokenizer, optimizer=optimizer, adapter=adapter, state=state,
        update=_update(settings, model, optimizer, state, world),
        loader=Loader(data.train, settings.batch_size, asked.seed, state.samples_seen,
                      world.rank, world.size),
        validation=data.validation, prompt=data.prompt or _prompt(asked, data, tokenizer),
        saved=state.step if settings.resumes else None,
        template=data.template or settings.tuned, answers=data.template is not None,
        out_of_memory=more_memory(device), peak=_peak(settings, device),
    )  # fmt: skip


def _prompt(asked: TrainConfig, data: Opened, tokenizer: Tokenizer) -> List[int]:
    """What samples continue: as was said, or, of a text that is no Python, how that begins."""
    held_out = data.validation.batch(np.arange(min(64, len(data.validation)))).tokens
    text = asked.sample_prompt
    if text == TrainConfig.sample_prompt and text not in tokenizer.decode([*held_out.flatten()]):
        return held_out[0, :16].tolist()
    return tokenizer.prompt(text)


def create_run(trainer: Trainer) -> None:
    """Makes the run directory, with the settings in it."""
    if not trainer.world.first:
        return
    try:
        trainer.run.mkdir(parents=True, exist_ok=True)
        run_files.prune(trainer.run, 0)
        write_settings(trainer.run / CONFIG, trainer.settings)
        if trainer.adapter is not None and not (trainer.run / "base").exists():
            trainer.adapter = keep_base(trainer.adapter, trainer.run)
    except OSError as error:
        raise storage_error(error, trainer.run) from error


def open_state(settings: Settings, data: Opened) -> RunState:
    """Where the run is in its steps and data; UsageError when it cannot go on as `settings` say."""
    state = RunState(data=f"{data.train.fingerprint} seed {settings.asked.seed}")
    if settings.resumes is not None:
        fingerprint, state = state.data, load_state(settings.resumes)
        _check_state(state, settings, fingerprint)
    if settings.asked.precision != "fp16-mixed":
        state.loss_scale, state.clean_steps = 0.0, 0
    elif not state.loss_scale:
        state.loss_scale = _FIRST_LOSS_SCALE
    return state


def _check_state(state: RunState, settings: Settings, fingerprint: str) -> None:
    run, patience, done = settings.run, settings.asked.patience, ""
    anew = f"or start a new run with --init {word(run)}"
    if state.data != fingerprint:
        what = "the data, how it is cut (--template, --packing, --block-size) or --seed is not what"
        raise UsageError(f"{what} {run} was trained with", f"resume with the same, {anew}")
    if state.step >= settings.steps:
        done = f"{run} has done all of its {state.step} steps"
    elif 0 < patience <= state.worse:
        done = f"{run} stopped after {state.worse} validations without a better loss"
    if done and differ(run / CONFIG, settings):  # asked for the same, it says again how it ended
        raise UsageError(done, f"go further with more --steps or a larger --patience, {anew}")


def _weights(settings: Settings, device: Device) -> Tuple[GPT, Optional[Adapter]]:
    """The model on the device, and the adapter on it if that is what learns."""
    start, place = settings.start, device.torch_device
    dtype = weight_dtype(settings.asked.precision)
    if start is None:
        torch.set_default_dtype(dtype)
        try:  # drawn on the device where it can draw, in the dtype they are kept in
            return GPT(settings.shape, device.generator_device).to(place), None
        finally:
            torch.set_default_dtype(torch.float32)
    if settings.resumes is not None and settings.lora is not None:
        return load_adapted(start, place, dtype), read_adapter(start)
    model = load_model(start, place, dtype)
    if settings.lora is None:
        return model, None
    return add_lora(model, settings.lora), Adapter.on(start, settings.lora)


def _peak(settings: Settings, device: Device) -> Optional[float]:
    """Tokens/s at the FLOP/s of the data sheet; what is recomputed is no use and does not count."""
    job = replace(job_of(settings, device), recompute=False)
    peak = looked_up_peak(device, job.product_bytes)
    return None if peak is None else processes() * peak * job.batch * job.block / flops(job)


def _optimizer(settings: Settings, model: GPT, device: Device) -> AdamW:
    execution = plain if device.static_shapes else in_slices
    if compiles_update(settings.asked, device):
        execution = compiled
    betas = settings.beta1, settings.beta2
    groups = decay_groups(model, settings.weight_decay, settings.hidden_lr_scale)
    return AdamW(groups, settings.lr, betas, settings.eps, settings.weight_decay, execution)


def _update(
    settings: Settings, model: GPT, optimizer: AdamW, state: RunState, world: World
) -> Update:
    if settings.asked.fused_backward:
        return InBackward(optimizer, world.across)
    if not state.loss_scale:
        return Clipped(optimizer, model.parameters(), settings.grad_clip, world.across)
    scale = state.loss_scale, state.clean_steps, state.skipped_steps
    return Scaled(optimizer, model.parameters(), settings.grad_clip, *scale, world.across)


def _compiles(asked: TrainConfig, device: Device) -> bool:
    """Whether the model is to be compiled; says why not where that was asked for."""
    if not asked.compile:
        return False
    missing = device.compiler_missing()
    if missing:
        print(f"--compile: {missing}; going on without", flush=True)
    elif asked.fused_backward and not COMPILES_BLOCKS:
        # The compiled backward pass of a whole model hands out all gradients together, at its end.
        print("--compile: the optimizer alone, for the sake of --fused-backward", flush=True)
    else:
        print("compiling: the first step takes from seconds to minutes", flush=True)
        return True
    return False
