"""The head and the loss together, a few hundred rows at a time.

    loss = cross_entropy_sum(x @ weight^T, targets)

With 50,000 tokens to choose from, the logits of a batch are the largest thing in memory. Here they
are made piece by piece, and each piece gives its share of the loss and of the gradients before the
next one is made. The tests hold it equal to the plain formula (objective.py).

Letters: N positions of all rows, C width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from minigpt.data.batch import IGNORE

# Logits alive at a time. Larger pieces fall out of the cache and gain nothing.
LOGITS_AT_A_TIME = 1 << 24


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The summed loss of x (..., C), weight (V, C) and targets (...) int64, 0-d, fp32, with the
    product computed in `dtype`. Gradients flow to x and weight.
    """
    if not torch.is_grad_enabled():  # which a Function is not told
        x, weight = x.detach(), weight.detach()
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        x.reshape(-1, x.size(-1)), weight, targets.reshape(-1), dtype
    )
    return loss


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
        step = max(1, LOGITS_AT_A_TIME // weight.size(0))
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
