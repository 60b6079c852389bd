"""A run as the memory plan sees it, and what train.py says of it before it loads anything."""

from __future__ import annotations

from dataclasses import replace
from typing import List, NamedTuple, Optional, Set, Tuple

from minigpt.base.text import duration, size
from minigpt.devices.device import PRECISIONS, Device, weight_dtype
from minigpt.optim.execution import compiles
from minigpt.planning import peaks
from minigpt.planning.fit import FUSED, LORA, Advice, nearest_fit, step_seconds
from minigpt.planning.memory import Job, memory
from minigpt.training.config import TrainConfig
from minigpt.training.parallel import processes
from minigpt.training.settings import Settings

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
    s, batch = settings, settings.batch_size // processes()
    job = Job(
        s.shape, min(s.micro_batch_size, batch), batch, s.block_size, s.precision, s.recompute,
        s.fused_backward, s.lora, s.freeze_layers,
    )  # fmt: skip
    if device is None:
        return replace(job, compiled_update=True)
    if device.static_shapes:
        recompute = bool(s.moai_activation_recomputation)
        job = replace(job, recompute=recompute, whole_logits=True)
    return replace(
        job, explicit=not device.fused_attention, on_cpu=device.on_cpu,
        compiled_update=compiles_update(settings, device),
    )  # fmt: skip


def compiles_update(settings: Settings, device: Device) -> bool:
    """Whether the optimizer's step is compiled: on a GPU in every run, since it would be sent some
    80 kernels for each weight, and pass over its memory as often.
    """
    wanted = (settings.compile or device.is_gpu) and not device.compiler_missing()
    return wanted and compiles(weight_dtype(settings.precision), device.torch_device.type)


def one_line(config: TrainConfig, settings: Settings, device: Device) -> Verdict:
    """The plan of a run on `device` in a line, whether it fits into what is free there, and what to
    change in `config`, from which `settings` were resolved, if not.
    """
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
    return Pace(step_seconds(job, peak, share), assumed)


def too_long(epochs: Optional[float], seconds: Optional[float]) -> List[str]:
    """A line for each way in which a whole run is longer than people mean runs to be."""
    lines = []
    if epochs and epochs > _MOST_EPOCHS:
        lines.append(
            f"note     all texts {epochs:,.0f} times: more than ten seldom help; --epochs 3"
        )
    if seconds and seconds > _WEEK:
        lines.append(f"note     {duration(seconds)} are long: fewer --steps, or a smaller model")
    return lines


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
            barred.add(f"--precision {precision}")
    if device is not None and device.fused_backward_missing():
        barred.add(FUSED)
    return barred


def _flags(advice: Advice, config: TrainConfig) -> str:
    """The advice, and what else it needs beside what was said."""
    text = str(advice)
    if FUSED in text and config.grad_clip:
        text += ", --grad-clip 0"
    if advice.job.whole_batch and config.micro_batch_size not in (None, advice.job.batch):
        text += f", --micro-batch-size {advice.job.batch}"
    return text
