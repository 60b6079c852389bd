"""mlp(x) = gelu(x W_up + b_up) W_down + b_down,  gelu(x) = x Phi(x), or its tanh approximation"""

import math

import pytest
import torch

from minigpt.model.gpt import MLP
from tests.helpers.reference import SHAPES, TOLERANCE, assert_close, config_of, every_shape, pair


@pytest.mark.oracle
@every_shape
def test_equals_theirs(shape):
    ours, theirs = pair(shape)
    x = torch.randn(2, 5, shape[1])
    assert_close(ours.blocks[1].mlp(x), theirs.transformer.h[1].mlp(x))


def activation(name):
    """The activation alone, out of an MLP whose two matrices are the identity."""
    mlp = MLP(config_of((1, 8, 8, name)))
    with torch.no_grad():
        for linear in (mlp.up, mlp.down):
            linear.weight.copy_(torch.eye(8))
            linear.bias.zero_()
    return mlp


def test_both_gelus_are_their_formulas():
    x = torch.linspace(-6, 6, 801)[:, None].expand(-1, 8)
    exact = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    tanh = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert_close(activation("gelu")(x), exact)
    assert_close(activation("gelu_tanh")(x), tanh)


def test_the_tolerance_sees_the_wrong_gelu():
    """The two differ by 4.7e-4 at most, which a tolerance of 1e-3 would let pass."""
    x = torch.linspace(-6, 6, 801)[:, None].expand(-1, 8)
    difference = (activation("gelu")(x) - activation("gelu_tanh")(x)).abs().max().item()
    assert 5 * TOLERANCE * x.max().item() < difference < 1e-3


@pytest.mark.oracle
def test_the_ladder_sees_the_wrong_gelu():
    ours, theirs = pair(SHAPES["64 a head, exact gelu"])
    for block in ours.blocks:
        block.mlp.approximate = "tanh"
    x = torch.randn(2, 5, 128)
    with pytest.raises(AssertionError):
        assert_close(ours.blocks[0].mlp(x), theirs.transformer.h[0].mlp(x))
