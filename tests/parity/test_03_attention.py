"""attention(q, k, v) = softmax(q k^T / sqrt(D) + causal mask) v, for each head; then one
projection
"""

import pytest
import torch

from minigpt.model.attention import (
    HAS_FUSED,
    explicit_attention,
    fused_attention,
)
from minigpt.model.cache import KVCache, causal_mask, document_mask
from tests.helpers.reference import assert_close, every_shape, pair

FORMS = [explicit_attention] + ([fused_attention] if HAS_FUSED else [])
each_form = pytest.mark.parametrize("form", FORMS)


@pytest.mark.oracle
@each_form
@every_shape
def test_equals_theirs(shape, form):
    ours, theirs = pair(shape)
    ours.use_attention(form)
    x = torch.randn(2, 11, shape[1])
    attention = theirs.transformer.h[1].attn
    future = torch.full((11, 11), torch.finfo(x.dtype).min).triu(1)[None, None]
    expected = attention(x, attention_mask=future)[0]
    assert_close(ours.blocks[1].attention(x), expected)


def heads(T, S=None, D=17):
    return torch.randn(2, 3, T, D), torch.randn(2, 3, S or T, D), torch.randn(2, 3, S or T, D)


needs_fused = pytest.mark.skipif(not HAS_FUSED, reason="PyTorch before 2.0 has no fused form")


@needs_fused
@pytest.mark.parametrize("scale", [17**-0.5, 1 / 17])
@pytest.mark.parametrize("kind", ["causal", "one query", "chunk", "documents"])
def test_the_two_forms_are_one(kind, scale):
    q, k, v = {"one query": heads(1, 9), "chunk": heads(4, 9)}.get(kind, heads(9))
    mask = None
    if kind == "documents":
        mask = document_mask(torch.tensor([[0] * 4 + [1] * 5, [0] * 9]))
    elif kind == "chunk":
        mask = causal_mask(4, 9, q.device)
    explicit = explicit_attention(q, k, v, mask, scale, 0.0)
    assert_close(fused_attention(q, k, v, mask, scale, 0.0), explicit)


@each_form
def test_a_query_sees_nothing_of_the_future(form):
    q, k, v = heads(9)
    before = form(q, k, v, None, 0.2, 0.0)
    k[:, :, 5:] += 1.0
    v[:, :, 5:] += 1.0
    after = form(q, k, v, None, 0.2, 0.0)
    assert torch.equal(before[:, :, :5], after[:, :, :5])
    assert not torch.equal(before[:, :, 5:], after[:, :, 5:])


@each_form
@pytest.mark.parametrize("chunks", [[9], [4, 5], [8, 1], [1] * 9, [2, 3, 4]])
def test_chunks_onto_a_cache_equal_one_pass(form, chunks):
    """Several queries on top of a cache: is_causal would align its triangle with the wrong
    corner.
    """
    q, k, v = heads(9)
    whole = form(q, k, v, None, 0.2, 0.0)
    cache, start, parts = KVCache.empty(1, (2, 3, 9, 17), q), 0, []
    for size in chunks:
        part = slice(start, start + size)
        mask = cache.mask(size)
        keys, values = cache.append(0, k[:, :, part], v[:, :, part])
        parts.append(form(q[:, :, part], keys, values, mask, 0.2, 0.0))
        start += size
        cache.length = start
    assert_close(torch.cat(parts, 2), whole)


@each_form
def test_gradients_equal_those_of_the_formula(form):
    q, k, v = (x.double().requires_grad_() for x in heads(7))
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    formula = torch.softmax((q @ k.transpose(2, 3) * 0.3).masked_fill(~mask, -1e300), -1) @ v
    expected = torch.autograd.grad(formula.sin().sum(), (q, k, v))
    found = torch.autograd.grad(form(q, k, v, None, 0.3, 0.0).sin().sum(), (q, k, v))
    for mine, theirs in zip(found, expected):
        assert_close(mine, theirs)
