"""Conversations of all lengths in rows of one length (drawn in batch.py), without padding most of
them: several to a row, none cut.

Each starts at position 0, as the model's positions are learned, and attention stays inside it: a
packed row gives the loss and gradients of its conversations apart. Which go together is decided
once, the longest first, each to the row where it fits best (best fit decreasing: Johnson 1974),
and the loader shuffles rows.

Letters: B rows, T positions (block size).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch

from minigpt.data.batch import IGNORE, Batch
from minigpt.data.shards import Encoded
from minigpt.data.template import Template
from minigpt.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Example:
    """A rendered conversation: inputs and the targets one place on, IGNORE where not learned."""

    tokens: np.ndarray  # int32 (n,)
    targets: np.ndarray  # int32 (n,)
    asked: int  # how many tokens come before the first answer


class RecordDataset:
    """Rows of `block_size` tokens from examples; the loader's other kind of dataset."""

    def __init__(
        self, examples: Sequence[Example], block_size: int, packed: bool, tokenizer: Tokenizer
    ) -> None:
        self.examples, self.block_size, self.packed = examples, block_size, packed
        self.eos_id = tokenizer.eos_id
        lengths = [len(example.tokens) for example in examples]
        self.token_count = sum(lengths)
        self.rows = pack(lengths, block_size) if packed else [[i] for i in range(len(lengths))]
        digest = hashlib.sha256(b"%d %d" % (block_size, packed))
        for example in examples:
            digest.update(example.tokens.tobytes() + example.targets.tobytes())
        self.fingerprint = f"records {digest.hexdigest()}"

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray) -> Batch:
        """The rows `indices` (B,) as a Batch, padded with EOS that nothing is learned from."""
        rows = [[self.examples[chosen] for chosen in self.rows[int(i)]] for i in indices]
        used = sum(len(example.tokens) for row in rows for example in row)
        rows = [[*row, *self._padding(row)] for row in rows]
        tokens = _stacked([[example.tokens for example in row] for row in rows])
        targets = _stacked([[example.targets for example in row] for row in rows])
        learned = sum(int((example.targets != IGNORE).sum()) for row in rows for example in row)
        batch = Batch(tokens, targets, learned, tokens.numel() - used)
        if self.packed:  # one example and its padding need no more than plain causal attention
            batch.lengths = [[len(example.tokens) for example in row] for row in rows]
            batch.positions = _stacked([[np.arange(n) for n in row] for row in batch.lengths])
        return batch

    def _padding(self, examples: List[Example]) -> List[Example]:
        """What fills the row up: one more example that nothing is learned from, or none."""
        room = self.block_size - sum(len(example.tokens) for example in examples)
        return [Example(np.full(room, self.eos_id), np.full(room, IGNORE), 0)] if room else []

    def prompt(self) -> List[int]:
        """The ids up to the first answer of the first example: something to try the model on."""
        example = self.examples[0]
        return example.tokens[: example.asked].tolist()


def _stacked(rows: List[List[np.ndarray]]) -> torch.Tensor:
    """The arrays of each row end to end: int64 (B, T)."""
    return torch.from_numpy(np.stack([np.concatenate(row) for row in rows]).astype(np.int64))


def pack(lengths: Sequence[int], room: int) -> List[List[int]]:
    """Which of the `lengths` go together into rows of at most `room`."""
    rows: List[List[int]] = []
    free: List[Tuple[int, int]] = []  # (room left, row), ascending
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(free, (lengths[index], -1))
        left, row = free.pop(place) if place < len(free) else (room, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        if left > lengths[index]:
            insort(free, (left - lengths[index], row))
    return rows


def fit(record: Encoded, template: Template, eos_id: int, block_size: int) -> Optional[Example]:
    """The example of a rendered record, or None when it is longer than a row."""
    ids, turns = record.tokens, record.turns
    assert turns is not None  # every record has an answer
    turn = np.searchsorted(turns, np.arange(len(ids)), "right")  # odd in an answer
    learned = ids != eos_id if template.whole else turn % 2 == 1
    nothing, asked = np.int32(IGNORE), int(turns[0])
    targets = np.where(learned[1:], ids[1:], nothing)
    if template.whole:  # the tutorial's way: cut at the block, the last token has no next one
        return Example(ids[:block_size], np.append(targets[: block_size - 1], nothing), asked)
    return Example(ids[:-1], targets, asked) if len(targets) <= block_size else None
