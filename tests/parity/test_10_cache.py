"""Decoding with a cache == one full pass"""

import pytest
import torch

from minigpt.model.attention import HAS_FUSED, explicit_attention, fused_attention
from tests.helpers.reference import POSITIONS, SHAPES, assert_close, every_shape, random_gpt, tokens

FORMS = [explicit_attention] + ([fused_attention] if HAS_FUSED else [])
each_form = pytest.mark.parametrize("form", FORMS)


@each_form
@every_shape
@pytest.mark.parametrize("chunks", [[1] * POSITIONS, [10, 1, 1, 12], [23, 1], [5, 19]])
def test_cached_equals_full(shape, form, chunks):
    model = random_gpt(shape).use_attention(form)
    ids = tokens()
    cache = model.new_cache(2)
    parts = [model(part, cache=cache) for part in ids.split(chunks, 1)]
    assert cache.length == POSITIONS
    assert_close(torch.cat(parts, 1), model(ids))


def test_one_prefill_serves_several_samples():
    model = random_gpt(SHAPES["17 a head, odd inner"])
    prompt, ends = tokens(1, 7), tokens(3, 5)
    cache = model.new_cache(1)
    model(prompt, cache=cache)
    logits = model(ends, cache=cache.repeat(3))
    whole = model(torch.cat([prompt.expand(3, -1), ends], 1))
    assert_close(logits, whole[:, 7:])
