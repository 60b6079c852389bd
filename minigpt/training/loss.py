"""The loss of a language model: how surprised it is by each next token.

    loss = sum over supervised positions of -log softmax(logits)[target]  /  their number

The sum and the division are kept apart. The number is that of the whole optimizer step, over all
its micro-batches and processes, so that the gradient does not depend on how the step was cut into
pieces (a mean of means does, as soon as the pieces have different numbers of supervised tokens).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from minigpt.data.loader import IGNORE


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (..., V) of any float dtype, targets (...) int64 -> their summed loss in nats, 0-d,
    fp32.
    """
    # The logarithm of a sum of 50,000 exponentials needs more digits than bfloat16 has.
    flat = logits.float().view(-1, logits.size(-1))
    return F.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORE, reduction="sum")
