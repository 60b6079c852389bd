"""What happens inside a model while it reads a text, taken from its own forward pass by hooks.

    weights  softmax(q k^T * scale + causal mask), of the q and k that the layer made
    lens     softmax(head(final_norm(x))) of the residual stream x behind every layer

Nothing in model/ knows of it. What a layer did goes to the host before the next one begins, so
that a model that just fits stays one. Letters: T tokens read, N of them shown (the last), L layers,
H heads, D width of a head, C width, K what is kept of many.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Tuple

import numpy as np
import torch
from torch import Tensor

from minigpt.base.errors import CheckpointError
from minigpt.model.cache import causal_mask
from minigpt.model.gpt import GPT, Block

GUESSES, UNITS = 10, 8  # how many are kept, of a vocabulary and of an MLP


@dataclass(frozen=True)
class Guess:
    """What would be said next at each of N positions; K tokens, the likeliest first."""

    tokens: np.ndarray  # (N, K)
    probabilities: np.ndarray  # (N, K)
    bits: np.ndarray  # (N - 1,): how surprising the token is that really came, -log2 p
    ranks: np.ndarray  # (N - 1,): 1 where it was the likeliest


@dataclass(frozen=True)
class Layer:
    """What one layer did. Norms are Euclidean lengths of vectors (C,)."""

    attention: np.ndarray  # (H, N, 1 + N): the weight of all that is not shown, then of each token
    gap: float  # between weights @ v and what the module gave, relative to the largest of it
    attended: np.ndarray  # (N,): norms of what attention added to the stream
    written: np.ndarray  # (N,): and of what the MLP did
    units: np.ndarray  # (N, K): the most active units of the MLP
    activations: np.ndarray  # (N, K): behind the GELU


@dataclass(frozen=True)
class Inside:
    """All of it, for the last N of the tokens read."""

    tokens: List[int]  # N
    earlier: int  # T - N
    layers: List[Layer]  # L
    norms: List[np.ndarray]  # 1 + L: of the stream (N,), first of the embedding
    lens: List[Guess]  # 1 + L, likewise; the last is what the model says


@torch.inference_mode()
def look_inside(model: GPT, ids: List[int], shown: int) -> Inside:
    """Reads `ids`, at most as many as the model has positions, and keeps what is asked of the last
    `shown`. CheckpointError when the model gives no numbers.
    """
    inside = Inside(ids[-shown:], max(0, len(ids) - shown), [], [], [])
    tokens = torch.tensor([ids], device=model.token_embedding.weight.device)
    found: Dict[str, Tensor] = {}

    def stream(_: Any, __: Any, x: Tensor) -> None:  # (1, T, C)
        inside.norms.append(_norms(x[0, -shown:]))
        logits = model.logits(model.final_norm(x[0, -shown:]) * model.config.output_scale)
        inside.lens.append(_guess(logits, tokens[0, -shown:]))

    def layer_done(block: Block, _: Any, __: Any) -> None:
        inside.layers.append(_layer(block, found, shown))
        found.clear()

    with ExitStack() as hooks:
        for register, hook in _taps(model, found, layer_done, stream):
            hooks.callback(register(hook).remove)
        model.features(tokens)
    if not np.isfinite(inside.lens[-1].probabilities).all():
        raise CheckpointError("the model's logits are not numbers", "train or convert it again")
    # A kernel of 16 bits may round the scores, and each by a few units of their last place.
    allowed = max(1e-3, 32 * torch.finfo(model.head_weight.dtype).eps)
    worst = max(layer.gap for layer in inside.layers)
    if not worst <= allowed:  # what is shown would be a nice picture of something else
        what = "the attention weights do not give what attention gave"
        raise RuntimeError(f"{what}: {worst:.3g} of its largest")
    return inside


def _taps(
    model: GPT, found: Dict[str, Tensor], layer_done: Callable[..., None],
    stream: Callable[..., None],
) -> Iterable[Tuple[Callable[..., Any], Callable[..., None]]]:  # fmt: skip
    """Where hooks go, and which: a block's hooks put what they see into `found`, by a name."""

    def keep(name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: Tuple[Tensor, ...], *output: Tensor) -> None:
            found[name] = (output or inputs)[0][0]  # (T, ...)

        return hook

    blocks: Iterable[Any] = model.blocks
    yield model.embedding_dropout.register_forward_hook, stream
    for block in blocks:
        yield block.attention.qkv.register_forward_hook, keep("qkv")  # (T, 3C)
        yield block.attention.out.register_forward_pre_hook, keep("mixed")  # (T, C), weights @ v
        yield block.attention.register_forward_hook, keep("attended")  # (T, C)
        yield block.mlp.down.register_forward_pre_hook, keep("units")  # (T, I)
        yield block.mlp.register_forward_hook, keep("written")  # (T, C)
        yield block.register_forward_hook, layer_done
        yield block.register_forward_hook, stream


def _layer(block: Block, found: Dict[str, Tensor], shown: int) -> Layer:
    attention = block.attention
    weights, expected = attention_weights(found["qkv"], attention.n_head, attention.scale, shown)
    given = found["mixed"][-shown:].float()
    gap = (expected - given).abs().max() / given.abs().max().clamp(min=1e-30)
    earlier = weights.size(2) - weights.size(1)
    rest = weights[:, :, :earlier].sum(2, keepdim=True)  # (H, N, 1)
    active = found["units"][-shown:].float()
    activations, units = active.topk(min(UNITS, active.size(1)))  # (N, K)
    return Layer(
        torch.cat([rest, weights[:, :, earlier:]], 2).cpu().numpy(), float(gap),
        _norms(found["attended"][-shown:]), _norms(found["written"][-shown:]),
        units.cpu().numpy(), activations.cpu().numpy(),
    )  # fmt: skip


def attention_weights(qkv: Tensor, heads: int, scale: float, shown: int) -> Tuple[Tensor, Tensor]:
    """The weights (H, N, T) of the last N = `shown` queries of qkv (T, 3C), in float32 whatever the
    model has, and their product with v, heads side by side: (N, C).
    """
    T, C = qkv.size(0), qkv.size(1) // 3
    parts = torch.split(qkv.float(), C, 1)
    q, k, v = (part.view(T, heads, -1).transpose(0, 1) for part in parts)  # (H, T, D) each
    q = q[:, -shown:]  # (H, N, D)
    hidden = ~causal_mask(q.size(1), T, qkv.device)  # (N, T)
    scores = (q @ k.transpose(1, 2) * scale).masked_fill(hidden, -math.inf)  # (H, N, T)
    weights = torch.softmax(scores, -1)
    return weights, (weights @ v).transpose(0, 1).reshape(-1, C)


def _norms(x: Tensor) -> np.ndarray:
    return x.float().norm(dim=-1).cpu().numpy()


def _guess(logits: Tensor, tokens: Tensor) -> Guess:
    """Of logits (N, V) behind tokens (N,)."""
    known = torch.log_softmax(logits.float(), -1)
    likeliest, guesses = known.topk(min(GUESSES, known.size(1)))
    real = known[:-1].gather(1, tokens[1:].unsqueeze(1))  # (N - 1, 1)
    ranks = (known[:-1] > real).sum(1) + 1
    parts = (guesses, likeliest.exp(), -real[:, 0] / math.log(2), ranks)
    return Guess(*(part.cpu().numpy() for part in parts))
