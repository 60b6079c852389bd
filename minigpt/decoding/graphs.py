"""Decoding on an NVIDIA GPU: the kernels of one token recorded once, and sent again as a whole.

A token needs some 15 kernels a layer. Sent one by one from Python, they take longer to send than
to run. A recording (CUDA graph) repeats the very same kernels on the very same memory, so what
changes from token to token is kept in tensors that are overwritten: the token, and its place in
the cache. Attention looks at the whole cache, under a mask of what is filled.

`--compile` makes fewer kernels of them first, block by block: one compilation serves all layers.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import MethodType
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

from minigpt.model.attention import Attention, explicit_attention
from minigpt.model.cache import KVCache
from minigpt.model.gpt import GPT, Block

Layers = List[Tuple[Tensor, Tensor]]

_WARM_UP = 2  # runs before the recording, in which libraries load and choose their kernels


class PlacedCache(KVCache):
    """A cache for one new token, whose place is a tensor: (1,) int64, the positions filled."""

    def __init__(self, layers: Layers, place: Tensor, starts: Optional[Tensor]) -> None:
        super().__init__(layers, 0, starts)
        self.place = place
        self.all = torch.arange(self.capacity, device=place.device)

    def positions(self, new: int) -> Tensor:
        """(1,), or (B, 1) where each row counts from its own start."""
        if self.starts is None:
            return self.place
        return (self.place - self.starts.unsqueeze(1)).clamp(min=0)

    def mask(self, new: int) -> Tensor:
        """True where something is: (1, 1, 1, capacity) or (B, 1, 1, capacity)."""
        filled = (self.all <= self.place)[None, None, None]
        if self.starts is None:
            return filled
        return filled & (self.all >= self.starts[:, None, None, None])

    def append(self, layer: int, k: Tensor, v: Tensor) -> Tuple[Tensor, Tensor]:
        """Writes k and v (B, H, 1, D) at the place; returns the whole cache of the layer."""
        keys, values = self.layers[layer]
        return keys.index_copy_(2, self.place, k), values.index_copy_(2, self.place, v)


class GraphedStep:
    """A `Step` of generate.py. It records anew when it is given another cache."""

    def __init__(self, compiled: bool = False) -> None:
        # With this option products of one row become loops that read as fast as the memory gives.
        options: Dict[str, Any] = {"coordinate_descent_tuning": True}
        self.block: Optional[Callable[..., Tensor]] = None
        if compiled:
            self.block = torch.compile(_one_block, dynamic=True, options=options)
        self.recorded: Optional[Tensor] = None  # the first keys of the cache it was recorded on

    def __call__(
        self, model: GPT, tokens: Tensor, layers: Layers, length: int,
        starts: Optional[Tensor] = None,
    ) -> Tensor:  # fmt: skip
        """As `decode_step`. The logits are overwritten by the next call."""
        if self.recorded is not layers[0][0]:
            self.tokens, self.recorded = tokens.clone(), layers[0][0]
            self.place = torch.full((1,), length, device=tokens.device)
            for keys, values in layers:  # what is not filled is masked, but must not be NaN
                keys[:, :, length:] = 0
                values[:, :, length:] = 0
            self.cache = PlacedCache(layers, self.place, starts)  # the recording reads its tensors
            with _blocks(model, self.block):
                self._record(model)
        self.tokens.copy_(tokens)
        self.place.fill_(length)
        self.graph.replay()
        return self.logits

    def _record(self, model: GPT) -> None:
        def run() -> Tensor:
            self.cache.length = 0
            return model.logits(model.features(self.tokens, cache=self.cache)[:, -1])

        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = run()


def _one_block(
    block: Block, x: Tensor, mask: Tensor, keys: Tensor, values: Tensor, place: Tensor
) -> Tensor:
    """A block on the cache of its own layer alone, so that all layers look the same."""
    return Block.forward(block, x, mask, PlacedCache([(keys, values)], place, None), 0)


@contextmanager
def _blocks(model: GPT, one_block: Optional[Callable[..., Tensor]]) -> Iterator[None]:
    """While it is open, the model's blocks are computed by `one_block`, if there is one."""
    if one_block is None:
        yield
        return

    def forward(block: Block, x: Tensor, mask: Tensor, cache: PlacedCache, layer: int) -> Tensor:
        return one_block(block, x, mask, *cache.layers[layer], cache.place)

    usual = next(m.attend for m in model.modules() if isinstance(m, Attention))
    model.use_attention(explicit_attention)  # which the compiler can take apart
    for block in model.blocks:
        vars(block)["forward"] = MethodType(forward, block)
    try:
        yield
    finally:
        model.use_attention(usual)
        for block in model.blocks:
            vars(block).pop("forward")
