"""Temperature, top-k and top-p leave exactly the tokens they should."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt.base.errors import UsageError
from minigpt.decoding.generate import Sampling, keep_top_k, keep_top_p


def possible(logits):
    return [(row > -float("inf")).nonzero().flatten().tolist() for row in logits]


def test_top_k_leaves_the_k_largest():
    logits = torch.tensor([[1.0, 5.0, 3.0, 4.0], [9.0, 8.0, 7.0, 6.0]])
    assert possible(keep_top_k(logits, 2)) == [[1, 3], [0, 1]]
    assert possible(keep_top_k(logits, 99)) == [[0, 1, 2, 3]] * 2


def test_top_p_leaves_the_fewest_that_reach_p():
    logits = torch.tensor([[0.1, 0.5, 0.25, 0.15]]).log()
    for p, expected in (
        (0.4, [1]),
        (0.5, [1]),
        (0.51, [1, 2]),
        (0.8, [1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ):
        assert possible(keep_top_p(logits, p)) == [expected], p


@given(st.integers(0, 10**6), st.floats(0.01, 1.0))
def test_top_p_never_leaves_nothing(seed, p):
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(seed)) * 5
    assert all(possible(keep_top_p(logits, p)))


def test_temperature_zero_is_the_likeliest():
    logits = torch.randn(5, 33)
    assert torch.equal(Sampling(0.0).draw(logits), logits.argmax(-1))


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(20_000, -1)
    drawn = Sampling(temperature=2.0).draw(logits, torch.Generator().manual_seed(0))
    found = torch.bincount(drawn, minlength=3) / 20_000
    assert torch.allclose(found, torch.softmax(logits[0] / 2.0, 0), atol=0.015)


def test_a_draw_asks_nothing_of_the_host():
    """No operation reads a number out of a tensor, which on a GPU would wait for all before it."""
    logits = torch.randn(3, 50)
    with torch.autograd.profiler.profile() as seen:
        for sampling in (Sampling(0.0), Sampling(0.7), Sampling(0.7, top_k=5, top_p=0.9)):
            sampling.draw(logits)
    names = {event.name for event in seen.function_events}
    assert "aten::argmax" in names and "aten::_local_scalar_dense" not in names


def test_what_is_impossible_is_never_drawn():
    logits = torch.randn(1, 300).expand(2000, -1)
    drawn = Sampling(top_k=7).draw(logits, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == set(logits[0].topk(7).indices.tolist())


@pytest.mark.parametrize(
    "wrong", [{"temperature": -0.1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        Sampling(**wrong)
