"""From a TrainConfig to a Trainer: finds the weights, the tokenizer and the data, and checks that
they fit together.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import List, Optional

import torch

from minigpt.base.errors import DataError, DeviceError, UsageError, storage_error
from minigpt.base.files import require_free
from minigpt.base.text import nearest
from minigpt.checkpoint.adapter import Adapter, keep_base, read_adapter
from minigpt.checkpoint.model_files import load_adapted, load_model
from minigpt.checkpoint.resume import RunState, load_optimizer, load_state
from minigpt.checkpoint.run_files import LATEST, load_tokenizer, resolve
from minigpt.data.datasets import Opened, open_datasets
from minigpt.data.loader import Dataset, Loader
from minigpt.data.records import FUNCTIONS
from minigpt.data.template import TEMPLATES, Template, load_template
from minigpt.data.tokenizer import Tokenizer
from minigpt.devices.device import Device, find_device, weight_dtype
from minigpt.hf.published import published
from minigpt.model import zoo
from minigpt.model.gpt import GPT
from minigpt.model.lora import add_lora
from minigpt.optim.adamw import AdamW
from minigpt.optim.execution import compiled, in_slices, plain
from minigpt.optim.groups import decay_groups
from minigpt.optim.update import Clipped, InBackward, Scaled, Update
from minigpt.planning.fit import flops
from minigpt.planning.peaks import looked_up_peak
from minigpt.training.apply import freeze, objective_for
from minigpt.training.config import (
    FINE_TUNING,
    LORA_TUNING,
    TrainConfig,
    flag,
    read_config,
    write_config,
)
from minigpt.training.job import default_rows, job_of, one_line
from minigpt.training.objective import Objective
from minigpt.training.trainer import Trainer

_FIRST_LOSS_SCALE = 2.0**16
_WHAT_IS_TRAINED = (
    "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "freeze_layers",
)  # fmt: skip
_INTERVALS = ("eval_every", "sample_every", "save_every")


@dataclass
class Start:
    """Where a run begins."""

    model: GPT
    tokenizer: Tokenizer
    recipe: zoo.Recipe
    origin: str  # what `prepare --tokenizer` calls this tokenizer
    resumes: Optional[Path] = None  # the checkpoint whose run goes on
    adapter: Optional[Adapter] = None  # what is trained instead of the weights
    template: Optional[Template] = None  # that the checkpoint was tuned with


def build(config: TrainConfig) -> Trainer:
    """A Trainer ready to run. Every error of the user's shows here, before the first step."""
    config.check_together()
    run = _run_directory(config)
    device = _device(config)
    if config.deterministic:
        device.be_deterministic()
    _plan(config, device)
    torch.manual_seed(config.seed)
    start = _start(config, device)
    config = _fill(config, start, device)
    data = _open_data(config, start)
    train = data.train
    if data.template is not None and data.template.name in TEMPLATES:
        config = replace(config, template=data.template.name)
    config = _set_steps(config, len(train))
    state = _state(config, start, train)
    if config.precision != "fp16-mixed":
        state.loss_scale, state.clean_steps = 0.0, 0
    elif not state.loss_scale:
        state.loss_scale = _FIRST_LOSS_SCALE
    freeze(start.model, config.freeze_layers)
    optimizer = _optimizer(config, start.model, device)
    if start.resumes is not None:
        taken = state.step - state.skipped_steps
        load_optimizer(start.resumes, start.model, optimizer, taken)
        device.set_rng_state(state.kept_rng())
    return Trainer(
        settings=config,
        run=run,
        device=device,
        model=start.model.train(),
        objective=_objective(config, start.model, device),
        tokenizer=start.tokenizer,
        optimizer=optimizer,
        update=_update(config, start.model, optimizer, state),
        loader=Loader(train, config.batch_size, config.seed, state.samples_seen),
        validation=data.validation,
        state=state,
        template=data.template or start.template,
        answers=data.template is not None,
        peak=_peak(config, device),
        adapter=start.adapter,
        prompt=data.prompt or _prompt(config, start.tokenizer),
        notes=data.notes,
    )


def create_run(trainer: Trainer) -> None:
    """Makes the run directory, with the resolved config in it."""
    try:
        trainer.run.mkdir(parents=True, exist_ok=True)
        write_config(trainer.run / "config.toml", trainer.settings)
        if trainer.adapter is not None and not (trainer.run / "base").exists():
            trainer.adapter = keep_base(trainer.adapter, trainer.run)
    except OSError as error:
        raise storage_error(error, trainer.run) from error


