"""The loss of a language model: how surprised it is by each next token.

    loss = sum over supervised positions of -log softmax(logits)[target]  /  their number

The sum and the division are kept apart. The number is that of the whole optimizer step, over all
its micro-batches and processes, so that the gradient does not depend on how the step was cut into
pieces (a mean of means does, as soon as the pieces have different numbers of supervised tokens).

`cross_entropy_sum` is the formula. `linear_cross_entropy` is the same number together with the
head that makes the logits, a few hundred rows at a time: with 50,000 tokens to choose from, the
logits of a batch are the largest thing in memory, and there is no need for all of them at once.

Letters: N positions of all rows, C width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from minigpt.data.loader import IGNORE, Batch
from minigpt.decoding.fast_rows import linear
from minigpt.devices.device import Device

# Logits alive at a time. Larger pieces fall out of the cache and gain nothing.
_LOGITS = 1 << 24


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (..., V) of any float dtype, targets (...) int64 -> summed loss in nats, 0-d, fp32."""
    # The logarithm of a sum of 50,000 exponentials needs more digits than bfloat16 has.
    flat = logits.float().view(-1, logits.size(-1))
    return F.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORE, reduction="sum")


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """cross_entropy_sum(x @ weight^T, targets), with the product computed in `dtype`.

    x (..., C) features, weight (V, C), targets (...) int64 -> 0-d, fp32. Gradients flow to x and
    weight; they are computed on the way, from each piece of the logits while it is there.
    """
    if not torch.is_grad_enabled():  # which a Function is not told
        x, weight = x.detach(), weight.detach()
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        x.reshape(-1, x.size(-1)), weight, targets.reshape(-1), dtype
    )
    return loss


def batch_loss(
    features: Callable[..., Tensor], head: Tensor, batch: Batch, device: Device, precision: str
) -> Tensor:
    """The summed loss of a batch from the host, 0-d, on `device`: GPT.features, compiled or not,
    then the head (V, C), only where something is to be learned. Where shapes must not change, the
    head and the loss are the plain formula.
    """
    learned = None if device.static_shapes else _learned(batch.targets)
    on_host, batch = batch, batch.map(device.send)
    # On the host, GPT.features takes the documents apart without waiting for the device.
    documents = batch.documents if device.static_shapes else on_host.documents
    with device.autocast(precision):
        x = features(batch.tokens, batch.positions, documents)
    if device.static_shapes:
        return cross_entropy_sum(linear(x, head), batch.targets)
    x, targets = x.view(-1, x.size(-1)), batch.targets.view(-1)
    if learned is not None:
        learned = device.send(learned)
        x, targets = x.index_select(0, learned), targets.index_select(0, learned)
    return linear_cross_entropy(x, head, targets, device.product_dtype(precision))


def _learned(targets: Tensor) -> Optional[Tensor]:
    """The places (n,) in the flattened targets that are learned from; None where all are."""
    learned = (targets.view(-1) != IGNORE).nonzero().squeeze(1)
    return None if learned.numel() == targets.numel() else learned


class _LinearCrossEntropy(torch.autograd.Function):
    """d loss / d logits = softmax(logits) - one_hot(target), in the rows that are supervised."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        learns, head_learns = any(ctx.needs_input_grad), ctx.needs_input_grad[1]
        cast_x, cast_weight = x.to(dtype), weight.to(dtype)
        loss = torch.zeros((), device=x.device)
        grad_x = torch.empty_like(x) if learns else None
        # Of bfloat16 weights too: a sum of so many terms needs more digits.
        wide = torch.float32
        grad_weight = torch.zeros_like(weight, dtype=wide) if head_learns else None
        step = max(1, _LOGITS // weight.size(0))
        for start in range(0, x.size(0), step):
            rows = slice(start, start + step)
            logits = (cast_x[rows] @ cast_weight.t()).float()  # (step, V)
            loss += _softmax_and_loss(logits, targets[rows])
            if grad_x is not None:
                slope = logits.to(dtype)
                grad_x[rows] = slope @ cast_weight
                _add_product(grad_weight, slope.t(), cast_x[rows])
                del slope
            del logits  # before the next ones are made
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        ctx.save_for_backward(grad_x, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], Optional[Tensor], None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        if grad_weight is not None:  # a frozen head has none
            grad_weight.mul_(grad)
        return grad_x.mul_(grad), grad_weight, None, None


def _add_product(total: Optional[Tensor], a: Tensor, b: Tensor) -> None:
    """Adds a @ b to `total`, which is wider than they are in mixed precision."""
    if total is None:
        return
    if a.dtype == total.dtype:  # inside the product: one pass over (V, C) less
        total.addmm_(a, b)
    else:
        total += a @ b


def _softmax_and_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The summed loss of logits (n, V) fp32, which become d loss / d logits in place."""
    supervised = targets != IGNORE
    chosen = targets.clamp(min=0).unsqueeze(1)
    normalizer = torch.logsumexp(logits, 1, keepdim=True)
    losses = (normalizer - logits.gather(1, chosen)).squeeze(1)
    logits.sub_(normalizer).exp_()
    logits.scatter_add_(1, chosen, -torch.ones_like(normalizer))
    logits.mul_(supervised.unsqueeze(1))
    return losses.mul(supervised).sum()
