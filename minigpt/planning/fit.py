"""What of a job fits into a memory, what to change when it does not, and what a step computes.

All of it is arithmetic on the shape of the model and the settings of the run.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any, Collection, Iterator, List, NamedTuple, Tuple

from minigpt.devices.device import Device
from minigpt.model.config import GPTConfig, LoRAConfig
from minigpt.planning.memory import Job, matrices, memory


class Change(NamedTuple):
    """One thing that saves memory."""

    flag: str
    cost: str  # in words
    distance: int  # how far it is from what was asked; several add up
    setting: str  # what it sets in the Job
    value: Any


RECOMPUTE, FUSED, LORA = "--recompute", "--fused-backward", "--lora-rank 16"
# All that saves memory, beside fewer rows at a time, which cost nothing, and smaller steps.
_LADDER = (
    Change("--precision bf16-mixed", "16-bit arithmetic", 1, "precision", "bf16-mixed"),
    Change(RECOMPUTE, "about a third more time", 2, "recompute", True),
    Change(FUSED, "no clipping, no micro-batches", 3, "fused_backward", True),
    Change("--precision bf16", "16-bit weights and states", 4, "precision", "bf16"),
    Change(LORA, "an adapter learns, not the weights", 16, "lora", LoRAConfig(16)),
)


def more_memory(device: Device) -> str:
    """What to do when memory runs out on `device` in a run that was planned to fit."""
    if device.static_shapes:
        other = "a larger flavor (moreh-switch-model), or --moai-distribute-parameter True"
        return f"use a smaller --batch-size or --block-size, {other}"
    plan = "python -m minigpt plan with the same flags says what fits"
    return f"use a smaller --micro-batch-size or --block-size, or {RECOMPUTE}; {plan}"


class Advice(NamedTuple):
    """A job that fits, and what was changed for it."""

    job: Job
    changes: Tuple[Change, ...]

    def __str__(self) -> str:
        return ", ".join(f"{change.flag} ({change.cost})" for change in self.changes)


def largest_rows(job: Job, room: int) -> int:
    """The most rows (of the batch, where it must be whole) that fit into `room` bytes; or 0."""
    if memory(replace(job, rows=job.batch)).total <= room:
        return job.batch
    least, most = 0, job.batch - 1
    while least < most:
        rows = (least + most + 1) // 2
        if memory(with_rows(job, rows)).total <= room:
            least = rows
        else:
            most = rows - 1
    return least


def with_rows(job: Job, rows: int) -> Job:
    """The job with `rows` in a micro-batch, and in the batch where that must be whole."""
    return replace(job, rows=rows, batch=rows if job.whole_batch else job.batch)


def nearest_fit(job: Job, room: int, most: int = 3, barred: Collection[str] = ()) -> List[Advice]:
    """Changes after which the job fits into `room` bytes, the nearest to what was asked first. None
    of them contains another, or a flag that is `barred`.
    """
    fitting = []
    for changes in _combinations(job, barred):
        changed = replace(job, **{change.setting: change.value for change in changes})
        rows = largest_rows(changed, room)
        if rows:
            asked = job.batch if changed.whole_batch else job.rows
            fewer = (_fewer_rows(changed, rows),) if rows < asked else ()
            fitting.append(Advice(with_rows(changed, min(rows, asked)), fewer + changes))
    found: List[Advice] = []
    for advice in sorted(fitting, key=lambda one: sum(change.distance for change in one.changes)):
        rungs = {*advice.changes} & {*_LADDER}
        if not any({*nearer.changes} & {*_LADDER} <= rungs for nearer in found):
            found.append(advice)
    return found[:most]


def _fewer_rows(job: Job, rows: int) -> Change:
    if job.whole_batch:
        return Change(f"--batch-size {rows}", "smaller steps", 5, "batch", rows)
    same = "the result is the same" + (" but for rounding" if job.precision == "bf16" else "")
    return Change(f"--micro-batch-size {rows}", same, 0, "rows", rows)


def _combinations(job: Job, barred: Collection[str]) -> Iterator[Tuple[Change, ...]]:
    """Every combination of what saves memory and can be had."""
    usable = [one for one in _LADDER if one.flag not in barred and _saves(job, one)]
    for size in range(len(usable) + 1):
        for changes in combinations(usable, size):
            if len({change.setting for change in changes}) == size:  # not two precisions
                yield changes


def _saves(job: Job, change: Change) -> bool:
    """Whether the change is one, and may stand beside the job's other settings."""
    if job.whole_logits or getattr(job, change.setting) == change.value:  # MoAI has its own
        return False
    if change.setting == "precision":
        return change.value == "bf16" or job.precision == "fp32"
    if change.setting == "fused_backward":
        return job.precision != "fp16-mixed"
    return change.setting != "lora" or (job.lora is None and job.freeze_layers is None)


def flops_per_token(shape: GPTConfig, block_size: int) -> int:
    """Floating-point operations to train on one token: 6 per weight in a matrix product, and
    12 L C T for attention's two (the T x T triangle counted whole, as is customary: Chowdhery et
    al. 2022, appendix B).
    """
    weights = shape.n_layer * matrices(shape) + shape.vocab_size * shape.n_embd
    return 6 * weights + 12 * shape.n_layer * shape.n_embd * block_size


def flops(job: Job) -> int:
    """Floating-point operations of an optimizer step. Recomputation is the blocks' forward pass
    again; a frozen matrix has no gradient of its own, and below the first layer that learns
    nothing goes back at all. The adapter's own are not counted.
    """
    shape = job.shape
    each, head = flops_per_token(shape, job.block), shape.vocab_size * shape.n_embd
    forward = matrices(shape) + 2 * shape.n_embd * job.block  # of one block, in pairs of operations
    if job.lora is not None:
        each -= 2 * (shape.n_layer * matrices(shape) + head)
    elif not job.head_learns:
        each -= 2 * head
    each -= 4 * (shape.n_layer - job.trained_layers) * forward
    if job.recompute:
        each += 2 * job.trained_layers * forward
    return each * job.batch * job.block