def _device(config: TrainConfig) -> Device:
    """The device, asked whether it can do what it will have to."""
    device = find_device(config.device)
    config.check_on(device)
    device.start(config.moai_options() if config.moai_parallelization else None)
    return device


def _plan(config: TrainConfig, device: Device) -> None:
    """Says what the run will take, and stops when that is not there."""
    plan = one_line(config, device)
    print(plan.line, flush=True)
    if not (plan.fits or config.force):
        raise DeviceError(
            "this run does not fit into what is free on the %s" % device,
            "use %s, or start all the same with --force" % (plan.advice or "a smaller model"),
        )


def _start(config: TrainConfig, device: Device) -> Start:
    if config.resume:
        return _resumed(resolve(config.resume, (LATEST,)), config, device)
    if config.init == "scratch":
        return _from_scratch(config, device)
    if config.tokenizer is not None:
        raise UsageError(
            "--tokenizer is for training from scratch and --init brings its own", "leave one out"
        )
    if config.init in zoo.ZOO:
        return _tuned(published(config.init, not config.dry_run), config, device)
    path = Path(config.init)
    if not path.exists():
        raise UsageError(
            "--init %s is neither a directory nor a model" % config.init,
            nearest(config.init, [*zoo.ZOO, "scratch"]),
        )
    return _tuned(resolve(path), config, device)


def _resumed(checkpoint: Path, config: TrainConfig, device: Device) -> Start:
    """The run that `checkpoint` is of, as it was."""
    before = read_config(Path(config.resume or "") / "config.toml")
    for name in _WHAT_IS_TRAINED:
        if getattr(before, name) != getattr(config, name):
            raise UsageError(
                "%s was %s, and a run goes on with what it trains"
                % (flag(name), getattr(before, name)),
                "start a new one with --init %s" % config.resume,
            )
    if weight_dtype(before.precision) != weight_dtype(config.precision):
        raise UsageError(
            "--precision %s keeps other weights than %s" % (config.precision, before.precision),
            "start a new run with --init %s" % config.resume,
        )
    adapter = read_adapter(checkpoint)
    if adapter is None:
        return replace(_from_checkpoint(checkpoint, config, device), resumes=checkpoint)
    model = load_adapted(checkpoint, device.torch_device, weight_dtype(config.precision))
    start = Start(model, load_tokenizer(checkpoint), LORA_TUNING, str(checkpoint))
    template = load_template(checkpoint)
    return replace(start, resumes=checkpoint, adapter=adapter, template=template)


def _tuned(checkpoint: Path, config: TrainConfig, device: Device) -> Start:
    """A checkpoint to fine-tune: all of it, or with a fresh adapter."""
    start = _from_checkpoint(checkpoint, config, device)
    lora = config.lora()
    if lora is None:
        return start
    model = add_lora(start.model, lora)
    return replace(start, model=model, recipe=LORA_TUNING, adapter=Adapter.on(checkpoint, lora))


def _from_scratch(config: TrainConfig, device: Device) -> Start:
    entry = zoo.find(config.model)
    tokenizer = load_tokenizer(config.tokenizer or entry.tokenizer)
    shape = entry.config
    if entry.repo is None:  # a shape of ours takes any vocabulary; a published one has its own
        shape = replace(shape, vocab_size=tokenizer.vocab_size)
    model = GPT(shape).to(device.torch_device, weight_dtype(config.precision))
    return Start(model, tokenizer, entry.recipe, tokenizer.name)


def _from_checkpoint(checkpoint: Path, config: TrainConfig, device: Device) -> Start:
    model = load_model(checkpoint, device.torch_device, weight_dtype(config.precision))
    tokenizer, template = load_tokenizer(checkpoint), load_template(checkpoint)
    return Start(model, tokenizer, FINE_TUNING, str(checkpoint), template=template)


def _fill(config: TrainConfig, start: Start, device: Device) -> TrainConfig:
    shape = start.model.config
    if start.tokenizer.vocab_size > shape.vocab_size:
        raise UsageError(
            "the %s tokenizer has %d tokens and the model %d"
            % (start.tokenizer.name, start.tokenizer.vocab_size, shape.vocab_size),
            "use the tokenizer the model was made for",
        )
    config = config.filled(start.recipe, shape.n_positions)
    if config.data is None:
        config = replace(config, data="stdlib" if config.init == "scratch" else FUNCTIONS)
    if config.fused_backward or device.static_shapes:
        config = config.in_one_piece()
    if config.micro_batch_size is None:
        config = replace(config, micro_batch_size=default_rows(config, shape))
    return config


