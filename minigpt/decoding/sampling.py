"""From logits to a token: temperature, top-k, top-p (Holtzman et al. 2020), then a draw.

Letters: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from minigpt.base.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How to choose among the tokens. At temperature 0 it is the likeliest, whatever the rest."""

    temperature: float = 1.0
    top_k: Optional[int] = None
    top_p: Optional[float] = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UsageError(f"the temperature is {self.temperature}", "it must be 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top-k is {self.top_k}", "it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top-p is {self.top_p}", "it must be above 0 and at most 1")

    def draw(self, logits: Tensor, generator: Optional[torch.Generator] = None) -> Tensor:
        """logits (B, V) -> tokens (B,) int64, drawn with `generator`, on the logits' device."""
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits.float() / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        probabilities = torch.softmax(logits, -1)
        # A race: the first of exponential arrival times with rates p is token i with probability
        # p_i. torch.multinomial runs the same race, but first has the host check its input, twice.
        times = torch.empty_like(probabilities).exponential_(generator=generator)
        return (probabilities / times).argmax(-1)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Leaves the k largest of each row (and what equals the k-th) and makes the rest impossible."""
    smallest = torch.topk(logits, min(k, logits.size(-1))).values[:, -1:]
    return logits.masked_fill(logits < smallest, -float("inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Leaves the fewest tokens of each row whose probabilities add up to at least p."""
    ordered, places = torch.sort(logits, descending=True)
    probabilities = torch.softmax(ordered, -1)
    before = probabilities.cumsum(-1) - probabilities  # what the likelier ones already have
    ordered = ordered.masked_fill(before >= p, -float("inf"))
    return torch.empty_like(logits).scatter_(1, places, ordered)
