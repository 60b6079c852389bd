"""Work done by several processes, its results in the order of the work.

Every process has a pipe of its own. So one that is killed, which may be the system's answer to a
lack of memory, is an end of file at once, where multiprocessing's Pool would wait for ever, and
concurrent.futures for the rest of a result that it was writing.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from contextlib import contextmanager, suppress
from itertools import cycle
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Callable, Deque, Iterable, Iterator, List, Tuple, TypeVar

from minigpt.base.errors import DataError, MinigptError

Item = TypeVar("Item")
Result = TypeVar("Result")
_Worker = Tuple[BaseProcess, Connection]


class WorkerLost(DataError):
    """A process that is not there any more, and what is known of its end."""


def in_order(
    batches: Iterable[List[Item]], function: Callable[[Item], Result], workers: int
) -> Iterator[Tuple[Item, Result]]:
    """Every item with its result. Each process has one batch at a time; one more is read ahead."""
    with _started(workers, function) as started:
        under_way: Deque[Tuple[List[Item], _Worker]] = deque()
        for batch, worker in zip(batches, cycle(started)):
            full = len(under_way) == workers
            finished = _finish(*under_way.popleft()) if full else iter(())
            with _alive(worker):
                worker[1].send(batch)
            under_way.append((batch, worker))
            yield from finished
        while under_way:
            yield from _finish(*under_way.popleft())


@contextmanager
def _started(count: int, function: Callable[[Any], Any]) -> Iterator[List[_Worker]]:
    """The processes, and their end, whatever happens."""
    context = multiprocessing.get_context("spawn")
    started: List[Any] = []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            with _no_interrupts():
                process.start()
                started.append((process, ours))
            theirs.close()  # or its end would never be seen
        for worker in started:  # not before: each only listens when it has imported all it needs
            with _alive(worker):
                worker[1].send(function)
        yield started
    finally:
        for process, pipe in started:
            process.terminate()
            process.join()
            pipe.close()


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """A Ctrl-C comes later, and never to a process that is started here: it is ended by us."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which, when the first process starts it, lets them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _finish(batch: List[Any], worker: _Worker) -> Iterator[Tuple[Any, Any]]:
    with _alive(worker):
        results = worker[1].recv()
    if isinstance(results, MinigptError):
        raise results
    return zip(batch, results)


@contextmanager
def _alive(worker: _Worker) -> Iterator[None]:
    """WorkerLost when the process at the other end is not there any more."""
    try:
        yield
    except (EOFError, OSError):  # the latter in the middle of a message
        worker[0].join(10.0)
        code = worker[0].exitcode or 0
        killed = f"was killed by signal {-code}, perhaps for lack of memory"
        how = killed if code < 0 else f"ended with exit code {code}"
        raise WorkerLost(f"a process that tokenizes {how}", "use --workers 1") from None


def _work(pipe: Connection) -> None:
    """What a process does until there is nobody left to do it for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for Windows
    with suppress(EOFError, OSError):  # the latter in the middle of a message
        function = pipe.recv()
        while True:
            batch = pipe.recv()
            try:
                answer: object = [function(item) for item in batch]
            except MinigptError as error:
                answer = error
            pipe.send(answer)
