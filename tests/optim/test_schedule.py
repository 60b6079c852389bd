"""The learning rate at the points where its value is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.optim.schedule import SCHEDULES, learning_rate


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_is_linear_and_reaches_the_peak(schedule):
    rates = [learning_rate(step, 100, 1.0, 0.1, 10, schedule) for step in range(11)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "schedule, middle, last",
    [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0), ("wsd", 1.0, 0.1)],
)
def test_middle_and_end(schedule, middle, last):
    assert learning_rate(50, 101, 1.0, 0.1, 0, schedule) == pytest.approx(middle)
    assert learning_rate(100, 101, 1.0, 0.1, 0, schedule) == pytest.approx(last)


def test_wsd_decays_over_the_last_fifth():
    assert learning_rate(80, 101, 1.0, 0.0, 0, "wsd") == pytest.approx(1.0)
    assert learning_rate(90, 101, 1.0, 0.0, 0, "wsd") == pytest.approx(0.5)


@given(
    st.integers(1, 500),
    st.integers(0, 600),
    st.sampled_from(SCHEDULES),
    st.floats(1e-6, 1.0),
    st.floats(0.0, 1.0),
)
def test_the_rate_stays_between_zero_and_the_peak(steps, warmup, schedule, peak, part):
    rates = [learning_rate(s, steps, peak, part * peak, warmup, schedule) for s in range(steps)]
    assert all(0.0 <= rate <= peak * (1 + 1e-9) for rate in rates)
    after = rates[warmup:]
    assert all(later <= earlier + 1e-12 for earlier, later in zip(after, after[1:]))
