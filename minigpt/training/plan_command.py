"""`python -m minigpt plan`: whether a run fits and how long it takes, before anything is loaded.

It takes the flags of train.py, which asks `one_line` here before it loads a model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

import tyro
from typing_extensions import Annotated

from minigpt.checkpoint.model_files import read_config as read_shape
from minigpt.checkpoint.run_files import LATEST, resolve
from minigpt.devices import peaks
from minigpt.devices.device import Device, find_device, is_moai
from minigpt.devices.fit import largest_rows, nearest_fit, step_seconds
from minigpt.devices.flavors import FLAVORS, Flavor
from minigpt.devices.plan import Job, memory, moments
from minigpt.errors import UsageError
from minigpt.model import zoo
from minigpt.model.attention import HAS_FUSED
from minigpt.model.gpt import GPTConfig
from minigpt.text import nearest, size
from minigpt.training.config import FINE_TUNING, LORA_TUNING, TrainConfig, read_config

GB = peaks.GB
# Shares of the peak that a step is assumed to reach. MoAI's is that of its tutorial: 27.2 million
# tokens in the published 81 minutes, on 16 MI250.
_SHARE, _MOAI_SHARE = 0.4, 0.08
# Published for Cerebras-GPT-13B in the "LLM Fine-tuning Parameter Guide" of docs.moreh.io (MoAI
# framework 24.5): flavor, batch, block -> MiB in use on all GCDs.
_PUBLISHED = {
    ("4xLarge.2048GB", 16, 1024): 1_764_955,
    ("8xLarge.4096GB", 32, 1024): 3_460_240,
    ("8xLarge.4096GB", 16, 2048): 1_951_344,
}
_STAGES = 4  # pipeline stages in all four published logs of that model
_PARTS = (
    ("weights", "weights"), ("16-bit copies", "copies"), ("gradients", "gradients"),
    ("optimizer states", "states"), ("activations", "activations"), ("logits and loss", "loss"),
    ("passing", "work"),
)  # fmt: skip


@dataclass
class PlanConfig(TrainConfig):
    """Says what a run with these flags of train.py takes: memory, what fits, time of a step.
    Nothing is loaded.
    """

    device: str = "auto"
    """What to plan for: auto or cpu, cuda, mps (this machine's); mi250, mi300x, a100-40gb, a100,
    h100, h200; a MoAI flavor such as 4xLarge.2048GB; or moai for all of its flavors.
    """
    memory: Annotated[
        Optional[str], tyro.conf.arg(metavar="80GB", help_behavior_hint="(default: the device's)")
    ] = None
    """Memory to plan for, such as 80GB."""


class Verdict(NamedTuple):
    """What train.py says before it loads anything."""

    line: str
    fits: bool
    advice: str  # flags with which it fits; empty when none do


def plan_command(config: PlanConfig) -> None:
    """Prints the plan."""
    config = _settings(config)
    if config.device == "moai" or (config.device == "auto" and is_moai()):
        _refuse_memory(config)
        job = job_of(config, "moai")
        print("\n".join([*_about(job), *_flavor_lines(job, FLAVORS)]))
        return
    job, device = _target(config)
    print("\n".join([*_about(job), *_table(job, device), *_verdict(job, device)]))


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
    found = [] if fits else nearest_fit(job, room, 1)
    return Verdict(text, fits, str(found[0]) if found else "")


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
    return min(max(1, GB // 4 // (config.block_size * shape.vocab_size)), config.batch_size)


def _settings(config: PlanConfig) -> PlanConfig:
    """Flags on top of the file of --config, or of the run of --resume."""
    if not (config.config or config.resume):
        return config
    path = Path(config.config) if config.config else Path(str(config.resume)) / "config.toml"
    default, read = PlanConfig(), read_config(path)
    given = {field.name: getattr(config, field.name) for field in fields(PlanConfig)}
    given = {name: value for name, value in given.items() if value != getattr(default, name)}
    return PlanConfig(**{**vars(read), **given})


def job_of(config: TrainConfig, kind: str) -> Job:
    """The job of a run on a kind of device ("" for one that is not here)."""
    shape, recipe = find_shape(config)
    config = config.filled(recipe, shape.n_positions)
    if config.block_size > shape.n_positions:
        raise UsageError(
            "--block-size %d is more than the model's %d positions"
            % (config.block_size, shape.n_positions),
            "use --block-size %d" % shape.n_positions,
        )
    if kind == "moai" and config.precision != "fp32":
        raise UsageError("--precision is not MoAI's way", "use --moai-mixed-precision True")
    whole = config.fused_backward or kind == "moai"
    rows = config.batch_size if whole else config.micro_batch_size or default_rows(config, shape)
    return Job(
        shape,
        rows=min(rows, config.batch_size),
        batch=config.batch_size,
        block=config.block_size,
        precision=config.precision,
        recompute=config.recompute or bool(config.moai_activation_recomputation),
        fused_backward=config.fused_backward,
        lora=config.lora(),
        freeze_layers=config.freeze_layers,
        explicit=kind == "moai" or (kind != "" and not HAS_FUSED),
        whole_logits=kind == "moai",
        on_cpu=kind == "cpu",
    )


def _target(config: PlanConfig) -> Tuple[Job, peaks.Accelerator]:
    """What is planned, and for what."""
    room = peaks.parse_memory(config.memory) if config.memory is not None else None
    if config.device == "auto" and room is not None:
        return job_of(config, ""), peaks.Accelerator("one that is not named", room, 0.0, 0.0)
    if config.device in ("auto", "cpu", "cuda", "mps"):
        local = find_device(config.device)
        job = job_of(config, local.kind)
        device = peaks.here(local, job.product_bytes)
    else:
        device = peaks.find_accelerator(config.device)
        job = job_of(config, "moai" if device.flavor else "")
        if device.flavor:
            _refuse_memory(config)
    return job, device if room is None else replace(device, memory=room)


def _refuse_memory(config: PlanConfig) -> None:
    if config.memory is not None:
        raise UsageError("a MoAI flavor has its own memory", "leave out --memory")


def _about(job: Job) -> List[str]:
    shape = job.shape
    size_of = (shape.parameter_count(), shape.n_layer, shape.n_head, shape.n_embd)
    return [
        "model     {:,} parameters: {} layers, {} heads, {} wide".format(*size_of),
        "step      %d x %d tokens, %d rows at a time, %s%s"
        % (job.batch, job.block, job.rows, job.precision, ", LoRA" if job.lora else ""),
    ]


def _table(job: Job, device: peaks.Accelerator) -> List[str]:
    """Each part at its largest, and the largest sum; as asked, and with the other recomputation."""
    jobs = [replace(job, recompute=False), replace(job, recompute=True)]
    totals = [memory(one) for one in jobs]
    parts = [(title, [_most(one, part) for one in jobs]) for title, part in _PARTS]
    parts.append(("at one time", [most.total for most in totals]))
    texts = [(title, [size(count) for count in counts]) for title, counts in parts]
    texts.insert(0, ("", ["all kept", "recomputed"]))
    texts.append(("that is when", [most.moment for most in totals]))
    texts.append(("rows that fit", [str(largest_rows(one, device.memory)) for one in jobs]))
    lines = ["%-18s%17s%17s" % (title, *pair) for title, pair in texts]
    return ["device    %s: %s" % (device.name, size(device.memory)), "", *lines, ""]


def _most(job: Job, part: str) -> int:
    return max(getattr(moment, part) for moment in moments(job))


def _verdict(job: Job, device: peaks.Accelerator) -> List[str]:
    if device.flavor is not None:
        return _flavor_lines(job, (device.flavor,))
    need, room = memory(job).total, device.memory
    if need <= room:
        return ["fits      yes, with %s to spare" % size(room - need), _time(job, device)]
    lines = ["fits      no: %s too much" % size(need - room)]
    found = nearest_fit(job, room)
    if not found:
        return [*lines, "          and no flag here helps; try a smaller --block-size or model"]
    lines += ["          it does with %s" % advice for advice in found]
    return [*lines, _time(found[0].job, device), "          (with the first of these)"]


def _time(job: Job, device: peaks.Accelerator) -> str:
    share = _MOAI_SHARE if device.flavor else _SHARE
    peak = device.bf16 if device.flavor else device.flops(job.product_bytes)
    if not peak:
        return "time      unknown without a --device"
    seconds = step_seconds(job, peak, share)
    return "time      %.3g s a step, %s tokens/s: assumed %d%% of a peak of %.4g TFLOP/s" % (
        seconds, format(int(job.batch * job.block / seconds), ","), share * 100, peak / peaks.TERA,
    )  # fmt: skip


def _flavor_lines(job: Job, flavors: Tuple[Flavor, ...]) -> List[str]:
    """What each GCD of a flavor would hold if everything were spread evenly, if weights and all
    that belongs to them were cut into pipeline stages, and if every GCD had all of them.
    """
    lines = [
        "GB on each GCD of 64: computed, not known. What MoAI does is published where it says so",
        "%-18s%6s%14s%10s%12s  fits" % ("", "GCDs", "spread evenly", "4 stages", "replicated"),
    ]
    for flavor in flavors:
        gcds, limit = flavor.gcds, peaks.GCD.memory / GB
        even, staged, whole = (
            _on_each(job, gcds, parts) for parts in (gcds, min(gcds, _STAGES), 1)
        )
        ways = ((whole, "yes"), (staged, "in stages"), (even, "if spread evenly"))
        fits = next((way for need, way in ways if need <= limit), "no")
        numbers = "%6d%14.1f%10.1f%12.1f" % (gcds, even, staged, whole)
        lines.append("%-18s%s  %s%s" % (flavor.name, numbers, fits, _published(job, flavor)))
    if len(flavors) == 1:
        lines.append(_time(job, peaks.of_flavor(flavors[0])))
    return lines


def _on_each(job: Job, gcds: int, parts: int) -> float:
    """GB on each GCD when weights, gradients and states are cut into `parts`; the batch and all
    that grows with it are divided among all GCDs.
    """
    most = 0.0
    for moment in moments(job):
        kept = moment.weights + moment.gradients + moment.states
        most = max(most, kept / parts + (moment.total - kept) / gcds)
    return most / GB


def _published(job: Job, flavor: Flavor) -> str:
    found = _PUBLISHED.get((flavor.name, job.batch, job.block))
    if found is None or job.shape != zoo.find("cerebras-13b").config or job.lora:
        return ""
    on_each = found * 2**20 / flavor.gcds / GB
    return "; published: %s MiB in all, %.1f on each" % (format(found, ","), on_each)