def _open_data(config: TrainConfig, start: Start) -> Opened:
    c, template = config, config.template or start.template or "instruct"
    found = open_datasets(
        c.data, start.tokenizer, c.block_size, template, c.packing, c.record_keys, c.strict
    )
    if found.template is None and config.template:
        raise UsageError("--template is for records, and %s is text" % c.data, "leave it out")
    if found.train.tokenizer_fingerprint != start.tokenizer.fingerprint:
        how = "--tokenizer %s" % start.origin
        if found.template is not None:
            how += " --template %s" % found.template.name
        raise DataError(
            "%s was prepared with another tokenizer than the model's" % c.data,
            "prepare it again with: python -m minigpt prepare SOURCE --out DIR %s" % how,
        )
    return found


def _prompt(config: TrainConfig, tokenizer: Tokenizer) -> List[int]:
    return tokenizer.encode(config.sample_prompt) or [tokenizer.eos_id]


def _set_steps(config: TrainConfig, samples: int) -> TrainConfig:
    if config.epochs is not None:
        config = replace(
            config, epochs=None, steps=max(1, round(config.epochs * samples / config.batch_size))
        )
    every = max(1, config.steps // 5)
    open_ones = {n: every for n in _INTERVALS if getattr(config, n) is None}
    return replace(config, **open_ones)  # type: ignore[arg-type]


def _state(config: TrainConfig, start: Start, train: Dataset) -> RunState:
    data = "%s seed %d" % (train.fingerprint, config.seed)
    if start.resumes is None:
        return RunState(data=data)
    state = load_state(start.resumes)
    if state.data != data:
        raise UsageError(
            "the data, how it is cut (--template, --packing, --block-size) or --seed is not what"
            " %s was trained with" % config.resume,
            "resume with the same, or start a new run with --init %s" % config.resume,
        )
    if state.step >= config.steps:
        raise UsageError(
            "%s has done all of its %d steps" % (config.resume, state.step),
            "go further with --steps N, or start a new run with --init %s" % config.resume,
        )
    if config.patience and state.worse >= config.patience:
        raise UsageError(
            "%s stopped after %d validations without a better loss" % (config.resume, state.worse),
            "go on with a larger --patience, or --patience 0",
        )
    return state


def _optimizer(config: TrainConfig, model: GPT, device: Device) -> AdamW:
    c = config
    groups = decay_groups(model, c.weight_decay, c.hidden_lr_scale)
    if device.static_shapes:
        execution = plain
    else:
        execution = compiled if c.compile and not device.compiler_missing() else in_slices
    return AdamW(groups, c.lr, (c.beta1, c.beta2), c.eps, c.weight_decay, execution)


def _peak(config: TrainConfig, device: Device) -> Optional[float]:
    """Tokens a second if the device reached the FLOP/s of its data sheet; what is recomputed is no
    use and does not count (Chowdhery et al. 2022, appendix B).
    """
    job = replace(job_of(config, device.kind), recompute=False)
    peak = looked_up_peak(device, job.product_bytes)
    return None if peak is None else peak * job.batch * job.block / flops(job)


def _objective(config: TrainConfig, model: GPT, device: Device) -> Objective:
    compiled, missing = config.compile, device.compiler_missing()
    if compiled and missing:
        print(f"--compile: {missing}; going on without", flush=True)
        compiled = False
    elif compiled and config.fused_backward:
        # A compiled backward pass hands out all gradients together, at its end.
        print("--compile: the optimizer alone, for the sake of --fused-backward", flush=True)
        compiled = False
    return objective_for(model, device, config.precision, config.recompute, compiled)


def _update(config: TrainConfig, model: GPT, optimizer: AdamW, state: RunState) -> Update:
    if config.fused_backward:
        return InBackward(optimizer)
    parameters = list(model.parameters())
    if not state.loss_scale:
        return Clipped(optimizer, parameters, config.grad_clip)
    scale = (state.loss_scale, state.clean_steps, state.skipped_steps)
    return Scaled(optimizer, parameters, config.grad_clip, *scale)


def _run_directory(config: TrainConfig) -> Path:
    if config.resume:
        return Path(config.resume)
    if config.out is None:
        name = config.model if config.init == "scratch" else Path(config.init).resolve().name
        return Path("runs") / ("%s-%s" % (name, time.strftime("%Y%m%d-%H%M%S")))
    run = Path(config.out)
    require_free(run, "go on with it by --resume %s, or name another" % run)
    return run
