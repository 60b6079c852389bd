"""Which positions a query may look at: bool masks, True where it may.

Letters: B rows, T new positions, S positions looked at (those in a cache and the new ones).
"""

from __future__ import annotations

import torch
from torch import Tensor


def causal_mask(new: int, seen: int, device: torch.device) -> Tensor:
    """(T, S): query i stands at position S - T + i and looks at itself and at what came before."""
    return torch.ones(new, seen, dtype=torch.bool, device=device).tril(seen - new)


def document_mask(documents: Tensor) -> Tensor:
    """The causal mask inside each document of packed rows: documents (B, T) int64, which number
    the document of each position, -> (B, 1, T, T).
    """
    T = documents.size(1)
    same = documents.unsqueeze(2) == documents.unsqueeze(1)  # (B, T, T)
    return (same & causal_mask(T, T, documents.device)).unsqueeze(1)


def padded_mask(new: int, seen: int, starts: Tensor) -> Tensor:
    """The causal mask of rows that begin at `starts` (B,), after padding: (B, 1, T, S).

    Padding may look at padding, because a query that looks at nothing has no softmax.
    """
    places = torch.arange(seen, device=starts.device)
    real = places >= starts.unsqueeze(1)  # (B, S)
    visible = real.unsqueeze(1) | ~real[:, seen - new :].unsqueeze(2)  # (B, T, S)
    return (visible & causal_mask(new, seen, starts.device)).unsqueeze(1)
