"""What of a job fits into a memory, what has to change when it does not, and how long a step takes.

Everything here asks plan.py and loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from operator import itemgetter
from typing import Any, Collection, Dict, Iterator, List, Set, Tuple

from minigpt.model.gpt import GPTConfig
from minigpt.model.lora import LoRAConfig
from minigpt.planning.memory import Job, matrices, memory

Change = Tuple[str, str]  # a flag, and what it costs

LORA, FUSED = "--lora-rank 16", "--fused-backward"
_SMALLER = 5  # how far from what was asked a smaller batch is
# What saves memory: flag, cost in words, how far from what was asked, what it sets in the Job.
_SAVERS: Tuple[Tuple[str, str, int, Dict[str, Any]], ...] = (
    ("--precision bf16-mixed", "16-bit arithmetic", 1, {"precision": "bf16-mixed"}),
    ("--recompute", "about a third more time", 2, {"recompute": True}),
    (FUSED, "no clipping, no micro-batches", 3, {"fused_backward": True}),
    ("--precision bf16", "16-bit weights and states", 4, {"precision": "bf16"}),
    (LORA, "an adapter learns, not the weights", 16, {"lora": LoRAConfig(16)}),
)  # fmt: skip


@dataclass(frozen=True)
class Advice:
    """A job that fits, and what was changed for it."""

    job: Job
    changes: Tuple[Change, ...]

    def __str__(self) -> str:
        return ", ".join("%s (%s)" % change for change in self.changes)


def largest_rows(job: Job, room: int) -> int:
    """The most rows of a micro-batch, up to the batch, for which `room` bytes are enough; 0 when
    one is too many. Where the batch must be whole, the largest batch.
    """
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
    of them contains another, or a flag that is `barred`. Empty when nothing helps.
    """
    fitting = []
    for cost, changed, changes in _changed(job, barred):
        rows = largest_rows(changed, room)
        shrinks = changed.whole_batch and rows < changed.batch
        if rows:
            advice = _advice(changed, rows, changes, job.rows)
            fitting.append((cost + (_SMALLER if shrinks else 0), {c[0] for c in changes}, advice))
    found: List[Tuple[Set[str], Advice]] = []
    for _, flags, advice in sorted(fitting, key=itemgetter(0)):
        if not any(nearer <= flags for nearer, _ in found):
            found.append((flags, advice))
    return [advice for _, advice in found[:most]]


def _advice(job: Job, rows: int, changes: Tuple[Change, ...], asked: int) -> Advice:
    if job.whole_batch and rows < job.batch:
        changes = (("--batch-size %d" % rows, "smaller steps"), *changes)
    elif not job.whole_batch and rows < asked:
        same = "the result is the same" + (" but for rounding" if job.precision == "bf16" else "")
        changes = (("--micro-batch-size %d" % rows, same), *changes)
    return Advice(with_rows(job, rows if job.whole_batch else min(rows, asked)), changes)


def _changed(job: Job, barred: Collection[str]) -> Iterator[Tuple[int, Job, Tuple[Change, ...]]]:
    """The job with every combination of what saves memory and can be had, and how far off it is."""
    usable = [saver for saver in _SAVERS if saver[0] not in barred and _saves(job, saver[3])]
    for size in range(len(usable) + 1):
        for savers in combinations(usable, size):
            settings = [item for saver in savers for item in saver[3].items()]
            if len(dict(settings)) == size:  # not two precisions
                changes = tuple(saver[:2] for saver in savers)
                yield sum(saver[2] for saver in savers), replace(job, **dict(settings)), changes


def _saves(job: Job, setting: Dict[str, Any]) -> bool:
    """Whether the setting is another, and may stand beside the job's others."""
    ((name, value),) = setting.items()
    if job.whole_logits or getattr(job, name) == value:  # MoAI has its own switches
        return False
    if name == "precision":
        return value == "bf16" or job.precision == "fp32"
    if name == "fused_backward":
        return job.precision != "fp16-mixed"
    return name != "lora" or (job.lora is None and job.freeze_layers is None)


def flops(job: Job) -> int:
    """Floating-point operations of an optimizer step: flops_per_token, and with
    recomputation the blocks' forward pass again. A frozen matrix has no gradient of its own, and
    below the first layer that learns nothing goes back at all. The adapter's own are not counted.
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


def flops_per_token(shape: GPTConfig, block_size: int) -> int:
    """Floating-point operations to train on one token: 6 per weight in a matmul, and 12 L C T
    for attention's two (the T x T triangle counted whole, as is customary: Chowdhery et al.
    2022, appendix B).
    """
    C, I = shape.n_embd, shape.inner
    weights = shape.n_layer * (4 * C * C + 2 * C * I) + shape.vocab_size * C
    return 6 * weights + 12 * shape.n_layer * C * block_size


def step_seconds(job: Job, peak_flops: float, utilization: float) -> float:
    """Seconds of an optimizer step on a device of `peak_flops` FLOP/s, at a share `utilization` of
    that.
    """
    return flops(job) / (peak_flops * utilization)
