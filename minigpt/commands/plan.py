"""`python -m minigpt plan`: whether a run fits and how long it takes, before anything is loaded.

It takes the flags of train.py, which says the same in a line before it loads a model.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import torch

from minigpt.base.errors import MinigptError, UsageError, flag, require_number
from minigpt.base.text import duration, size
from minigpt.commands.options import PlanConfig
from minigpt.data.shards import TEXT, read_dataset
from minigpt.data.sources import TRAIN, VALIDATION, find_files, said
from minigpt.devices import DEVICES
from minigpt.devices.device import Device, find_device, is_moai
from minigpt.model import zoo
from minigpt.planning import peaks
from minigpt.planning.fit import largest_rows
from minigpt.planning.memory import Job, memory, moments
from minigpt.planning.peaks import GB
from minigpt.planning.sending import Cluster, all_sent
from minigpt.training.config import Settings
from minigpt.training.parallel import processes
from minigpt.training.resolve import Pace, advice, job_of, pace, resolve, too_long

# Published for Cerebras-GPT-13B in the "LLM Fine-tuning Parameter Guide" of docs.moreh.io (MoAI
# framework 24.5): flavor, batch, block -> MiB in use on all GCDs.
_PUBLISHED = {
    ("4xLarge.2048GB", 16, 1024): 1_764_955,
    ("8xLarge.4096GB", 32, 1024): 3_460_240,
    ("8xLarge.4096GB", 16, 2048): 1_951_344,
}
_STAGES = 4  # pipeline stages in all four published logs of that model
_BYTES, _OF_A_TOKEN = 257, 3.0  # the bytes tokenizer's words; bytes that one of GPT-2's stands for
_PARTS = {
    "weights": "weights", "16-bit copies": "copies", "gathered": "gathered",
    "gradients": "gradients", "optimizer states": "states", "activations": "activations",
    "logits and loss": "loss", "passing": "work",
}  # fmt: skip


def plan_command(config: PlanConfig) -> None:
    """Prints the plan of the run that train.py would make of `config`."""
    for name in ("gpus", "nodes"):
        require_number(f"number of {name}", getattr(config, name), least=1, whole=True)
    for name in ("link", "network"):
        require_number(flag(name), getattr(config, name), above=0, optional=True)
    if config.gpus * config.nodes > 1:  # as torchrun would say it to train.py
        sizes = {"WORLD_SIZE": config.gpus * config.nodes, "LOCAL_WORLD_SIZE": config.gpus}
        os.environ.update((name, str(size)) for name, size in sizes.items())
    device, planned = _target(config)
    settings = resolve(config, device, room=planned.memory if planned else None)
    job, step = job_of(settings, device), None
    shape, adapter = job.shape, ", LoRA" if job.lora else ""
    layers = f"{shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} wide"
    lines = [f"model     {shape.parameter_count():,} parameters: {layers}"]
    rows = f"{job.rows} rows at a time, {job.precision}{adapter}"
    lines.append(f"step      {settings.batch_size} x {job.block} tokens, {rows}")
    if processes() > 1:
        divided = f", the model divided among {job.shards}" if job.shards > 1 else ""
        how = f"--parallel {settings.division}{divided}"
        lines.append(f"together  {processes()} devices, {job.batch} rows each, {how}")
    if planned is None:
        lines += _flavor_lines(job, peaks.FLAVORS)
    else:
        links = (config.link or planned.link) * GB, (config.network or 0) * GB
        cluster = Cluster(settings.division, config.gpus, config.nodes, *links)
        step = pace(job, planned, cluster)
        lines += [*_table(job, planned), *_verdict(job, planned, config, device, cluster)]
    print("\n".join([*lines, *_whole(config, settings, step)]))


def _target(config: PlanConfig) -> Tuple[Optional[Device], Optional[peaks.Accelerator]]:
    """The device whose rules hold (None: not here), and what is planned for (None: all flavors)."""
    room = peaks.parse_memory(config.memory) if config.memory is not None else None
    name = "moai" if config.device == "auto" and is_moai() else config.device
    if name == "auto" and room is not None:
        return None, peaks.Accelerator("one that is not named", room, 0.0, 0.0)
    device, planned = None, None
    if name in DEVICES:
        device = find_device(name)
        planned = peaks.here(device, 4 if config.precision == "fp32" else 2)
    elif name != "moai":
        planned = peaks.find_accelerator(name)
    if planned is None or planned.flavor:
        if room is not None or config.gpus * config.nodes > 1:
            named = "--memory" if room is not None else "--gpus and --nodes"
            raise UsageError("a MoAI flavor has its own memory and GPUs", f"leave out {named}")
        return Device("moai", torch.device("cuda")), planned
    return device, replace(planned, memory=room or planned.memory)


def _table(job: Job, planned: peaks.Accelerator) -> List[str]:
    """Each part at its largest, and the largest sum; as asked, and with the other recomputation."""
    shown = {title: part for title, part in _PARTS.items() if job.shards > 1 or part != "gathered"}
    titles = ["", *shown, "at one time", "that is when", "rows that fit"]
    columns = []
    for head, one in (("all kept", False), ("recomputed", True)):
        variant = replace(job, recompute=one)
        most, steps = memory(variant), moments(variant)
        parts = [size(max(getattr(moment, part) for moment in steps)) for part in shown.values()]
        rows = str(largest_rows(variant, planned.memory))
        columns.append([head, *parts, size(most.total), most.moment, rows])
    lines = [f"{title:<18}{kept:>17}{again:>17}" for title, kept, again in zip(titles, *columns)]
    return [f"device    {planned.name}: {size(planned.memory)}", "", *lines, ""]


def _verdict(
    job: Job, planned: peaks.Accelerator, config: PlanConfig, device: Optional[Device],
    cluster: Cluster,
) -> List[str]:  # fmt: skip
    if planned.flavor is not None:
        return [*_flavor_lines(job, [planned.flavor]), *_time(job, planned, cluster)]
    need, room = memory(job).total, planned.memory
    if need <= room:
        return [f"fits      yes, with {size(room - need)} to spare", *_time(job, planned, cluster)]
    lines = [f"fits      no: {size(need - room)} too much"]
    found = advice(job, room, config, device)
    if not found:
        return [*lines, "          and no flag here helps; try a smaller --block-size or model"]
    lines += [f"          it does with {flags}" for flags, _ in found]
    return [*lines, *_time(found[0][1], planned, cluster), "          (with the first of these)"]


def _time(job: Job, planned: peaks.Accelerator, cluster: Cluster) -> List[str]:
    step = pace(job, planned, cluster)
    lines = [_sends(job, cluster, step)] if processes() > 1 else []
    if step is None:
        return [*lines, "time      unknown without a --device"]
    speed = int(processes() * job.batch * job.block / step.seconds)
    return [*lines, f"time      {step.seconds:.3g} s a step, {speed:,} tokens/s: {step.assumed}"]


def _sends(job: Job, cluster: Cluster, step: Optional[Pace]) -> str:
    """How much each device sends, how long that takes, and what of it goes on beside computing."""
    text = f"sends     {size(sum(one.sent for one in all_sent(job, cluster)))} a step from each"
    if cluster.unknown:
        return f"{text}; say {cluster.unknown} GB/s, or the time leaves that out"
    links = (cluster.gpus, cluster.link, "within"), (cluster.nodes, cluster.network, "between")
    used = (f"{speed / GB:g} GB/s {where} machines" for n, speed, where in links if n > 1)
    rates = " and ".join(used)
    if step is None:
        return f"{text}, at {rates}"
    beside = step.sending - step.added
    return f"{text}, at {rates}: {step.sending:.3g} s, {beside:.3g} of them beside computing"


def _whole(config: PlanConfig, s: Settings, step: Optional[Pace]) -> List[str]:
    """All steps: how long they take, and how often they pass over the data, by its files' size."""
    there, of_a_step = _tokens(s), s.batch_size * s.block_size
    steps = config.epochs * there / of_a_step if config.epochs else s.steps
    if not steps:
        return ["run       epochs are counted once the data are read: train.py ... --dry-run"]
    epochs, seconds = there and steps * of_a_step / there, step and steps * step.seconds
    text = f"run       {steps:,.0f} steps, {steps * of_a_step:,.0f} tokens"
    text += f", about {epochs:,.1f} epochs of {said(s.data)}" if epochs else ""
    return [text + (f", {duration(seconds)}" if seconds else ""), *too_long(epochs, seconds)]


