"""Text in windows of equal length, read from the shards where they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from minigpt.base.errors import DataError
from minigpt.data.batch import Batch
from minigpt.data.shards import PREPARE, TEXT, Shard, read_dataset


class TokenDataset:
    """The windows of one split of a prepared directory: `block_size` tokens, and those one place
    on as targets. They neither overlap nor reach from one shard into the next.
    """

    def __init__(self, directory: Path, split: str, block_size: int) -> None:
        """DataError when the directory is not a prepared one, or shorter than a window."""
        content = read_dataset(directory, TEXT)
        if content is None:
            raise DataError(f"{directory} is no prepared data", f"make it with: {PREPARE}")
        own = content["splits"][split]
        self.block_size = block_size
        self.tokenizer_fingerprint: str = content["tokenizer_sha256"]
        self.token_count: int = own["tokens"]
        self.fingerprint = f"{own['sha256']} block {block_size}"
        self.shards = [Shard(directory / name) for name in own["shards"]]
        counts = [max(0, (len(shard.tokens) - 1) // block_size) for shard in self.shards]
        self._ends = np.cumsum(counts)
        if len(self) == 0:
            longest = max(len(shard.tokens) for shard in self.shards) - 1
            few = f"{directory} has {self.token_count} tokens of {split} data, too few for one"
            fix = f"use --block-size {max(1, longest)} or more text"
            raise DataError(f"{few} window of {block_size}", fix)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, indices: np.ndarray) -> Batch:
        """The windows `indices` (B,) as a Batch."""
        rows = torch.from_numpy(np.stack([self._window(int(i)) for i in indices]))  # (B, T + 1)
        tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        return Batch(tokens, targets, targets.numel())

    def _window(self, index: int) -> np.ndarray:
        shard = int(np.searchsorted(self._ends, index, "right"))
        first = index - (int(self._ends[shard - 1]) if shard else 0)
        start = first * self.block_size
        return self.shards[shard].tokens[start : start + self.block_size + 1].astype(np.int64)
