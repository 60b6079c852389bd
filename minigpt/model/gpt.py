"""GPT-2 (Radford et al. 2019) and Cerebras-GPT (Dey et al. 2023): the whole model, top to bottom.

    x = token_embedding[tokens] + position_embedding[positions]
    for each block:  x = x + attention(norm(x));  x = x + mlp(norm(x))
    logits = norm(x) @ token_embedding^T

The model is a plain module. Precision, compilation and data parallelism are applied to it from
outside.

Letters: B batch, T positions, C width (n_embd), H heads, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.model.attention import Attend, Attention, Lengths
from minigpt.model.cache import KVCache, document_mask
from minigpt.model.config import ACTIVATIONS, GPTConfig

Documents = Union[Tensor, Lengths]  # of packed rows


class MLP(nn.Module):
    """Two matrices with a GELU between them, on each position alone."""

    def __init__(self, config: GPTConfig, device: Optional[torch.device] = None) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.inner, device=device)
        self.down = nn.Linear(config.inner, config.n_embd, device=device)
        self.dropout = config.dropout
        self.approximate = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x = self.down(F.gelu(self.up(x), approximate=self.approximate))
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class Block(nn.Module):
    """One layer: attention mixes positions, the MLP mixes channels; both add to the residual
    stream.
    """

    def __init__(self, config: GPTConfig, device: Optional[torch.device] = None) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd, config.layer_norm_eps, device=device)
        self.attention = Attention(
            config.n_embd, config.n_head, config.qk_scale, config.dropout, device
        )
        self.mlp_norm = nn.LayerNorm(config.n_embd, config.layer_norm_eps, device=device)
        self.mlp = MLP(config, device)

    def forward(
        self,
        x: Tensor,
        mask: Optional[Documents] = None,
        cache: Optional[KVCache] = None,
        layer: int = 0,
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.attention_norm(x), mask, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """The model. `device="meta"` builds it without memory or weights, to be filled by a loader."""

    def __init__(self, config: GPTConfig, device: Optional[torch.device] = None) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd, device=device)
        self.position_embedding = nn.Embedding(config.n_positions, config.n_embd, device=device)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, device) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd, config.layer_norm_eps, device=device)
        if not config.tied_head:
            self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False, device=device)
        self.reset_parameters()

    def forward(
        self,
        tokens: Tensor,
        positions: Optional[Tensor] = None,
        documents: Optional[Documents] = None,
        cache: Optional[KVCache] = None,
    ) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, V).

        `positions` (T,) or (B, T) int64 default to 0, 1, 2, ..., counted on from what `cache`
        holds, which is read and filled. `documents` keep the documents of packed rows apart: the
        lengths of each row's documents, or (B, T) int64, equal numbers for each document. By
        lengths no (T, T) mask is made; by numbers all batches have the same shapes. A 1-d tensor
        goes to the form of attention as it is.
        """
        return self.logits(self.features(tokens, positions, documents, cache))

    def features(
        self,
        tokens: Tensor,
        positions: Optional[Tensor] = None,
        documents: Optional[Documents] = None,
        cache: Optional[KVCache] = None,
    ) -> Tensor:
        """As `forward`, but stops before the head: (B, T, C), what the head multiplies."""
        T = tokens.size(1)
        self._check(T, documents, cache)
        mask = documents
        if cache is None:
            if isinstance(documents, Tensor) and documents.dim() == 2:
                mask = document_mask(documents)
            counted = torch.arange(T, device=tokens.device)
        else:
            mask, counted = cache.mask(T), cache.positions(T)
        positions = counted if positions is None else positions
        x = self.token_embedding(tokens) + self.position_embedding(positions)  # (B, T, C)
        if self.config.embedding_scale != 1.0:
            x = x * self.config.embedding_scale
        x = self.embedding_dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, cache, layer)
        if cache is not None:
            cache.length += T
        x = self.final_norm(x)
        return x if self.config.output_scale == 1.0 else x * self.config.output_scale

    def logits(self, x: Tensor) -> Tensor:
        """The head: features (..., C) -> logits (..., V)."""
        return F.linear(x, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """(V, C). With a tied head this is the token embedding, kept and saved once."""
        return self.token_embedding.weight if self.config.tied_head else self.head.weight

    def new_cache(self, batch_size: int, capacity: Optional[int] = None) -> KVCache:
        """An empty cache for `capacity` positions (default: as many as the model has)."""
        config = self.config
        shape = (batch_size, config.n_head, capacity or config.n_positions, config.head_dim)
        return KVCache.empty(config.n_layer, shape, self.token_embedding.weight)

    def use_attention(self, attend: Attend) -> GPT:
        """Chooses between the two forms in attention.py for all layers; returns the model."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.attend = attend
        return self

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """GPT-2's initialisation: N(0, 0.02), biases 0, LayerNorms 1 and 0, and the two
        projections that write to the residual stream smaller by 1/sqrt(2 L), so that the stream's
        variance does not grow with depth.
        """
        if not self.token_embedding.weight.is_meta:
            for name, parameter in self.named_parameters():
                self.draw(name, parameter)

    def draw(self, name: str, weight: Tensor) -> None:
        """Fills `weight`, of the shape of the parameter `name`, with what that begins with."""
        std = self.config.init_std
        hidden = self.config.hidden_init_std or std
        if name.endswith("bias"):
            weight.zero_()
        elif "norm" in name:
            weight.fill_(1.0)
        elif name.endswith(("attention.out.weight", "mlp.down.weight")):
            weight.normal_(0.0, hidden / math.sqrt(2 * self.config.n_layer))
        else:
            weight.normal_(0.0, hidden if name.startswith("blocks") else std)

    def _check(self, new: int, documents: Optional[Documents], cache: Optional[KVCache]) -> None:
        length, room = new, self.config.n_positions
        if cache is not None:
            length, room = cache.length + new, min(room, cache.capacity)
        if length > room:
            raise ValueError(f"{length} tokens do not fit into {room} positions")
        if documents is not None and cache is not None:
            raise ValueError("a packed row cannot be continued from a cache")
