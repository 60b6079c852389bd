"""Tokens on disk to batches in memory, in an order that is computed and never stored.

    sample number i of epoch e  =  window permute(i, number of windows, seed, e)

So where a run is in its data is one integer, the samples it has seen; resuming costs nothing,
every window comes once an epoch, and any number of processes can each compute its own share.

Letters: B rows.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Deque, Protocol

import numpy as np

from minigpt.data.batch import Batch


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
        """This process's share of the batch that begins after `samples_seen` samples."""
        numbers = np.arange(samples_seen + self.rank, samples_seen + self.batch_size, self.world)
        return shuffled(numbers, len(self.dataset), self.seed)

    def _batch(self, samples_seen: int) -> Batch:
        return self.dataset.batch(self.indices(samples_seen))


def shuffled(numbers: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The windows, of `size`, of the samples `numbers`, counted from the first epoch's start."""
    epochs, places = np.divmod(numbers, size)
    result = np.empty_like(places)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        result[chosen] = permute(places[chosen], size, seed, int(epoch))
    return result


def permute(index: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where a permutation of 0 ... size - 1, one for each (seed, epoch), sends each `index`; O(1)
    and nothing stored.

    A Feistel network of six rounds permutes the next power of four (Luby & Rackoff 1988); what
    falls outside is sent through again until it is inside, which keeps it a permutation (cycle
    walking, Black & Rogaway 2002).
    """
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    digest = hashlib.blake2b(b"%d %d" % (seed, epoch), digest_size=48).digest()
    keys = np.frombuffer(digest, "<u8")  # one a round
    result, outside = index.astype(np.uint64), np.full(index.shape, True)
    while outside.any():
        result[outside] = _feistel(result[outside], bits, keys)
        outside = result >= size
    return result.astype(np.int64)


def _feistel(x: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    half, mask = np.uint64(bits), np.uint64((1 << bits) - 1)
    left, right = x >> half, x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele et al. 2014): each input bit reaches all output bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
