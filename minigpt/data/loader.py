"""Tokens on disk to batches in memory, in an order that is computed and never stored.

    sample number i of epoch e  =  window permute(i, number of windows, seed, e)    (shuffle.py)

So where a run is in its data is one integer, the samples it has seen; resuming costs nothing,
every window comes once an epoch, and any number of processes can each compute its own share.

Letters: B rows, T positions (block size).
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Callable, Iterator, Optional, Protocol

import numpy as np
from torch import Tensor

from minigpt.data.shuffle import shuffled

IGNORE = -100  # the target of a position from which nothing is to be learned


@dataclass
class Batch:
    """What a step learns from. `positions` and `documents` (B, T) int64 are there for packed rows
    only.
    """

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, IGNORE where nothing is to be learned
    supervised: int  # targets to learn from in the whole batch: what the loss is divided by
    padding: int = 0  # positions of the whole batch that hold nothing
    positions: Optional[Tensor] = None
    documents: Optional[Tensor] = None

    def micro_batches(self, rows: int) -> Iterator[Batch]:
        """The batch in parts of at most `rows`; the two counts stay those of the whole."""
        for start in range(0, self.tokens.size(0), rows):
            yield self.map(itemgetter(slice(start, start + rows)))

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each of its tensors changed."""

        def optional(field: Optional[Tensor]) -> Optional[Tensor]:
            return None if field is None else change(field)

        return replace(
            self,
            tokens=change(self.tokens),
            targets=change(self.targets),
            positions=optional(self.positions),
            documents=optional(self.documents),
        )


class Dataset(Protocol):
    """What the loader and validation ask of a dataset: `len` samples, any of them as a batch."""

    block_size: int
    token_count: int
    fingerprint: str
    tokenizer_fingerprint: str

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples `indices` (B,)."""
        ...


class Loader:
    """Batches without end, prepared one or two ahead by a thread, so that the training loop never
    waits.

    `samples_seen` is its whole state: it counts the samples of the batches handed out, over all
    processes.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        samples_seen: int = 0,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 2,
    ) -> None:
        """`batch_size` is that of all `world` processes together; this one, `rank`, gets its
        share of each batch.
        """
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.samples_seen, self.rank, self.world = samples_seen, rank, world
        self.waited = 0.0  # seconds that the consumer has spent waiting
        self._queue: queue.Queue[Any] = queue.Queue(prefetch)
        self._closed = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        began = time.perf_counter()
        item = self._queue.get()
        self.waited += time.perf_counter() - began
        if isinstance(item, BaseException):
            raise item
        self.samples_seen += self.batch_size
        batch: Batch = item
        return batch

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def indices(self, samples_seen: int) -> np.ndarray:
        """This process's share of the batch that begins after `samples_seen` samples."""
        numbers = np.arange(samples_seen + self.rank, samples_seen + self.batch_size, self.world)
        return shuffled(numbers, len(self.dataset), self.seed)

    def _work(self) -> None:
        samples_seen = self.samples_seen
        while not self._closed.is_set():
            item: Any
            try:
                item = self.dataset.batch(self.indices(samples_seen))
            except Exception as error:  # the consumer raises it
                item = error
            samples_seen += self.batch_size
            while not self._closed.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
