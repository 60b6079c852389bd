"""What the processes of a run send each other in a step, and how long that takes at best.

All of it goes around rings. To gather S bytes, or to add up S bytes of each and leave a part with
each, each of n devices sends (n - 1) / n x S, in n - 1 turns; to add up for all, twice that.

    ddp    gradients are added up for all, once a step
    fsdp   every micro-batch: weights gathered, a block's twice, and gradients added up in parts
    hsdp   as fsdp within a machine; the parts are then added up over machines

Gradients travel in float32. Embeddings and a tied head do while nothing is computed.
"""

from __future__ import annotations

from typing import List, NamedTuple, Tuple

from minigpt.planning.memory import Job, block_count, trained_count


class Cluster(NamedTuple):
    """How the devices are arranged, and what connects them (0: not known)."""

    division: str
    gpus: int  # on each machine
    nodes: int = 1
    link: float = 0.0  # bytes/s of a device to those of its machine
    network: float = 0.0  # of a machine to the others, all its cards together
    turn: float = 3.4e-6  # seconds of a turn: NCCL's estimates (tuning.cc, ring, protocol Simple)
    far_turn: float = 14e-6

    @property
    def unknown(self) -> str:
        """The flag that is missing; empty if none is."""
        if self.gpus > 1 and not self.link:
            return "--link"
        return "--network" if self.nodes > 1 and not self.network else ""


class Sent(NamedTuple):
    """Tensors that go around rings of `near` devices on each of `far` machines."""

    near: int
    far: int
    size: float  # bytes of all of them, whole
    times: float
    messages: int  # in which they go each time
    bare: bool  # whether they are sent while nothing is computed

    @property
    def sent(self) -> float:
        """Bytes that each device sends."""
        n = self.near * self.far
        return self.times * self.size * (n - 1) / n

    def seconds(self, c: Cluster) -> float:
        """That they take in a cluster whose links are known."""
        near, far = (self.near > 1) * c.link, (self.far > 1) * c.network * self.near / c.gpus
        speed = min(near or far, far or near)
        turns = (self.near - 1) * self.far * c.turn + (self.far - 1) * c.far_turn
        return (self.sent / speed if speed else 0.0) + self.times * self.messages * turns


def all_sent(job: Job, c: Cluster) -> List[Sent]:
    """What goes around in a step of `job`, whose rows are those of one device."""
    L, block, learned = job.shape.n_layer, block_count(job.shape), 4 * trained_count(job)
    blocks = learned if job.lora else 4 * job.trained_layers * block
    gradients = [(learned - blocks, 1, True), (blocks, L, False)]
    if c.division == "ddp":
        return [Sent(c.gpus, c.nodes, size, 2, n, bare) for size, n, bare in gradients]
    far, parts = (1 if c.division == "hsdp" else c.nodes), -(-job.batch // job.rows)
    ends = (job.shape.parameter_count() - L * block) * job.weight_bytes
    passes = parts * (1 + job.trained_layers / L)
    found = [
        Sent(c.gpus, far, ends, parts, 1, bare=True),
        Sent(c.gpus, far, L * block * job.product_bytes, passes, L, bare=False),
        *(Sent(c.gpus, far, size, parts, n, bare) for size, n, bare in gradients),
    ]
    if c.division == "hsdp":
        for size, n, bare in gradients:
            found.append(Sent(1, c.nodes, size / c.gpus, 2 * parts, n, bare))
    return found


def sending_seconds(job: Job, c: Cluster, computing: float) -> Tuple[float, float]:
    """Seconds that sending takes, and by how many it makes a step of so much `computing` longer.
    Under ddp only the last micro-batch's backward pass, two thirds of it, hides any of that; on
    CPUs nothing does, as the same cores send.
    """
    parts = all_sent(job, c)
    bare, seconds = (sum(p.seconds(c) for p in parts if p.bare or both) for both in (False, True))
    behind = 0.0 if job.on_cpu else computing
    if c.division == "ddp":
        behind *= 2 / 3 * min(1.0, job.rows / job.batch)
    return seconds, bare + max(0.0, seconds - bare - behind)
