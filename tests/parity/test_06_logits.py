"""logits = norm(x) @ token_embedding^T"""

import pytest
import torch

from minigpt.model.attention import HAS_FUSED, explicit_attention, fused_attention
from tests.helpers.reference import SHAPES, assert_close, every_shape, oracle, pair, tokens, twin

FORMS = [explicit_attention] + ([fused_attention] if HAS_FUSED else [])

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("form", FORMS)
@every_shape
def test_equal_theirs(shape, form):
    ours, theirs = pair(shape)
    ids = tokens()
    assert_close(ours.use_attention(form)(ids), theirs(ids).logits)


def test_an_untied_head():
    shape = SHAPES["17 a head, odd inner"]
    theirs = oracle(shape, tied=False)
    ours = twin(theirs, shape, tied_head=False)
    ids = tokens()
    assert_close(ours(ids), theirs(ids).logits)


def test_mup_scales_equal_folding_them_into_the_weights():
    """A muP model is a GPT-2 whose embeddings are multiplied by the embedding scale, whose keys
    are divided by sqrt(D), and whose untied head is the unscaled token embedding times the output
    scale.
    """
    shape = SHAPES["17 a head, odd inner"]
    theirs = oracle(shape, tied=False)
    C, D = 51, 17
    with torch.no_grad():
        theirs.lm_head.weight.copy_(theirs.transformer.wte.weight)
    ours = twin(theirs, shape, embedding_scale=10.0, output_scale=1 / 3, attention_scale=1 / D)
    with torch.no_grad():
        theirs.transformer.wte.weight.mul_(10.0)
        theirs.transformer.wpe.weight.mul_(10.0)
        theirs.lm_head.weight.div_(3)
        for block in theirs.transformer.h:
            block.attn.c_attn.weight[:, C : 2 * C].div_(D**0.5)
            block.attn.c_attn.bias[C : 2 * C].div_(D**0.5)
    ids = tokens()
    for form in FORMS:
        assert_close(ours.use_attention(form)(ids), theirs(ids).logits)
