"""The quick product of a few rows is the product."""

import pytest
import torch
from torch.nn import functional as F

from minigpt.decoding import fast_rows as linear_module
from minigpt.decoding.fast_rows import fast_rows, linear, try_library
from minigpt.model.gpt import GPT
from tests.helpers.reference import SHAPES, assert_close, config_of, tokens


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("width", [64, 51, 1024, 3072, 1025])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("slow", [True, False])
def test_equals_torch(rows, width, bias, slow, monkeypatch):
    """Long rows and short, even and odd, with the shapes that decoding has; either way."""
    monkeypatch.setattr("minigpt.decoding.fast_rows._slow", slow)
    x, weight = torch.randn(rows, 1, width), torch.randn(37, width)
    b = torch.randn(37) if bias else None
    with torch.inference_mode():
        found = linear(x, weight, b)
    assert found.shape == (rows, 1, 37)
    assert_close(found, F.linear(x, weight, b))


def test_the_library_is_tried_once(monkeypatch):
    seconds = iter([3.0, 1.0])
    monkeypatch.setattr("minigpt.decoding.fast_rows._slow", None)
    monkeypatch.setattr("minigpt.decoding.fast_rows._seconds", lambda product: next(seconds))
    assert try_library() and try_library()
    seconds, linear_module._slow = iter([1.2, 1.0]), None
    assert not try_library() and not try_library()


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


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_computes_the_same_while_it_is_on_and_is_as_before_afterwards(
    slow, tied, monkeypatch
):
    monkeypatch.setattr("minigpt.decoding.fast_rows._slow", slow)
    model = GPT(config_of(SHAPES["17 a head, odd inner"], tied_head=tied)).eval()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    ids = tokens(1, 7)
    with torch.inference_mode():
        expected = model(ids)
        with fast_rows(model):
            cache = model.new_cache(1)
            parts = [model(part, cache=cache) for part in ids.split(1, 1)]
        assert_close(torch.cat(parts, 1), expected)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
