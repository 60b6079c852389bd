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


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-20])
def test_a_temperature_next_to_nothing_is_the_likeliest(temperature):
    logits = torch.randn(5, 33) * 100
    assert torch.equal(Sampling(temperature).draw(logits), logits.argmax(-1))


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.7, top_k=3, top_p=0.9)])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_give_no_token(sampling, broken):
    logits = torch.randn(3, 9)
    logits[1, 4] = broken
    first, second, third = sampling.draw(logits).tolist()
    assert second == -1 and first >= 0 and third >= 0


@pytest.mark.parametrize("penalty", [1.3, 0.7, 20.0])
def test_the_penalty_is_that_of_transformers(penalty):
    oracle = pytest.importorskip("transformers").RepetitionPenaltyLogitsProcessor(penalty)
    sampling, rows = Sampling(0.0, repetition_penalty=penalty), [[1, 2, 1], [0, 7, 30]]
    logits = torch.randn(2, 33)
    taken = torch.tensor(rows)
    seen = torch.zeros(2, 33, dtype=torch.bool).scatter_(1, taken, True)
    for _ in range(20):
        expected = oracle(taken, logits).argmax(-1)
        assert torch.equal(sampling.draw(logits, seen=seen), expected)
        taken, logits = torch.cat((taken, expected[:, None]), 1), torch.randn(2, 33)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"temperature": -0.1}, "the temperature is -0.1; it must be a number, at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "0,8"}, "temperature is '0,8'"),
        ({"temperature": None}, "temperature is None"),
        ({"top_k": 0}, "top-k is 0; it must be a whole number, at least 1"),
        ({"top_k": 2.5}, "top-k is 2.5"),
        ({"top_k": True}, "top-k is True"),
        ({"top_p": 0.0}, "top-p is 0.0; it must be a number, above 0 and at most 1"),
        ({"top_p": 1.1}, "top-p is 1.1"),
        ({"repetition_penalty": 0}, "repetition penalty is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        Sampling(**wrong)
