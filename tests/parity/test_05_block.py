"""x = x + attention(norm(x));  x = x + mlp(norm(x))"""

import pytest
import torch

from tests.helpers.reference import LAYERS, assert_close, every_shape, pair, tokens

pytestmark = pytest.mark.oracle


@every_shape
def test_each_block_alone(shape):
    ours, theirs = pair(shape)
    x = torch.randn(2, 9, shape[1])
    future = torch.full((9, 9), torch.finfo(x.dtype).min).triu(1)[None, None]
    for layer in range(LAYERS):
        expected = theirs.transformer.h[layer](x, attention_mask=future)
        expected = expected[0] if isinstance(expected, tuple) else expected
        assert_close(ours.blocks[layer](x), expected)


@every_shape
def test_the_residual_stream_after_each_block(shape):
    """By hooks: what theirs calls its last hidden state is already behind the last LayerNorm."""
    ours, theirs = pair(shape)
    streams = ([], [])
    for blocks, seen in ((ours.blocks, streams[0]), (theirs.transformer.h, streams[1])):
        for block in blocks:
            block.register_forward_hook(
                lambda module, args, out, seen=seen: seen.append(
                    out[0] if isinstance(out, tuple) else out
                )
            )
    ids = tokens()
    ours(ids)
    theirs(ids)
    assert len(streams[0]) == LAYERS
    for mine, other in zip(*streams):
        assert_close(mine, other)
