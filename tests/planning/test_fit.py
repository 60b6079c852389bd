"""What fits, what is advised when it does not, and how long a step takes."""

import re
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.base.errors import flag
from minigpt.devices.device import Device
from minigpt.model.gpt import GPTConfig
from minigpt.model.lora import LoRAConfig
from minigpt.planning.fit import (
    flops,
    flops_per_token,
    largest_rows,
    more_memory,
    nearest_fit,
    with_rows,
)
from minigpt.planning.memory import memory
from minigpt.training.config import TrainConfig
from tests.planning.test_memory import B13, FULL, GB, jobs


@given(jobs(), st.integers(10**6, 10**11))
@settings(max_examples=200)
def test_largest_rows_are_the_largest(job, room):
    rows = largest_rows(job, room)
    assert rows == 0 or memory(with_rows(job, rows)).total <= room
    for more in range(rows + 1, job.batch + 1):
        assert memory(with_rows(job, more)).total > room


def test_advice_fits_and_changes_as_little_as_it_can():
    found = nearest_fit(FULL, 141 * GB)
    assert all(memory(one.job).total <= 141 * GB for one in found)
    assert "--precision bf16" in str(found[0])
    assert "--lora-rank" not in str(found[0])
    one = nearest_fit(replace(FULL, precision="bf16"), 141 * GB)[0]
    assert str(one) == "--micro-batch-size 1 (the result is the same but for rounding)"
    assert nearest_fit(FULL, 10 * GB) == []


def test_an_adapter_is_not_advised_beside_frozen_layers_nor_what_is_barred():
    frozen = replace(FULL, freeze_layers=10)
    assert not any("--lora" in str(one) for one in nearest_fit(frozen, 40 * GB, most=99))
    barred = {"--precision bf16", "--recompute"}
    found = nearest_fit(FULL, 141 * GB, most=99, barred=barred)
    assert found and not any(flag in str(one) for one in found for flag in ("bf16 ", "--rec"))


def test_what_fits_needs_no_advice_but_itself():
    assert nearest_fit(FULL, 300 * GB)[0].changes == ()


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps", "moai"])
def test_what_to_do_without_memory_names_flags_that_there_are(kind):
    named = re.findall(r"--[a-z-]+", more_memory(Device(kind, torch.device("cpu"))))
    known = {flag(field.name) for field in fields(TrainConfig)}
    assert len(named) >= 2 and set(named) <= known


def test_flops_per_token_against_a_count_by_hand():
    """Each weight of a matrix is one multiplication and one addition forward and twice that
    backward.
    """
    C, I, L, V, T = 16, 64, 2, 50, 16
    matrices = L * (3 * C * C + C * C + C * I + I * C) + V * C
    attention = L * 2 * (2 * T * C)  # q k^T and weights v, for one query
    assert flops_per_token(GPTConfig(V, T, L, 2, C), T) == 3 * (2 * matrices + attention)


def test_time_is_that_of_the_published_formula():
    each = flops_per_token(B13, 1024)
    assert flops(FULL) == each * 16 * 1024
    again = flops(replace(FULL, recompute=True)) - flops(FULL)
    blocks = each - 6 * B13.vocab_size * B13.n_embd
    assert again == blocks // 3 * 16 * 1024
    assert flops(replace(FULL, lora=LoRAConfig(16))) < 0.7 * flops(FULL)
    # Frozen embeddings, and below the layers that learn nothing goes back.
    top = replace(FULL, freeze_layers=30)
    assert flops(top) == pytest.approx((1 / 3 + 2 / 3 / 4) * flops(FULL), rel=0.03)
