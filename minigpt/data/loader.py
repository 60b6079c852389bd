"""Tokens on disk to batches in memory, in an order that is computed and never stored.

    sample number i of epoch e  =  window permute(i, number of windows, seed, e)    (shuffle.py)

So where a run is in its data is one integer, the samples it has seen; resuming costs nothing,
every window comes once an epoch, and any number of processes can each compute its own share.

Letters: B rows.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Deque, Protocol

import numpy as np

from minigpt.data.batch import Batch
from minigpt.data.shuffle import shuffled


class Dataset(Protocol):
    """What the loader and validation ask of a dataset: `len` samples, any of them as a batch."""

    block_size: int
    token_count: int
    fingerprint: str

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples `indices` (B,)."""


@dataclass(eq=False)
class Loader:
    """Batches without end, prepared `prefetch` ahead by a thread, so that the training loop never
    waits. Its whole state is `samples_seen`.
    """

    dataset: Dataset
    batch_size: int  # of all `world` processes together; this one, `rank`, gets its share of each
    seed: int
    samples_seen: int = 0  # in the batches handed out, over all processes
    rank: int = 0
    world: int = 1
    prefetch: int = 2

    def __post_init__(self) -> None:
        self.waited = 0.0  # seconds that the consumer has spent waiting
        self._thread = ThreadPoolExecutor(1)  # which starts it for the first batch
        self._ahead: Deque[Future[Batch]] = deque()

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        while len(self._ahead) <= self.prefetch:
            seen_then = self.samples_seen + len(self._ahead) * self.batch_size
            self._ahead.append(self._thread.submit(self._batch, seen_then))
        began = time.perf_counter()
        batch = self._ahead[0].result()
        self.waited += time.perf_counter() - began
        self._ahead.popleft()
        self.samples_seen += self.batch_size
        return batch

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()

    def indices(self, samples_seen: int) -> np.ndarray:
        """The whole batch that begins after `samples_seen` samples."""
        numbers = np.arange(samples_seen, samples_seen + self.batch_size)
        return shuffled(numbers, len(self.dataset), self.seed)

    def _batch(self, samples_seen: int) -> Batch:
        # Read whole by every process: so each knows how many tokens are learned from in all.
        return self.dataset.batch(self.indices(samples_seen)).share(self.rank, self.world)
