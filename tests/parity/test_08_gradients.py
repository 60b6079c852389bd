"""d loss / d w, for every parameter w"""

import pytest

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
