"""What training makes small: how surprised the model is by each next token.

    loss = sum over supervised positions of -log softmax(logits)[target]  /  their number

The sum and the division are kept apart. The number is that of the whole optimizer step, over all
its micro-batches and processes, so that the gradient does not depend on how the step was cut into
pieces (a mean of means does, as soon as the pieces have different numbers of supervised tokens).

Letters: B rows, T positions, C width, V vocabulary.
"""

from __future__ import annotations

from typing import Callable, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.data.batch import IGNORE, Batch
from minigpt.model.gpt import GPT, Documents
from minigpt.training.fast_loss import linear_cross_entropy, softmax_and_loss


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (..., V) of any float dtype, targets (...) int64 -> summed loss in nats, 0-d, fp32."""
    # The logarithm of a sum of 50,000 exponentials needs more digits than bfloat16 has.
    flat = logits.float().view(-1, logits.size(-1))
    return F.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORE, reduction="sum")


class Objective(nn.Module):
    """Model, head and loss in one forward pass, so that whatever wraps or hooks `forward` holds
    all of it. Training, validation and evaluation call this and nothing else.
    """

    def __init__(
        self,
        model: GPT,
        send: Callable[[Tensor], Tensor],
        product_dtype: torch.dtype = torch.float32,
        same_shapes: bool = False,
        masked: bool = False,
        varlen: bool = False,
    ) -> None:
        """`send` brings a tensor of the host to the device. `product_dtype` is that of the head's
        matrix product. `same_shapes`: the plain formula, whose tensors have one shape for all
        batches; `masked`: the documents of packed rows are told apart by a mask, likewise;
        `varlen`: by where they begin (varlen.py).
        """
        super().__init__()
        self.model, self.send, self.product_dtype = model, send, product_dtype
        self.same_shapes, self.masked = same_shapes, masked or same_shapes
        self.varlen = varlen
        self.softmax = softmax_and_loss  # or that, compiled
        self.train(model.training)

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss of a batch from the host: 0-d, fp32, on the device."""
        there = batch.map(self.send)
        x = self.model.features(there.tokens, there.positions, self._documents(batch))  # (B, T, C)
        if self.same_shapes:
            return cross_entropy_sum(self.model.logits(x), there.targets)
        x, targets = x.view(-1, x.size(-1)), there.targets.view(-1)  # (B * T, C), (B * T,)
        learned = batch.learned()  # found on the host: its shape must be known there
        if learned is not None:
            learned = self.send(learned)
            x, targets = x.index_select(0, learned), targets.index_select(0, learned)
        head = self.model.head_weight
        return linear_cross_entropy(x, head, targets, self.product_dtype, self.softmax)

    def _documents(self, batch: Batch) -> Optional[Documents]:
        if batch.lengths is None or not (self.varlen or self.masked):
            return batch.lengths
        apart = batch.boundaries() if self.varlen else batch.document_numbers()
        return None if apart is None else self.send(apart)
