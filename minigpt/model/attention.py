"""Causal self-attention (Vaswani et al. 2017): every position looks at itself and at what came
before.

    attention(q, k, v) = softmax(q k^T * scale + mask) v

Two forms of that one formula stand side by side. `explicit_attention` is the formula, operation
by operation: for reading, for PyTorch 1.13, and for devices that have nothing better.
`fused_attention` is PyTorch's scaled_dot_product_attention, which never writes the (T, S) weights
to memory. The tests hold them equal.

Letters: B batch, T new positions, S positions looked at (cached + new), C width, H heads, D = C /
H.
"""

from __future__ import annotations

import math
from typing import Callable, List, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.decoding.fast_rows import Linear
from minigpt.model.cache import KVCache

HAS_FUSED = hasattr(F, "scaled_dot_product_attention")

Attend = Callable[[Tensor, Tensor, Tensor, Optional[Tensor], float, float], Tensor]
Lengths = List[List[int]]  # of each row, the lengths of its documents


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
    if q.size(-2) == 1 and q.device.type == "cpu":
        # For the one query of decoding there is no kernel on the CPU, and PyTorch's substitute
        # multiplies all keys by the scale where multiplying the query would do.
        return explicit_attention(q, k, v, mask, scale, dropout)
    # PyTorch 2.0 has no `scale` argument, so what differs from its 1/sqrt(D) goes into q.
    ratio = scale * math.sqrt(q.size(-1))
    if abs(ratio - 1.0) > 1e-9:
        q = q * ratio
    # is_causal lines its triangle up with the top left corner: right for T == S, wrong for any
    # other T, which is why the model passes a mask then; and a single query has no future to
    # hide.
    causal = mask is None and q.size(-2) > 1
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)


def causal_mask(new: int, seen: int, device: torch.device) -> Tensor:
    """Bool (T, S): True where query i, which is position S - T + i, may look at position j."""
    return torch.ones(new, seen, dtype=torch.bool, device=device).tril(seen - new)


def attention_mask(
    new: int, cached: int, documents: Optional[Tensor], device: torch.device
) -> Optional[Tensor]:
    """The mask that all layers share, or None where plain causality needs none.

    `documents` (B, T) numbers the document of each position of a packed row; positions look only
    inside their own.
    """
    if documents is not None:
        documents = documents.to(device)
        same = documents.unsqueeze(2) == documents.unsqueeze(1)  # (B, T, T)
        return (same & causal_mask(new, new, device)).unsqueeze(1)  # (B, 1, T, T)
    if cached == 0 or new == 1:
        return None
    return causal_mask(new, cached + new, device)


def padded_mask(new: int, cached: int, starts: Tensor) -> Tensor:
    """The causal mask of rows that begin at `starts` (B,): bool (B, 1, T, S), nothing before them.

    What is before a start is padding. It may see itself, because a query that sees nothing has no
    softmax.
    """
    seen = torch.arange(cached + new, device=starts.device)
    real = seen >= starts.unsqueeze(1)  # (B, S)
    visible = real.unsqueeze(1) | ~real[:, cached:].unsqueeze(2)  # (B, T, S)
    return (visible & causal_mask(new, cached + new, starts.device)).unsqueeze(1)


def document_lengths(documents: Tensor) -> Lengths:
    """documents (B, T), each one run of equal numbers -> the lengths of the runs in each row."""
    ends = torch.cat([documents[:, 1:] != documents[:, :-1], torch.ones_like(documents[:, :1])], 1)
    borders = [[0, *(row.nonzero().squeeze(1) + 1).tolist()] for row in ends]
    return [[end - start for start, end in zip(row, row[1:])] for row in borders]


def attention_by_document(
    attend: Attend, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float, dropout: float
) -> Tensor:
    """`attend` on each document of the packed rows alone: q, k, v (B, H, T, D) -> (B, H, T, D).

    The same as under the mask of `attention_mask`, but no (T, T) mask exists, and the work grows
    with the squares of the documents' lengths instead of the row's.
    """
    B, H, T, D = q.shape
    pieces = [length for row in lengths for length in row]
    # All rows as one, so that the backward pass puts the pieces together once and not row by row.
    one_row = (x.transpose(1, 2).reshape(1, B * T, H, D).transpose(1, 2) for x in (q, k, v))
    parts = zip(*(torch.split(x, pieces, 2) for x in one_row))
    done = [attend(q1, k1, v1, None, scale, dropout) for q1, k1, v1 in parts]
    return torch.cat(done, 2).transpose(1, 2).reshape(B, T, H, D).transpose(1, 2)


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
        self.qkv = Linear(n_embd, 3 * n_embd, device=device)
        self.out = Linear(n_embd, n_embd, device=device)
        self.attend: Attend = fused_attention if HAS_FUSED else explicit_attention

    def forward(
        self,
        x: Tensor,
        mask: Optional[Union[Tensor, Lengths]] = None,
        cache: Optional[KVCache] = None,
        layer: int = 0,
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C); `layer` is this layer's place in the cache."""
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, D)
            for part in self.qkv(x).split(C, 2)
        )
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, H, S, D)
        dropout = self.dropout if self.training else 0.0
        if isinstance(mask, list):
            y = attention_by_document(self.attend, q, k, v, mask, self.scale, dropout)
        else:
            y = self.attend(q, k, v, mask, self.scale, dropout)
        y = self.out(y.transpose(1, 2).reshape(B, T, C))  # heads side by side again
        return F.dropout(y, dropout) if dropout else y
