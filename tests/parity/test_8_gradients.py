"""d loss / d w for every parameter w; then w after one step of AdamW"""

import pytest
import torch

from minigpt.optim.adamw import AdamW
from minigpt.optim.groups import decay_groups
from minigpt.training.objective import cross_entropy_sum
from tests.helpers.reference import (
    assert_close,
    every_shape,
    pair,
    their_name,
    theirs_as_ours,
    tokens,
)

pytestmark = pytest.mark.oracle


def backward(ours, theirs, ids):
    ours.zero_grad(set_to_none=True)
    theirs.zero_grad(set_to_none=True)
    (cross_entropy_sum(ours(ids[:, :-1]), ids[:, 1:]) / ids[:, 1:].numel()).backward()
    theirs(ids, labels=ids).loss.backward()


def laid_out(ours, theirs, what):
    """(name, ours, theirs in our layout) of `what(parameter)`."""
    their_parameters = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        yield name, what(parameter), theirs_as_ours(name, what(their_parameters[their_name(name)]))


@every_shape
def test_every_gradient_equals_theirs(shape):
    ours, theirs = pair(shape)
    backward(ours, theirs, tokens())
    names = []
    for name, mine, other in laid_out(ours, theirs, lambda p: p.grad):
        assert_close(mine, other)
        names.append(name)
    assert len(names) == 4 + 12 * 3


@every_shape
def test_a_step_of_training_equals_theirs_under_torchs_adamw(shape):
    """Adam's first step divides a gradient by itself, so eps here is above the rounding of
    gradients near zero.
    """
    ours, theirs = pair(shape)
    mine = AdamW(decay_groups(ours, 0.1), 1e-3, (0.9, 0.95), 1e-4, 0.1)
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, 1e-3, (0.9, 0.95), 1e-4)
    backward(ours, theirs, tokens())
    before = ours.final_norm.weight.detach().clone()
    mine.step()
    reference.step()
    assert not torch.equal(before, ours.final_norm.weight)
    for _, a, b in laid_out(ours, theirs, lambda p: p.detach()):
        assert_close(a, b)
