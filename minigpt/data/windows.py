"""Text in windows, read from the shards where they lie.

    tokens     0 1 2 3 4 5 6 7 8 9        width 6, stride 2
    window 1   . x x x x x                x counts, the others are what it is predicted from
    window 2       . . . . x x
    window 3           . . . . x x

Every token but the first counts once, at the end of as much text as a window holds (Hugging Face's
"Perplexity of fixed-length models"). With a stride of a window less one, no text is read twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np
import torch

from minigpt.base.errors import DataError
from minigpt.data.batch import IGNORE, Batch
from minigpt.data.shards import AGAIN, PREPARE, TEXT, Shard, read_dataset


class Passes:
    """The windows of `width` tokens, from every `stride`th token on, of each of several texts; of
    its last tokens only if they are `padded` or fill one. Their ids are below `words`.
    """

    def __init__(
        self, texts: Sequence[np.ndarray], width: int, stride: int, words: int, padded: bool = True
    ) -> None:
        self.texts, self.width, self.stride, self.words = texts, width, stride, words
        self.block_size = stride  # what a window counts, for validation's --eval-tokens
        self.token_count = sum(map(len, texts))
        self.fingerprint = f"{self.token_count} tokens, {width} at a time, {stride} apart"
        behind = [len(text) - width for text in texts]  # the first window
        counts = [-(-max(0, n) // stride) if padded else n // stride for n in behind]
        self._ends = np.cumsum([max(0, 1 + count) for count in counts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, indices: np.ndarray) -> Batch:
        """The windows `indices` (B,) as a Batch of width - 1 positions, padded at their end;
        DataError for ids that are none: large texts are not read whole when they are opened.
        """
        tokens = np.zeros((len(indices), self.width - 1), np.int64)
        targets = np.full_like(tokens, IGNORE)
        padding = 0
        for row, index in enumerate(indices):
            which = int(np.searchsorted(self._ends, index, "right"))
            place = int(index) - (int(self._ends[which - 1]) if which else 0)
            start = place * self.stride
            text = self.texts[which][start : start + self.width].astype(np.int64)
            seen = self.width - self.stride if place else 1  # tokens that counted before, or cannot
            end = max(0, len(text) - 1)
            tokens[row, :end], targets[row, :end] = text[:-1], text[1:]
            targets[row, : max(0, seen - 1)] = IGNORE
            padding += self.width - 1 - end
        if max(tokens.max(initial=0), targets.max(initial=0)) >= self.words:
            raise DataError(f"the text is damaged: it has ids from {self.words} on", AGAIN)
        learned = int((targets != IGNORE).sum())
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), learned, padding)


class TokenDataset(Passes):
    """The windows of one split of a prepared directory: `block_size` tokens, and those one place
    on as targets. They neither overlap nor reach from one shard into the next.
    """

    def __init__(self, directory: Path, split: str, block_size: int, words: int) -> None:
        """DataError when the directory is not a prepared one, or shorter than a window."""
        content = read_dataset(directory, TEXT)
        if content is None:
            raise DataError(f"{directory} is no prepared data", f"make it with: {PREPARE}")
        own = content["splits"][split]
        shards = [Shard(directory / name) for name in own["shards"]]
        texts = [shard.tokens for shard in shards]
        super().__init__(texts, block_size + 1, block_size, words, False)
        self.fingerprint = f"{own['sha256']} block {block_size}"
        if len(self) == 0:
            longest = max(len(shard.tokens) for shard in shards) - 1
            few = f"{directory} has {self.token_count} tokens of {split} data, too few for one"
            fix = f"use --block-size {max(1, longest)} or more text"
            raise DataError(f"{few} window of {block_size}", fix)
