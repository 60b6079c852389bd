"""norm(x) = (x - mean) / sqrt(variance + eps) * weight + bias, over the channels, variance with
1/C
"""

import pytest
import torch

from tests.helpers.reference import assert_close, every_shape, pair


@pytest.mark.oracle
@every_shape
@pytest.mark.parametrize("size", [3, 0.01])
def test_equals_theirs(shape, size):
    """Of large numbers, and of small ones, whose variance is no more than a few eps: another eps is
    not seen in large ones.
    """
    ours, theirs = pair(shape)
    x = torch.randn(2, 5, shape[1]) * size + 1
    assert_close(ours.blocks[1].mlp_norm(x), theirs.transformer.h[1].ln_2(x))


def test_equals_the_formula():
    norm = torch.nn.LayerNorm(51, 1e-5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 51)
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    assert_close(norm(x), centred / (variance + 1e-5).sqrt() * norm.weight + norm.bias)
