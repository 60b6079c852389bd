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
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import torch
from torch import Tensor

from minigpt.base.errors import CheckpointError
from minigpt.model.cache import causal_mask
from minigpt.model.gpt import GPT, Block

LIKELIEST, GUESSES, UNITS = 10, 5, 8  # how many are kept: at the end, behind a layer, of an MLP


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


@dataclass
class Inside:
    """All of it, for the last N of the tokens read."""

    tokens: List[int]  # N
    earlier: int  # T - N
    layers: List[Layer] = field(default_factory=list)  # L
    norms: List[np.ndarray] = field(default_factory=list)  # 1 + L: of the stream, first embedded
    lens: List[Guess] = field(default_factory=list)  # 1 + L, likewise
    said: List[Guess] = field(default_factory=list)  # one: by the model's own last features


@torch.inference_mode()
def look_inside(model: GPT, ids: List[int], shown: int) -> Inside:
    """Reads `ids`, at most as many as the model has positions, and keeps what is asked of the last
    `shown`. CheckpointError when the model gives no numbers.
    """
    inside = Inside(ids[-shown:], max(0, len(ids) - shown))
    following = torch.tensor(inside.tokens[1:], device=model.token_embedding.weight.device)

    def stream(x: Tensor) -> None:  # (T, C)
        x = x[-shown:]
        inside.norms.append(_norms(x))
        logits = model.logits(model.final_norm(x) * model.config.output_scale)
        inside.lens.append(_guess(logits, following, GUESSES))

    def layer_done(block: Block, found: Dict[str, Tensor], x: Tensor) -> None:
        inside.layers.append(_layer(block, found, shown))
        stream(x)

    with ExitStack() as hooks:
        _tap(hooks, model.embedding_dropout.register_forward_hook, stream)
        for block in model.blocks:
            assert isinstance(block, Block)
            _tap_layer(hooks, block, layer_done)
        features = model.features(torch.tensor([ids], device=following.device))[0, -shown:]
    logits = model.logits(features)
    if not bool(logits.isfinite().all()):
        fix = "train or convert it again"
        raise CheckpointError("the model's logits are not numbers", fix)
    inside.said.append(_guess(logits, following, LIKELIEST))
    _require_equal(inside.layers, features.dtype)
    return inside


def _tap(hooks: ExitStack, register: Callable[..., Any], use: Callable[[Tensor], None]) -> None:
    """Calls `use` with the row (T, ...) that goes into a module, or comes out of it."""

    def hook(_: Any, inputs: Tuple[Tensor, ...], *output: Tensor) -> None:
        use((output or inputs)[0][0])

    hooks.callback(register(hook).remove)


def _tap_layer(
    hooks: ExitStack, block: Block, done: Callable[[Block, Dict[str, Tensor], Tensor], None]
) -> None:
    """Calls `done` with what was found in the block, by name, and with the stream behind it."""
    found: Dict[str, Tensor] = {}
    places: Dict[str, Callable[..., Any]] = {
        "qkv": block.attention.qkv.register_forward_hook,  # (T, 3C)
        "mixed": block.attention.out.register_forward_pre_hook,  # (T, C): weights @ v
        "attended": block.attention.register_forward_hook,  # (T, C)
        "units": block.mlp.down.register_forward_pre_hook,  # (T, I)
        "written": block.mlp.register_forward_hook,  # (T, C)
    }
    for name, register in places.items():
        _tap(hooks, register, partial(found.__setitem__, name))

    def finish(x: Tensor) -> None:
        done(block, found, x)
        found.clear()

    _tap(hooks, block.register_forward_hook, finish)


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


def _guess(logits: Tensor, following: Tensor, count: int) -> Guess:
    """Of logits (N, V), and the tokens (N - 1,) that really came behind all but the last."""
    known = torch.log_softmax(logits.float(), -1)
    likeliest, tokens = known.topk(min(count, known.size(1)))
    real = known[:-1].gather(1, following.long().unsqueeze(1))  # (N - 1, 1)
    ranks = (known[:-1] > real).sum(1) + 1
    bits = -real[:, 0] / math.log(2)
    parts = (tokens, likeliest.exp(), bits, ranks)
    return Guess(*(part.cpu().numpy() for part in parts))


def _require_equal(layers: List[Layer], dtype: torch.dtype) -> None:
    """That the weights shown are those the modules used: a mistake here would be a nice picture."""
    # A kernel of 16 bits may round the scores, and each by a few units of their last place.
    allowed = max(1e-3, 32 * torch.finfo(dtype).eps)
    for number, layer in enumerate(layers):
        if not layer.gap <= allowed:
            what = f"the attention weights of layer {number} do not give what its attention gave"
            raise RuntimeError(f"{what}: {layer.gap:.3g} of its largest")
