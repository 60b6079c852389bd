"""What attention has computed of the past, kept for the tokens to come (inference only), and which
positions a query may look at: bool masks, True where it may.

Letters: B rows, T new positions, S positions looked at (cached + new), H heads, D width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Tuple

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


@dataclass(eq=False)
class KVCache:
    """Keys and values of the positions already seen, so that each new token costs one position
    and not all.

    Room for `capacity` positions is taken once; `length` of them are filled. One cache serves
    prefill (many positions onto an empty cache), decoding (one at a time), and prefill in chunks.
    Rows of different lengths end together: row b begins at `starts[b]`, after padding.
    """

    layers: List[Tuple[Tensor, Tensor]]  # per layer: keys and values, each (B, H, capacity, D)
    length: int = 0
    starts: Optional[Tensor] = None  # (B,) int64; None: all rows begin at 0

    @classmethod
    def empty(cls, n_layer: int, shape: Tuple[int, int, int, int], like: Tensor) -> KVCache:
        """A cache of `shape` (B, H, capacity, D) a layer, with the dtype and device of `like`."""
        return cls([(like.new_empty(shape), like.new_empty(shape)) for _ in range(n_layer)])

    @property
    def capacity(self) -> int:
        return self.layers[0][0].size(2)

    def positions(self, new: int) -> Tensor:
        """The positions of the next `new` tokens: (T,), or (B, T) where each row counts from its
        own start.
        """
        device = self.layers[0][0].device
        places = torch.arange(self.length, self.length + new, device=device)
        if self.starts is None:
            return places
        return (places - self.starts.unsqueeze(1)).clamp(min=0)

    def mask(self, new: int) -> Optional[Tensor]:
        """What the next `new` tokens may look at; None where plain causality says it all."""
        seen = self.length + new
        if self.starts is not None:
            return padded_mask(new, seen, self.starts)
        if self.length == 0 or new == 1:
            return None
        return causal_mask(new, seen, self.layers[0][0].device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> Tuple[Tensor, Tensor]:
        """Writes k and v (B, H, T, D) behind what `layer` has; returns all of it, (B, H, S, D)."""
        keys, values = self.layers[layer]
        end = self.length + k.size(2)
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def repeat(self, samples: int) -> KVCache:
        """The same past for `samples` futures: one prefill, then B * samples rows."""
        rows = torch.arange(self.layers[0][0].size(0), device=self.layers[0][0].device)
        rows = rows.repeat_interleave(samples)
        starts = None if self.starts is None else self.starts[rows]
        return KVCache([(k[rows], v[rows]) for k, v in self.layers], self.length, starts)
