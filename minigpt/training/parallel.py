"""One run in several processes: torchrun starts them, torch.distributed joins them.

    rank 0        prints, writes, and decides; the others compute, and are told
    every rank    has its share of each batch, and a copy of the model, whose gradients torch's
                  DistributedDataParallel adds up while the backward pass goes on; or a share of
                  the model, too (sharded.py)

`World` is all that the rest of minigpt knows of it. Alone (size 1) it does nothing, and there is
no process group. Gradients are added and not averaged: the loss of a step is divided by the tokens
of the whole step already, and not every rank has equally many.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import re
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Callable, ContextManager, Iterator, List, Optional, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from minigpt.base.errors import DeviceError, MinigptError, TrainingError, UsageError
from minigpt.devices.device import Device

# How long a rank is waited for. Torch's own 10 to 30 minutes are long for a process that died.
PATIENCE, _SECONDS = "MINIGPT_PATIENCE", "300"
_ANSWERING = 10.0  # seconds that a rank may take to notice, too, that another is missing
# In the store: how many ranks have had something to say; who they are; who noticed; whether one of
# them has said so.
_SAID, _NAME, _NOTICED, _TOLD = "minigpt/said", "minigpt/name", "minigpt/noticed", "minigpt/told"
_READY = "minigpt/ready"  # how often a rank has come to where all wait


def processes() -> int:
    """How many processes torchrun started; 1 without it."""
    size = os.environ.get("WORLD_SIZE", "")
    return max(1, int(size)) if size.isdigit() else 1


def by_torchrun() -> bool:
    """Whether torchrun started this process, be it the only one."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_processes() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or processes())


