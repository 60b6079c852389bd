"""Causal self-attention (Vaswani et al. 2017): every position looks at itself and at what came
before.

    attention(q, k, v) = softmax(q k^T * scale + mask) v

Two forms of that one formula stand side by side. `explicit_attention` is the formula, operation
by operation: for reading, for PyTorch 1.13, and for devices that have nothing better.
`fused_attention` is PyTorch's scaled_dot_product_attention, which never writes the (T, S) weights
to memory. The tests hold them equal.

Letters: B rows, T new positions, S positions looked at (cached + new), C width, H heads, D = C / H.
"""

from __future__ import annotations

import math
from typing import Callable, List, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.model.cache import KVCache, causal_mask

HAS_FUSED = hasattr(F, "scaled_dot_product_attention")

Attend = Callable[[Tensor, Tensor, Tensor, Optional[Tensor], float, float], Tensor]
Lengths = List[List[int]]  # of each packed row, the lengths of its documents


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], scale: float, dropout: float
) -> Tensor:
    """q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D).

    `mask` is bool, broadcast to (B, H, T, S), True where a query may look; None hides the future
    and nothing else (then T == S, or T == 1 and the one query is the last position).
    """
    scores = (q * scale) @ k.transpose(-2, -1)  # (B, H, T, S)
    if mask is None and q.size(-2) > 1:
        mask = causal_mask(q.size(-2), k.size(-2), q.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, -1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return weights.to(v.dtype) @ v  # (B, H, T, D)


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], scale: float, dropout: float
) -> Tensor:
    """The same as `explicit_attention`, in one kernel where PyTorch has one (2.0 and later)."""
    # PyTorch 2.0 has no `scale` argument, so what differs from its 1/sqrt(D) goes into q.
    ratio = scale * math.sqrt(q.size(-1))
    if abs(ratio - 1.0) > 1e-9:
        q = q * ratio
    # PyTorch's causal triangle starts at the top left corner: right for T == S, wrong for any
    # other T, for which there is a mask. A single query has no future to hide.
    if mask is None and q.size(-2) > 1:
        return F.scaled_dot_product_attention(q, k, v, None, dropout, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout)


def attention_by_document(
    attend: Attend, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float, dropout: float
) -> Tensor:
    """`attend` on each document of packed rows alone: q, k, v (B, H, T, D) -> (B, H, T, D).

    The same as under a mask of the documents, but no (T, T) mask exists, and the work grows with
    the squares of the documents' lengths instead of the row's.
    """
    B, H, T, D = q.shape

    def as_one_row(x: Tensor) -> Tensor:  # (B, H, T, D) -> (1, H, B * T, D)
        return x.transpose(1, 2).reshape(1, B * T, H, D).transpose(1, 2)

    # All rows as one, so that the backward pass puts the pieces together once and not row by row.
    pieces = [length for row in lengths for length in row]
    q_parts = torch.split(as_one_row(q), pieces, 2)
    k_parts = torch.split(as_one_row(k), pieces, 2)
    v_parts = torch.split(as_one_row(v), pieces, 2)
    done = [
        attend(q1, k1, v1, None, scale, dropout) for q1, k1, v1 in zip(q_parts, k_parts, v_parts)
    ]
    y = torch.cat(done, 2)  # (1, H, B * T, D)
    return y.transpose(1, 2).reshape(B, T, H, D).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head causal self-attention with one fused projection for q, k and v."""

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        scale: float,
        dropout: float,
        device: Optional[torch.device] = None,
    ) -> None:
        super().__init__()
        self.n_head, self.scale, self.dropout = n_head, scale, dropout
        self.qkv = nn.Linear(n_embd, 3 * n_embd, device=device)
        self.out = nn.Linear(n_embd, n_embd, device=device)
        self.attend: Attend = fused_attention if HAS_FUSED else explicit_attention

    def forward(
        self,
        x: Tensor,
        mask: Optional[Union[Tensor, Lengths]] = None,
        cache: Optional[KVCache] = None,
        layer: int = 0,
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C). `mask` is one of `explicit_attention`'s, or the lengths of the
        documents in each packed row; `layer` is this layer's place in the cache.
        """
        B, T, C = x.shape
        H, D = self.n_head, C // self.n_head
        q, k, v = self.qkv(x).split(C, 2)  # (B, T, C) each
        q = q.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D)
        k = k.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D)
        v = v.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, H, S, D)
        dropout = self.dropout if self.training else 0.0
        if isinstance(mask, list):
            y = attention_by_document(self.attend, q, k, v, mask, self.scale, dropout)
        else:
            y = self.attend(q, k, v, mask, self.scale, dropout)
        y = self.out(y.transpose(1, 2).reshape(B, T, C))  # heads side by side again
        return F.dropout(y, dropout) if dropout else y
