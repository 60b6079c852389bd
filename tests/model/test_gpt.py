"""The model beyond parity: initialisation, shapes, what it refuses, what it costs."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.base.errors import UsageError
from minigpt.model.gpt import GPT, GPTConfig

SMALL = GPTConfig(vocab_size=50, n_positions=16, n_layer=2, n_head=2, n_embd=16)


def test_initialisation_is_gpt2s():
    model = GPT(GPTConfig(vocab_size=1000, n_positions=256, n_layer=8, n_head=4, n_embd=128))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            expected = 0.02 / math.sqrt(2 * 8) if residual else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.001, name


def test_an_untrained_model_guesses():
    """Its loss is about the logarithm of the vocabulary: no token is preferred."""
    logits = GPT(SMALL)(torch.randint(0, 50, (4, 16)))
    loss = torch.logsumexp(logits, -1) - logits.mean(-1)
    assert loss.mean().item() == pytest.approx(math.log(50), rel=0.01)


def test_meta_takes_no_memory_and_counts_right():
    model = GPT(replace(SMALL, n_embd=4096, n_layer=30), device=torch.device("meta"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.parameter_count() == model.config.parameter_count()


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.booleans(), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_the_count_by_formula_is_the_count(layers, heads, size, tied, inner):
    config = GPTConfig(31, 7, layers, heads, heads * size, inner, tied_head=tied)
    assert GPT(config).parameter_count() == config.parameter_count()


@given(st.integers(0, 14), st.integers(0, 49))
@settings(max_examples=25, deadline=None)
def test_a_later_token_changes_nothing_before_it(place, token):
    torch.manual_seed(0)
    model = GPT(SMALL).eval()
    ids = torch.randint(0, 50, (1, 16))
    before = model(ids)
    ids[0, place + 1] = token
    after = model(ids)
    assert torch.equal(before[:, : place + 1], after[:, : place + 1])


def test_dropout_acts_in_training_only():
    model = GPT(replace(SMALL, dropout=0.5))
    ids = torch.randint(0, 50, (1, 16))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_more_tokens_than_positions_are_refused():
    model = GPT(SMALL)
    with pytest.raises(ValueError, match="17 tokens do not fit into 16 positions"):
        model(torch.zeros(1, 17, dtype=torch.long))
    cache = model.new_cache(1, capacity=4)
    model(torch.zeros(1, 3, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="5 tokens do not fit into 4"):
        model(torch.zeros(1, 2, dtype=torch.long), cache=cache)


def test_a_packed_row_cannot_use_a_cache():
    model = GPT(SMALL)
    ids = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="packed row"):
        model(ids, documents=ids, cache=model.new_cache(1))


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"n_head": 3}, "does not divide into 3 heads"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"activation": "gelu_new"}, "unknown activation 'gelu_new'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_a_wrong_shape_is_refused_in_a_sentence(wrong, words):
    with pytest.raises(UsageError, match=words):
        replace(SMALL, **wrong)
