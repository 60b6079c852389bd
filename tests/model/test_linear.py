"""The quick product of a few rows is the product."""

import pytest
import torch
from torch.nn import functional as F

from minigpt.model.linear import linear
from tests.parity.reference import assert_close


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("width", [64, 51, 1024, 3072, 1025])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch(rows, width, bias):
    """Long rows and short, even and odd, with the shapes that decoding has."""
    x, weight = torch.randn(rows, 1, width), torch.randn(37, width)
    b = torch.randn(37) if bias else None
    with torch.inference_mode():
        found = linear(x, weight, b)
    assert found.shape == (rows, 1, 37)
    assert_close(found, F.linear(x, weight, b))


def test_with_gradients_it_is_torchs_own():
    x = torch.randn(1, 64, requires_grad=True)
    weight = torch.randn(37, 64, requires_grad=True)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    linear(x, weight).sum().backward()
    assert weight.grad is not None


def test_other_dtypes_go_through():
    x, weight = torch.randn(1, 64).bfloat16(), torch.randn(37, 64).bfloat16()
    with torch.inference_mode():
        assert torch.equal(linear(x, weight), F.linear(x, weight))