def first_here() -> bool:
    """Whether this is the first process of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def restarted() -> bool:
    """Whether torchrun has started this command again, after a process of it had failed."""
    return _attempt() != "0"


def patience(device: Optional[Device] = None) -> timedelta:
    """How long other processes are waited for, on the host or a device; UsageError for no time."""
    seconds = os.environ.get(PATIENCE) or _SECONDS
    if not re.fullmatch("0*[1-9][0-9]{0,7}", seconds):  # and no years
        raise UsageError(f"{PATIENCE} is {seconds!r}", f"say seconds, such as {_SECONDS}")
    # Twice on GPUs: NCCL ends a process without a word, so the host is to notice before.
    twice = device is not None and device.is_gpu
    return timedelta(seconds=int(seconds) * (2 if twice else 1))


def _attempt() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0"


@dataclass(frozen=True)
class World:
    """The processes of this run, as one of them sees them."""

    rank: int = 0
    size: int = 1
    host_group: Any = None  # for what lies on the host, where the device has a group of its own
    store: Any = None
    mesh: Any = None  # over whose last dimension the model is divided; None: every rank has it all

    @property
    def first(self) -> bool:
        """Whether this is the process that prints, writes and decides."""
        return self.rank == 0

    @property
    def divided(self) -> bool:
        """Whether no rank has the whole model: whoever computes with it needs all others."""
        return self.mesh is not None

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' `tensor`, in its place."""
        if self.size > 1:
            group = self.host_group if tensor.device.type == "cpu" else None
            dist.all_reduce(tensor, group=group)
        return tensor

    def total(self, *numbers: float) -> Sequence[float]:
        """Each of the numbers, added up over all ranks."""
        if self.size == 1:
            return numbers
        sums: List[float] = self.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()
        return sums

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.host_group)
        return int(found)

    def told(self, text: str) -> str:
        """What rank 0 says, whatever the others do."""
        return self.each(text)[0]

    def each(self, text: str) -> List[str]:
        """What every rank says, in their order."""
        if self.size == 1:
            return [text]
        length = self.largest(1 + len(text.encode()))
        letters = torch.tensor([*text.encode().ljust(length, b"\0")], dtype=torch.uint8)
        said = [torch.empty_like(letters) for _ in range(self.size)]
        dist.all_gather(said, letters, group=self.host_group)
        return [bytes(one.tolist()).rstrip(b"\0").decode() for one in said]

    def wait(self) -> None:
        """Goes on when all ranks are here."""
        if self.size > 1:
            dist.barrier(group=self.host_group)

    @contextlib.contextmanager
    def one_by_one(self) -> Iterator[None]:
        """Of each machine one process first, then the others: what that one makes, they find."""
        early = first_here()
        if not early:
            self._wait_long()
        yield
        if early:
            self._wait_long()
        self.wait()

    def _wait_long(self) -> None:
        """As `wait`, through the store: another may download a model, or turn text into tokens, for
        longer than a group waits. Should it die, torchrun ends this process.
        """
        if self.size > 1:
            arrived = self.store.add(_READY, 1)
            while self.store.add(_READY, 0) < -(-arrived // self.size) * self.size:
                time.sleep(0.1)

    def speaks(self) -> bool:
        """Whether this process is the first to report an error: one is enough for all. Process 0
        counts them in some versions of PyTorch, and if it has ended, it has said why.
        """
        try:
            return self.store is None or int(self.store.add(_SAID, 1)) == 1
        except RuntimeError:
            return False

    def missing(self) -> Optional[str]:
        """Who has not noticed that a process is missing, and so is; None if another says it."""
        self.store.add(f"{_NOTICED} {self.rank}", 1)
        if not self.speaks():
            self.store.wait([_TOLD], timedelta(seconds=2 * _ANSWERING))  # then torchrun ends all
            return None
        ends, others = time.monotonic() + _ANSWERING, list(range(self.size))
        while others and time.monotonic() < ends:
            time.sleep(0.1)
            others = [one for one in others if not self.store.add(f"{_NOTICED} {one}", 0)]
        names = [self.store.get(f"{_NAME} {one}").decode() for one in others]
        self.store.set(_TOLD, "")
        return ", ".join(names) or f"one of the {self.size} processes"

    # Training

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The objective, whose gradients are those of all ranks together after a backward pass."""
        if self.size == 1 or self.mesh is not None:
            return objective
        try:
            together = DistributedDataParallel(objective, gradient_as_bucket_view=True)
        except RuntimeError as error:
            if "Invalid scalar type" not in str(error):
                raise
            what = f"PyTorch {torch.__version__} cannot send bfloat16 between processes on CPUs"
            raise DeviceError(what, "use --precision bf16-mixed, or a newer PyTorch") from None
        # A lambda, as torch takes no hook whose annotations are text.
        together.register_comm_hook(None, lambda _, bucket: _summed(bucket))
        return together

    def adding(self, wrapped: nn.Module, last: bool) -> ContextManager[object]:
        """Around a micro-batch: only after the `last` one are gradients added up over ranks."""
        if isinstance(wrapped, DistributedDataParallel) and not last:
            return wrapped.no_sync()
        return contextlib.nullcontext()

    def across(self, norm: Tensor) -> Tensor:
        """The norm of all gradients, from that of those that this rank holds."""
        if self.mesh is None:
            return norm
        squares = norm.square()
        dist.all_reduce(squares, group=self.mesh.get_group(self.mesh.ndim - 1))
        return squares.sqrt()

    def settle(self, objective: nn.Module) -> None:
        """After a pass without a backward pass: each rank's parameters are its own rows again."""
        for module in objective.modules() if self.divided else ():
            getattr(module, "reshard", lambda: None)()

    @contextlib.contextmanager
    def gathered(self, objective: Any) -> Iterator[None]:
        """While it is open, the model can be called outside of the objective, by all ranks."""
        if self.divided:
            objective.unshard()
        yield
        self.settle(objective)

    def draw_apart(self, seed: int, step: int) -> None:
        """From here to `draw_alike`, every rank has random numbers of its own (dropout)."""
        if self.size > 1:
            torch.manual_seed(_mixed(seed, step, 1 + self.rank))

    def draw_alike(self, seed: int, step: int) -> None:
        """From here on ranks that hold the same weights round them alike, or copies would drift
        apart.
        """
        if self.size > 1:
            part = 0 if self.mesh is None else self.mesh.get_local_rank(self.mesh.ndim - 1)
            torch.manual_seed(_mixed(seed, step, -part))


ALONE = World()


@contextlib.contextmanager
def joined(device: Device, alone: bool) -> Iterator[World]:
    """The world that torchrun has made; ALONE without it, or if one process is to be `alone`.
    What rank 0 does not do is not shown. TrainingError, in one process, when another has gone.
    """
    alone = processes() == 1 and (alone or not by_torchrun())
    if alone or device.static_shapes:  # MoAI refuses several itself
        yield ALONE
        return
    store, rank, size = next(rendezvous("env://", timeout=patience()))
    # Of a first attempt that failed, addresses are left in it that nobody answers at.
    store = PrefixStore(f"attempt {_attempt()}", store)
    store.set(f"{_NAME} {rank}", f"process {rank} on {platform.node()}")
    backend = "nccl" if device.is_gpu else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=patience(device)
    )
    host_group = dist.new_group(backend="gloo", timeout=patience()) if device.is_gpu else None
    world = World(rank, size, host_group, store)
    with contextlib.ExitStack() as silence:
        if not world.first:
            nowhere = silence.enter_context(open(os.devnull, "w"))
            silence.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            yield world
        except MinigptError as error:
            if not world.speaks():
                sys.exit(error.exit_code)
            raise
        except RuntimeError as error:
            if not _is_of_a_lost_rank(error):
                raise
            raise _lost(world) from None
    gc.collect()  # FSDP's hooks, or a process may abort while it ends
    world.wait()
    dist.destroy_process_group()


def _lost(world: World) -> BaseException:
    """What is to be said, by one process of those that can still reach process 0, and by one on
    each other machine.
    """
    answer = _answered(lambda: [world.missing()], 3 * _ANSWERING)
    if answer == [None] or (answer is None and not first_here()):
        return SystemExit(1)
    who = answer[0] if answer else "the machine of process 0"
    seconds = int(patience().total_seconds())
    what = f"{who} did not answer for {seconds} s ({PATIENCE}), or ended"
    return TrainingError(what, "go on with --resume once it is known why")


def _answered(ask: Callable[[], Any], seconds: float) -> Any:
    """What `ask()` returns; None if it fails or takes longer, as it may once a link is cut."""
    answers: List[Any] = []

    def try_it() -> None:
        with contextlib.suppress(RuntimeError):
            answers.append(ask())

    thread = threading.Thread(target=try_it, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def _mixed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step * 65_537 + rank) % 2**63


def _is_of_a_lost_rank(error: RuntimeError) -> bool:
    words = ("connection", "gloo", "nccl", "timed out", "socket", "broken pipe")
    return any(word in str(error).lower() for word in words)


def _summed(bucket: Any) -> Any:
    """The sum over ranks of a bucket of gradients, added up in float32 whatever they are."""
    gradients = bucket.buffer()
    done = dist.all_reduce(gradients.float(), async_op=True).get_future()
    return done.then(lambda reduced: gradients.copy_(reduced.value()[0]))