def _tokens(settings: Settings) -> float:
    """About how many there are to train on; 0 where that is not known before they are read."""
    count = 0.0
    with suppress(MinigptError, OSError):
        name = settings.data
        content = read_dataset(Path(name), TEXT) if isinstance(name, str) else None
        if content is not None:
            return float(content["splits"]["train"]["tokens"])
        found = find_files(name, settings.asked.validation)
        learned = {TRAIN: 1.0, VALIDATION: 0.0}  # of files that are divided: all but the share
        count = sum(f.size * learned.get(f.split or "", 1 - found.share) for f in found.files)
    return count / (1 if settings.shape.vocab_size == _BYTES else _OF_A_TOKEN)


def _flavor_lines(job: Job, flavors: Sequence[peaks.Flavor]) -> List[str]:
    """What each GCD of a flavor would hold if all were spread evenly, if the layers were cut into
    pipeline stages, and if every GCD had all of the weights and what belongs to them.
    """
    lines = [
        "GB on each GCD of 64: computed, not known. What MoAI does is published where it says so",
        f"{'':<18}{'GCDs':>6}{'spread evenly':>14}{'4 stages':>10}{'replicated':>12}  fits",
    ]
    known = job.shape == zoo.find("cerebras-13b").config and not job.lora
    for flavor in flavors:
        gcds, limit = flavor.gcds, peaks.GCD.memory / GB
        stages = min(gcds, _STAGES)
        even = _on_each(job, gcds, gcds)
        staged, whole = _on_each(job, gcds, stages, stages), _on_each(job, gcds, 1)
        ways = ((whole, "yes"), (staged, "in stages"), (even, "if spread evenly"))
        fits = next((way for need, way in ways if need <= limit), "no")
        line = f"{flavor.name:<18}{gcds:6}{even:14.1f}{staged:10.1f}{whole:12.1f}  {fits}"
        used = _PUBLISHED.get((flavor.name, job.batch, job.block))
        if known and used:
            line += f"; published: {used:,} MiB in all, {used * 2**20 / gcds / GB:.1f} on each"
        lines.append(line)
    return lines


def _on_each(job: Job, gcds: int, parts: int, stages: int = 1) -> float:
    """GB on each GCD when weights, gradients and states are cut into `parts`, and the layers into
    `stages`, among whose GCDs the batch is divided as far as it has rows.
    """
    most, among = 0.0, min(gcds, stages * job.batch)
    for moment in moments(job):
        kept = moment.weights + moment.gradients + moment.states
        most = max(most, kept / parts + (moment.total - kept) / among)
    return most / GB
