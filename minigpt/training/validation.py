"""How good the model is on text it has not seen, in numbers that can be compared.

    loss           nats per token      = sum of -log p(token) / tokens
    perplexity     e^loss
    bits per byte  = sum of -log2 p(token) / bytes of the text, whatever the tokenizer; or gzip's

The set is fixed, every token counts alike, and nothing is drawn at random, so the numbers depend
neither on the batch size nor on when they are taken, and training does not notice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Dict, List

import numpy as np
import torch

from minigpt.base.errors import DataError
from minigpt.data.batch import IGNORE, Batch
from minigpt.data.loader import Dataset
from minigpt.training.objective import Objective
from minigpt.training.parallel import ALONE, World


@dataclass(frozen=True)
class Validation:
    """The sums over a validation set, from which the three numbers follow."""

    nats: float
    tokens: int
    bytes: int

    @property
    def loss(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def shown_perplexity(self) -> str:
        """Written out below a million: 24.25, 1.2e+15."""
        return ("%.2f" if self.perplexity < 1e6 else "%.1e") % self.perplexity

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / max(1, self.bytes)

    def text(self, loss_format: str = "%.4f") -> str:
        """The three numbers, the loss with the digits that `loss_format` gives it."""
        text = f"loss {loss_format}  perplexity %s  bits per byte %.3f"
        return text % (self.loss, self.shown_perplexity, self.bits_per_byte)

    def record(self) -> Dict[str, float]:
        """For metrics.jsonl."""
        return {
            "val_loss": self.loss, "val_perplexity": self.perplexity,
            "val_bits_per_byte": self.bits_per_byte,
        }  # fmt: skip


@torch.no_grad()
def validate(
    objective: Objective, dataset: Dataset, byte_lengths: np.ndarray, rows: int,
    max_tokens: int = 0, world: World = ALONE,
) -> Validation:  # fmt: skip
    """The losses of `dataset` added up, `rows` windows at a time, with the model in eval mode.

    At most `max_tokens` of it are used (0: all), evenly spread. `byte_lengths` (V,) are the bytes
    each token stands for. Where all batches must be alike, the last is filled up with empty rows.
    """
    training = objective.training
    objective.eval()
    sums, tokens, size = [], 0, 0
    batches = _batches(len(dataset), dataset.block_size, rows, max_tokens)
    for turn in range(world.rank, math.ceil(len(batches) / world.size) * world.size, world.size):
        batch = dataset.batch(batches[min(turn, len(batches) - 1)])
        if turn >= len(batches):  # where a model is divided, all processes compute it together
            batch = replace(batch, targets=torch.full_like(batch.targets, IGNORE), supervised=0)
        targets = batch.targets.numpy()
        tokens += batch.supervised
        size += int(byte_lengths[targets[targets != IGNORE]].sum())
        sums.append(objective(_filled_up(batch, rows) if objective.same_shapes else batch))
    objective.train(training)
    nats = math.fsum(torch.stack(sums).tolist()) if sums else 0.0
    all_nats, all_tokens, all_bytes = world.total(nats, tokens, size)
    if all_tokens == 0:
        raise DataError("the validation set has no supervised token", "give --data more text")
    return Validation(all_nats, int(all_tokens), int(all_bytes))


def _filled_up(batch: Batch, rows: int) -> Batch:
    missing = rows - batch.tokens.size(0)
    if not missing:
        return batch
    filled = batch.map(lambda tensor: torch.cat([tensor, tensor[-1:].expand(missing, -1)]))
    filled.targets[-missing:] = IGNORE
    if batch.lengths is not None:
        filled.lengths = batch.lengths + [batch.lengths[-1]] * missing
    return filled


def _batches(windows: int, block_size: int, rows: int, max_tokens: int) -> List[np.ndarray]:
    count = windows if max_tokens == 0 else min(windows, max(1, max_tokens // block_size))
    indices = np.linspace(0, windows - 1, count).round().astype(np.int64)
    return np.array_split(indices, np.arange(rows, count, rows))
