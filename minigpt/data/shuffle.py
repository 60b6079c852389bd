"""The order of an epoch as a function: nothing is stored, and any place of it is computed alone."""

from __future__ import annotations

import hashlib

import numpy as np


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
