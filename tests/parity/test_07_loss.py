"""loss = sum over supervised positions of -log softmax(logits)[target] / their number"""

import pytest
import torch

from minigpt.data.batch import IGNORE
from minigpt.training import fast_loss
from minigpt.training.fast_loss import linear_cross_entropy
from minigpt.training.objective import cross_entropy_sum
from tests.helpers.reference import (
    VOCABULARY,
    assert_close,
    every_shape,
    pair,
    tokens,
)


def shifted(ids, ignored=()):
    """Our targets are the tokens one place on; theirs are shifted inside the model."""
    labels = ids.clone()
    for row, place in ignored:
        labels[row, place] = IGNORE
    return labels, labels[:, 1:]


@pytest.mark.oracle
@every_shape
@pytest.mark.parametrize("ignored", [(), ((0, 3), (1, 5), (1, 6))])
def test_equals_theirs(shape, ignored):
    ours, theirs = pair(shape)
    ids = tokens()
    labels, targets = shifted(ids, ignored)
    count = (targets != IGNORE).sum()
    loss = cross_entropy_sum(ours(ids[:, :-1]), targets) / count
    assert_close(loss, theirs(ids, labels=labels).loss)


def test_equals_the_formula():
    logits, targets = torch.randn(3, 7, VOCABULARY) * 4, torch.randint(0, VOCABULARY, (3, 7))
    targets[1, 2:5] = IGNORE
    total = 0.0
    for row in range(3):
        for place in range(7):
            if targets[row, place] != IGNORE:
                p = torch.softmax(logits[row, place].double(), 0)[targets[row, place]]
                total -= torch.log(p)
    assert_close(cross_entropy_sum(logits, targets).double(), total)


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 100])
def test_in_pieces_it_is_the_same_with_the_same_gradients(monkeypatch, rows_at_a_time):
    """Together with the head, a few rows at a time: the loss to 1e-6, and both gradients."""
    monkeypatch.setattr(fast_loss, "LOGITS_AT_A_TIME", rows_at_a_time * VOCABULARY)
    x = torch.randn(2, 11, 33, requires_grad=True)
    weight = torch.randn(VOCABULARY, 33, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (2, 11))
    targets[0, :5] = IGNORE
    whole = cross_entropy_sum(x @ weight.t(), targets) / 17
    pieces = linear_cross_entropy(x, weight, targets) / 17
    assert_close(pieces, whole, 1e-6)
    expected = torch.autograd.grad(whole, (x, weight))
    for mine, other in zip(torch.autograd.grad(pieces, (x, weight)), expected):
        assert_close(mine, other)


def test_ignored_positions_give_no_gradient():
    logits = torch.randn(1, 4, VOCABULARY, requires_grad=True)
    targets = torch.tensor([[5, IGNORE, 7, IGNORE]])
    cross_entropy_sum(logits, targets).backward()
    moved = logits.grad.abs().sum(-1)[0] > 0
    assert moved.tolist() == [True, False, True, False]


def test_bf16_logits_are_summed_in_fp32():
    logits, targets = torch.randn(64, VOCABULARY).bfloat16(), torch.randint(0, VOCABULARY, (64,))
    loss = cross_entropy_sum(logits, targets)
    assert loss.dtype == torch.float32
    assert_close(loss, cross_entropy_sum(logits.float(), targets))
