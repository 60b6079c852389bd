"""What a step learns from.

    tokens     A A A A B B C C C C . .        of packed rows, here one with three documents
    targets    A A A E B E C C C E - -        the next token of the same document, if learned
    positions  0 1 2 3 0 1 0 1 2 3 0 1        each document starts at 0
    lengths    4, 2, 4, 2                     padding is one more document

Letters: B rows, T positions (block size).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Callable, Dict, Iterator, List, Optional

import numpy as np
import torch
from torch import Tensor

IGNORE = -100  # the target of a position from which nothing is to be learned


@dataclass
class Batch:
    """Rows of tokens, on the host. `positions` and `lengths` are there for packed rows only."""

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, IGNORE where nothing is to be learned
    supervised: int  # targets to learn from in the whole step: what the loss is divided by
    padding: int = 0  # positions of the whole step that hold nothing
    positions: Optional[Tensor] = None  # (B, T) int64
    lengths: Optional[List[List[int]]] = None  # of each row, the lengths of its documents

    def micro_batches(self, rows: int) -> Iterator[Batch]:
        """The batch in parts of at most `rows`; the two counts stay those of the whole."""
        for start in range(0, self.tokens.size(0), rows):
            yield self._rows(slice(start, start + rows))

    def share(self, rank: int, world: int) -> Batch:
        """Every `world`-th row, from `rank` on; the two counts stay those of the whole."""
        return self._rows(slice(rank, None, world))

    def _rows(self, part: slice) -> Batch:
        lengths = None if self.lengths is None else self.lengths[part]
        return replace(self.map(lambda tensor: tensor[part].contiguous()), lengths=lengths)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each of its tensors changed."""
        old = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        new: Dict[str, Any] = {name: change(value) for name, value in old.items()}
        return replace(self, **new)

    def learned(self) -> Optional[Tensor]:
        """The places (n,) in the flattened targets that are learned from; None where all are."""
        learned = (self.targets.view(-1) != IGNORE).nonzero().squeeze(1)
        return None if learned.numel() == self.targets.numel() else learned

    def boundaries(self) -> Optional[Tensor]:
        """(documents + 1,) int32, where each document begins, the rows laid end to end, and where
        the last one ends; None where rows are not packed.
        """
        if self.lengths is None:
            return None
        ends = accumulate(length for row in self.lengths for length in row)
        return torch.tensor([0, *ends], dtype=torch.int32)

    def document_numbers(self) -> Optional[Tensor]:
        """(B, T) int64, the number of each position's document in its row: what a mask is made
        of; None where rows are not packed.
        """
        if self.lengths is None:
            return None
        rows = [np.repeat(np.arange(len(row)), row) for row in self.lengths]
        return torch.from_numpy(np.stack(rows))
