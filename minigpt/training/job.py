"""A run as the memory plan sees it, and what train.py says of it before it loads anything."""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Set, Tuple

from minigpt.base.text import duration, size
from minigpt.devices.device import PRECISIONS, Device, weight_dtype
from minigpt.optim.execution import compiles
from minigpt.planning import peaks
from minigpt.planning.fit import FUSED, LORA, flops, nearest_fit
from minigpt.planning.memory import Job, memory
from minigpt.training.config import Settings, TrainConfig
from minigpt.training.parallel import processes

# Shares of the peak that a step is assumed to reach. MoAI's is that of its tutorial: 27.2 million
# tokens in the published 81 minutes, on 16 MI250.
_SHARE, _MOAI_SHARE = 0.4, 0.08
_MOST_EPOCHS, _WEEK = 10, 7 * 24 * 3600


class Verdict(NamedTuple):
    """What train.py says before it loads anything."""

    line: str
    fits: bool
    advice: str  # flags with which it fits; empty when none do


class Pace(NamedTuple):
    """How long a step is expected to take."""

    seconds: float
    assumed: str  # what that rests on, in words


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
        on_cpu=device is not None and device.on_cpu,
    )  # fmt: skip


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


def pace(job: Job, device: peaks.Accelerator) -> Optional[Pace]:
    """How fast `device` is expected to be; None where its peak is not known."""
    share = _MOAI_SHARE if device.flavor else _SHARE
    peak = device.bf16 if device.flavor else device.flops(job.product_bytes)
    if not peak:
        return None
    assumed = f"assumed {share * 100:.0f}% of a peak of {peak / peaks.TERA:.4g} TFLOP/s"
    return Pace(flops(job) / (peak * share), assumed)


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
    found = []
    for one in nearest_fit(job, room, barred=_barred(config, device)):
        flags = str(one)
        if FUSED in flags and config.grad_clip:
            flags += ", --grad-clip 0"
        if one.job.whole_batch and config.micro_batch_size not in (None, one.job.batch):
            flags += f", --micro-batch-size {one.job.batch}"
        found.append((flags, one.job))
    return found


def _barred(config: TrainConfig, device: Optional[Device]) -> Set[str]:
    """The flags that a run with `config` cannot be advised to use."""
    barred = {LORA} if config.resume or config.init == "scratch" else set()
    for precision in PRECISIONS:
        other = config.resume and weight_dtype(precision) != weight_dtype(config.precision)
        if other or (device is not None and device.precision_missing(precision)):
            barred.add(f"--precision {precision}")
    if device is not None and device.fused_backward_missing():
        barred.add(FUSED)
    return barred
