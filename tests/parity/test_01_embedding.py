"""x = token_embedding[tokens] + position_embedding[positions]"""

import pytest
import torch

from tests.helpers.reference import POSITIONS, assert_close, every_shape, pair, tokens

pytestmark = pytest.mark.oracle


def embedded(model, *inputs, **named):
    """What enters the first block."""
    seen = []
    hook = model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(*inputs, **named)
    hook.remove()
    return seen[0]


@every_shape
def test_tokens_and_implied_positions(shape):
    ours, theirs = pair(shape)
    ids = tokens()
    expected = theirs(ids, output_hidden_states=True).hidden_states[0]
    assert_close(embedded(ours, ids), expected)


@every_shape
def test_given_positions(shape):
    """A packed row restarts its positions; theirs are given by position_ids."""
    ours, theirs = pair(shape)
    ids = tokens()
    positions = torch.randint(0, POSITIONS, ids.shape)
    expected = theirs(ids, position_ids=positions, output_hidden_states=True).hidden_states[0]
    assert_close(embedded(ours, ids, positions=positions), expected)
