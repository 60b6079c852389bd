"""`python -m minigpt plan`: whether a run fits and how long it takes, before anything is loaded.

It takes the flags of train.py, which says the same in a line before it loads a model (job.py).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Dict, List, Optional, Tuple

import torch
from typing_extensions import Annotated

from minigpt.base.errors import MinigptError, UsageError
from minigpt.base.text import duration, size
from minigpt.commands.flags import parse_settings
from minigpt.data.shards import TEXT, read_dataset
from minigpt.data.sources import HELD_OUT, find_files
from minigpt.devices.device import DEVICES, Device, find_device, is_moai
from minigpt.model import zoo
from minigpt.planning import peaks
from minigpt.planning.fit import largest_rows
from minigpt.planning.flavors import FLAVORS, Flavor
from minigpt.planning.memory import Job, memory, moments
from minigpt.training.config import TrainConfig, left_open
from minigpt.training.job import Pace, advice, job_of, pace, too_long
from minigpt.training.resolve import resolve
from minigpt.training.settings import Settings

GB = peaks.GB
# Published for Cerebras-GPT-13B in the "LLM Fine-tuning Parameter Guide" of docs.moreh.io (MoAI
# framework 24.5): flavor, batch, block -> MiB in use on all GCDs.
_PUBLISHED = {
    ("4xLarge.2048GB", 16, 1024): 1_764_955,
    ("8xLarge.4096GB", 32, 1024): 3_460_240,
    ("8xLarge.4096GB", 16, 2048): 1_951_344,
}
_BYTES, _OF_A_TOKEN = 257, 3.0  # the bytes tokenizer's words; bytes that one of GPT-2's stands for
_STAGES = 4  # pipeline stages in all four published logs of that model
_PARTS = (
    ("weights", "weights"), ("16-bit copies", "copies"), ("gradients", "gradients"),
    ("optimizer states", "states"), ("activations", "activations"), ("logits and loss", "loss"),
    ("passing", "work"),
)  # fmt: skip


@dataclass
class PlanConfig(TrainConfig):
    """Says what a run with these flags of train.py takes: memory, what fits, time. The others of
    its flags may be given too, and change nothing of that.
    """

    groups: ClassVar[Dict[str, str]] = {
        **TrainConfig.groups, "template": "", "tokenizer": "data", "out": "", "resume": "run",
        "force": "", "deterministic": "", "lr": "", "grad_clip": "optimizer", "lora_alpha": "",
        "lora_dropout": "adapter", "patience": "", "moai_parallelization": "", "memory": "memory",
        "moai_activation_recomputation": "MoAI", "moai_distribute_parameter": "",
    }  # fmt: skip

    device: str = "auto"
    """What to plan for: auto or cpu, cuda, mps (this machine's); mi250, mi300x, a100-40gb, a100,
    h100, h200; a MoAI flavor such as 4xLarge.2048GB; or moai for all of its flavors.
    """
    memory: Annotated[Optional[str], left_open("80GB", "the device's")] = None
    """Memory to plan for, such as 80GB."""


def plan_command(arguments: List[str]) -> None:
    """Prints the plan of the run that train.py would make of `arguments`."""
    config = parse_settings(PlanConfig, "minigpt plan", arguments)
    if config.device == "moai" or (config.device == "auto" and is_moai()):
        job = _on_moai(config)
        print("\n".join([*_about(job), *_flavor_lines(job, FLAVORS), *_whole(config, None)]))
        return
    job, accelerator, local = _target(config)
    lines = [*_about(job), *_table(job, accelerator), *_verdict(job, accelerator, config, local)]
    print("\n".join(lines + _whole(config, pace(job, accelerator))))


def _target(config: PlanConfig) -> Tuple[Job, peaks.Accelerator, Optional[Device]]:
    """What is planned and for what, and this machine's device if it is for that."""
    room = peaks.parse_memory(config.memory) if config.memory is not None else None
    if config.device == "auto" and room is not None:
        unnamed = peaks.Accelerator("one that is not named", room, 0.0, 0.0)
        return job_of(resolve(config, None, room=room), None), unnamed, None
    local = None
    if config.device in DEVICES:
        local = find_device(config.device)
        job = job_of(resolve(config, local), local)
        accelerator = peaks.here(local, job.product_bytes)
    else:
        accelerator = peaks.find_accelerator(config.device)
        room_there = accelerator.memory if room is None else room
        job = job_of(resolve(config, None, room=room_there), None)
        if accelerator.flavor:
            job = _on_moai(config)
    return job, accelerator if room is None else replace(accelerator, memory=room), local


def _on_moai(config: PlanConfig) -> Job:
    if config.memory is not None:
        raise UsageError("a MoAI flavor has its own memory", "leave out --memory")
    device = Device("moai", torch.device("cuda"))
    return job_of(resolve(config, device), device)


def _about(job: Job) -> List[str]:
    shape = job.shape
    layers = f"{shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} wide"
    rows, lora = f"{job.rows} rows at a time", ", LoRA" if job.lora else ""
    return [
        f"model     {shape.parameter_count():,} parameters: {layers}",
        f"step      {job.batch} x {job.block} tokens, {rows}, {job.precision}{lora}",
    ]


def _table(job: Job, device: peaks.Accelerator) -> List[str]:
    """Each part at its largest, and the largest sum; as asked, and with the other recomputation."""
    jobs = [replace(job, recompute=False), replace(job, recompute=True)]
    totals = [memory(one) for one in jobs]
    texts = [("", ["all kept", "recomputed"])]
    for title, part in _PARTS:
        most = [max(getattr(moment, part) for moment in moments(one)) for one in jobs]
        texts.append((title, [size(count) for count in most]))
    texts.append(("at one time", [size(largest.total) for largest in totals]))
    texts.append(("that is when", [largest.moment for largest in totals]))
    texts.append(("rows that fit", [str(largest_rows(one, device.memory)) for one in jobs]))
    lines = [f"{title:<18}{kept:>17}{again:>17}" for title, (kept, again) in texts]
    return [f"device    {device.name}: {size(device.memory)}", "", *lines, ""]


def _verdict(
    job: Job, accelerator: peaks.Accelerator, config: PlanConfig, local: Optional[Device]
) -> List[str]:
    if accelerator.flavor is not None:
        return _flavor_lines(job, (accelerator.flavor,))
    need, room = memory(job).total, accelerator.memory
    if need <= room:
        return [f"fits      yes, with {size(room - need)} to spare", _time(job, accelerator)]
    lines = [f"fits      no: {size(need - room)} too much"]
    found = advice(job, room, config, local)
    if not found:
        return [*lines, "          and no flag here helps; try a smaller --block-size or model"]
    lines += [f"          it does with {flags}" for flags, _ in found]
    return [*lines, _time(found[0][1], accelerator), "          (with the first of these)"]


def _time(job: Job, device: peaks.Accelerator) -> str:
    step = pace(job, device)
    if step is None:
        return "time      unknown without a --device"
    speed = int(job.batch * job.block / step.seconds)
    return f"time      {step.seconds:.3g} s a step, {speed:,} tokens/s: {step.assumed}"


def _whole(config: PlanConfig, step: Optional[Pace]) -> List[str]:
    """All steps: how long they take, and how often they pass over the data, by its files' size."""
    s = resolve(config, None)
    there, of_a_step = _tokens(s), s.batch_size * s.block_size
    steps = config.epochs * there / of_a_step if config.epochs else s.steps
    if not steps:
        return ["run       epochs are counted once the data are read: train.py ... --dry-run"]
    epochs, seconds = there and steps * of_a_step / there, step and steps * step.seconds
    text = f"run       {steps:,.0f} steps, {steps * of_a_step:,.0f} tokens"
    text += f", about {epochs:,.1f} epochs of {s.data}" if epochs else ""
    return [text + (f", {duration(seconds)}" if seconds else ""), *too_long(epochs, seconds)]


def _tokens(settings: Settings) -> float:
    """About how many there are to train on; 0 where that is not known before they are read."""
    size = 0.0
    with suppress(MinigptError, OSError):
        if isinstance(settings.data, str):
            content = read_dataset(Path(settings.data), TEXT)
            if content is not None:
                return float(content["splits"]["train"]["tokens"])
        files = find_files(settings.data).files
        size = sum(file.path.stat().st_size for file in files)
    return size * (1 - HELD_OUT) / (1 if settings.shape.vocab_size == _BYTES else _OF_A_TOKEN)


def _flavor_lines(job: Job, flavors: Tuple[Flavor, ...]) -> List[str]:
    """What each GCD of a flavor would hold if everything were spread evenly, if weights and all
    that belongs to them were cut into pipeline stages, and if every GCD had all of them.
    """
    lines = [
        "GB on each GCD of 64: computed, not known. What MoAI does is published where it says so",
        f"{'':<18}{'GCDs':>6}{'spread evenly':>14}{'4 stages':>10}{'replicated':>12}  fits",
    ]
    for flavor in flavors:
        gcds, limit = flavor.gcds, peaks.GCD.memory / GB
        stages = min(gcds, _STAGES)
        even = _on_each(job, gcds, gcds)
        staged, whole = _on_each(job, gcds, stages, stages), _on_each(job, gcds, 1)
        ways = ((whole, "yes"), (staged, "in stages"), (even, "if spread evenly"))
        fits = next((way for need, way in ways if need <= limit), "no")
        numbers = f"{gcds:6}{even:14.1f}{staged:10.1f}{whole:12.1f}"
        lines.append(f"{flavor.name:<18}{numbers}  {fits}{_published(job, flavor)}")
    if len(flavors) == 1:
        lines.append(_time(job, peaks.of_flavor(flavors[0])))
    return lines


def _on_each(job: Job, gcds: int, parts: int, stages: int = 1) -> float:
    """GB on each GCD when weights, gradients and states are cut into `parts`, and the layers into
    `stages`; the batch and all that grows with it are divided among all GCDs of a stage, as far as
    it has rows.
    """
    most, among = 0.0, min(gcds, stages * job.batch)
    for moment in moments(job):
        kept = moment.weights + moment.gradients + moment.states
        most = max(most, kept / parts + (moment.total - kept) / among)
    return most / GB


def _published(job: Job, flavor: Flavor) -> str:
    found = _PUBLISHED.get((flavor.name, job.batch, job.block))
    if found is None or job.shape != zoo.find("cerebras-13b").config or job.lora:
        return ""
    on_each = found * 2**20 / flavor.gcds / GB
    return f"; published: {found:,} MiB in all, {on_each:.1f} on each"
