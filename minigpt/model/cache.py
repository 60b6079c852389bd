"""What attention has computed of the past, kept for the tokens to come (inference only).

Letters: B rows, T new positions, S positions looked at (cached + new), H heads, D width of a head.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch
from torch import Tensor

from minigpt.model.masks import causal_mask, padded_mask


class KVCache:
    """Keys and values of the positions already seen, so that each new token costs one position
    and not all.

    Room for `capacity` positions is taken once; `length` of them are filled. One cache serves
    prefill (many positions onto an empty cache), decoding (one at a time), and prefill in chunks.
    Rows of different lengths end together: row b begins at `starts[b]`, after padding.
    """

    def __init__(
        self, layers: List[Tuple[Tensor, Tensor]], length: int = 0, starts: Optional[Tensor] = None
    ) -> None:
        self.layers = layers  # per layer: keys and values, each (B, H, capacity, D)
        self.length = length
        self.starts = starts  # (B,) int64; None: all rows begin at 0

    @classmethod
    def empty(cls, n_layer: int, shape: Tuple[int, int, int, int], like: Tensor) -> KVCache:
        """A cache of `shape` (B, H, capacity, D) per layer, of the dtype and on the device of
        `like`.
        """
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
        layers = [
            (k.repeat_interleave(samples, 0), v.repeat_interleave(samples, 0))
            for k, v in self.layers
        ]
        starts = None if self.starts is None else self.starts.repeat_interleave(samples, 0)
        return KVCache(layers, self.length, starts)
