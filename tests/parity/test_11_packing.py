"""A packed row == its documents apart"""

import pytest
import torch

from minigpt.data.batch import IGNORE
from minigpt.model.attention import HAS_FUSED, explicit_attention, fused_attention
from minigpt.training.objective import cross_entropy_sum
from tests.helpers.reference import SHAPES, assert_close, every_shape, random_gpt, tokens

FORMS = [explicit_attention] + ([fused_attention] if HAS_FUSED else [])
each_form = pytest.mark.parametrize("form", FORMS)


def packed(lengths, masked=False):
    """Positions and documents of a row that holds documents of `lengths`, numbered for a mask or
    by their lengths.
    """
    positions = torch.cat([torch.arange(n) for n in lengths])
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    return positions[None], numbers[None] if masked else [lengths]


@each_form
@every_shape
@pytest.mark.parametrize("masked", [False, True])
def test_packed_documents_equal_separate_ones(shape, form, masked):
    """Logits, loss and every gradient: nothing leaks from one document into the next."""
    model = random_gpt(shape).use_attention(form)
    lengths = [9, 1, 6, 8]
    positions, documents = packed(lengths, masked)
    row = tokens(1)
    targets = torch.randint(0, 97, row.shape)
    targets[0, 3] = IGNORE

    together = model(row, positions, documents)
    loss = cross_entropy_sum(together, targets)
    gradients = torch.autograd.grad(loss, list(model.parameters()))

    apart = [model(part) for part in row.split(lengths, 1)]
    assert_close(together, torch.cat(apart, 1))
    separate = sum(
        cross_entropy_sum(out, part) for out, part in zip(apart, targets.split(lengths, 1))
    )
    assert_close(loss, separate)
    expected = torch.autograd.grad(separate, list(model.parameters()))
    for mine, other in zip(gradients, expected):
        assert_close(mine, other)


@each_form
def test_without_the_mask_documents_would_leak(form):
    """The test above could not fail otherwise."""
    model = random_gpt(SHAPES["17 a head, odd inner"]).use_attention(form)
    positions, documents = packed([12, 12])
    row = tokens(1)
    with pytest.raises(AssertionError):
        assert_close(model(row, positions), model(row, positions, documents))
