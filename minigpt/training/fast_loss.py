"""The head and the loss together, some rows at a time.

    loss = cross_entropy_sum(x @ weight^T, targets)

The logits of a batch are the largest thing in memory. Here they are made piece by piece, and each
piece gives its share of the loss and of the gradients before the next one is made.

Letters: N positions of all rows, C width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from minigpt.data.batch import IGNORE

# Logits alive at a time. On a CPU larger pieces fall out of the cache; a GPU wants large products.
LOGITS_AT_A_TIME = 1 << 24
LOGITS_ON_A_GPU = 1 << 27
# A row of logits is made so many numbers longer that libraries multiply it fast: with GPT-2's odd
# 50,257 they take up to twice the time.
_ROW_MULTIPLE = 64

Softmax = Callable[[Tensor, Tensor, int], Tuple[Tensor, Tensor]]


def softmax_and_loss(product: Tensor, targets: Tensor, V: int) -> Tuple[Tensor, Tensor]:
    """product (n, V and padding), which is overwritten, and targets (n,) int64 -> the summed loss,
    0-d, fp32, and d loss / d product, with zeros in the padding.
    """
    logits = product.float()
    logits[:, V:] = -torch.inf
    supervised = targets != IGNORE
    chosen = targets.clamp(min=0).unsqueeze(1)
    normalizer = torch.logsumexp(logits, 1, keepdim=True)
    losses = (normalizer - logits.gather(1, chosen)).squeeze(1)
    logits.sub_(normalizer).exp_()
    logits.scatter_add_(1, chosen, -torch.ones_like(normalizer))
    logits.mul_(supervised.unsqueeze(1))
    return losses.mul(supervised).sum(), logits.to(product.dtype)


def softmax_and_loss_to_compile(product: Tensor, targets: Tensor, V: int) -> Tuple[Tensor, Tensor]:
    """The same as a formula without steps in place, of which a compiler makes two passes."""
    columns = torch.arange(product.size(1), device=product.device)
    logits = torch.where(columns < V, product.float(), -torch.inf)
    supervised = targets != IGNORE
    chosen = targets.clamp(min=0).unsqueeze(1)
    normalizer = torch.logsumexp(logits, 1, keepdim=True)
    losses = (normalizer - product.gather(1, chosen).float()).squeeze(1)
    slope = torch.exp(logits - normalizer) - (columns == chosen).float()
    slope = torch.where(supervised.unsqueeze(1), slope, 0.0)
    return losses.mul(supervised).sum(), slope.to(product.dtype)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype = torch.float32,
    softmax: Softmax = softmax_and_loss,
) -> Tensor:  # fmt: skip
    """The summed loss of x (..., C), weight (V, C) and targets (...) int64, 0-d, fp32, with the
    product computed in `dtype`. Gradients flow to x and weight.
    """
    if not torch.is_grad_enabled():  # which a Function is not told
        x, weight = x.detach(), weight.detach()
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        x.reshape(-1, x.size(-1)), weight, targets.reshape(-1), dtype, softmax
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """d loss / d logits = softmax(logits) - one_hot(target), in the rows that are supervised."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, softmax: Softmax
    ) -> Tensor:
        learns, head_learns = any(ctx.needs_input_grad), ctx.needs_input_grad[1]
        V = weight.size(0)
        cast_x = x.to(dtype)
        cast_weight = F.pad(weight.to(dtype), (0, 0, 0, -V % _ROW_MULTIPLE))
        loss = torch.zeros((), device=x.device)
        grad_x = torch.empty_like(x) if learns else None
        # Of bfloat16 weights too: a sum of so many terms needs more digits.
        wide = torch.float32
        grad_weight = torch.zeros_like(weight, dtype=wide) if head_learns else None
        step = max(1, (LOGITS_AT_A_TIME if x.device.type == "cpu" else LOGITS_ON_A_GPU) // V)
        for start in range(0, x.size(0), step):
            rows = slice(start, start + step)
            product = cast_x[rows] @ cast_weight.t()  # (step, V and padding)
            piece, slope = softmax(product, targets[rows], V)
            loss += piece
            if grad_x is not None:
                grad_x[rows] = slope @ cast_weight
            if grad_weight is not None and dtype == wide:  # added inside the product: a pass less
                grad_weight.addmm_(slope.t()[:V], cast_x[rows])
            elif grad_weight is not None:
                grad_weight += (slope.t() @ cast_x[rows])[:V]
            del product, slope  # before the next ones are made
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        ctx.save_for_backward(grad_x, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        grad_x, grad_weight = ctx.saved_tensors
        if grad_weight is not None:  # a frozen head has none
            grad_weight.mul_(grad)
        return grad_x.mul_(grad), grad_weight, None, None, None
