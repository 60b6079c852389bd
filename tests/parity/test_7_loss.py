"""loss = sum over supervised positions of -log softmax(logits)[target] / their number"""

from contextlib import nullcontext

import pytest
import torch

from minigpt.data.batch import IGNORE, Batch
from minigpt.devices.device import Device, find_device
from minigpt.model.gpt import GPT
from minigpt.training import fast_loss, objective
from minigpt.training.apply import objective_for
from minigpt.training.fast_loss import linear_cross_entropy
from minigpt.training.objective import cross_entropy_sum
from tests.helpers.reference import (
    SHAPES,
    VOCABULARY,
    assert_close,
    config_of,
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


def test_without_gradients_none_are_computed(monkeypatch):
    """Validation would wait longer for the head's gradient than for all the rest."""
    x, weight = torch.randn(5, 33), torch.randn(VOCABULARY, 33, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (5,))
    learning = linear_cross_entropy(x, weight, targets)
    monkeypatch.setattr(torch.Tensor, "addmm_", None)
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(x, weight, targets), learning.detach())
    with pytest.raises(TypeError):
        linear_cross_entropy(x, weight, targets)


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


def test_the_gradient_of_a_bf16_head_is_summed_in_fp32(monkeypatch):
    """A thousand pieces, each added to a sum a thousand times as large."""
    monkeypatch.setattr(fast_loss, "LOGITS_AT_A_TIME", VOCABULARY)
    x, weight = torch.rand(1000, 8), torch.randn(VOCABULARY, 8)
    targets = torch.zeros(1000, dtype=torch.int64)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        head = weight.to(dtype).requires_grad_()
        loss = linear_cross_entropy(x.to(dtype), head, targets, dtype)
        gradients.append(torch.autograd.grad(loss, head)[0].float())
    assert_close(gradients[1], gradients[0], 0.01)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16-mixed", torch.bfloat16), ("fp16-mixed", torch.float16)],
)
def test_the_head_is_multiplied_in_the_dtype_of_the_precision(precision, dtype, monkeypatch):
    asked = []
    real = linear_cross_entropy

    def recorded(x, weight, targets, kind):
        asked.append(kind)
        return real(x, weight, targets, torch.float32)

    monkeypatch.setattr(objective, "linear_cross_entropy", recorded)
    monkeypatch.setattr(Device, "autocast", lambda self, precision: nullcontext())
    targets = torch.zeros(1, 3, dtype=torch.int64)
    batch = Batch(targets, targets, 3)
    model = GPT(config_of(SHAPES["8 a head, odd inner"]))
    objective_for(model, find_device("cpu"), precision)(batch)
    assert asked == [dtype]


@pytest.mark.oracle
def test_eight_by_one_is_one_by_eight_with_uneven_supervision():
    """Rows with 3 and with 20 supervised tokens: a mean of means would be another number, theirs
    over the whole batch is the same.
    """
    ours, theirs = pair(SHAPES["17 a head, odd inner"])
    ids = tokens(rows=8)
    labels = ids.clone()
    for row in range(8):
        labels[row, : 1 + 3 * (row % 7)] = IGNORE
    targets = labels[:, 1:]
    count = (targets != IGNORE).sum()
    parts = [cross_entropy_sum(ours(i[None, :-1]), t[None]) / count for i, t in zip(ids, targets)]
    assert_close(torch.stack(parts).sum(), theirs(ids, labels=labels).loss)
