"""What `look` takes out of a model, against transformers, which computes all of it in its own way:
output_attentions (its eager attention), output_hidden_states, and hooks on its modules.
"""

import math

import pytest
import torch

from minigpt.base.errors import CheckpointError
from minigpt.commands.look_taps import GUESSES, UNITS, look_inside
from minigpt.model.attention import HAS_FUSED, explicit_attention, fused_attention
from tests.helpers.reference import (
    LAYERS,
    SHAPES,
    assert_close,
    every_shape,
    pair,
    random_gpt,
    tokens,
)

FORMS = [explicit_attention] + ([fused_attention] if HAS_FUSED else [])


@pytest.fixture(params=[24, 7], ids=["all shown", "the last 7 shown"])
def shown(request):
    return request.param


def theirs_inside(model, ids):
    """The output of transformers' model, and what its modules gave: {name: (L) x (T, C)}."""
    given = {"attn": [], "mlp": [], "act": [], "last": []}
    hooks = []

    def tap(module, name, pick=lambda output: output):
        keep = given[name].append
        hooks.append(module.register_forward_hook(lambda m, i, output: keep(pick(output)[0])))

    for block in model.transformer.h:
        tap(block.attn, "attn", lambda output: output[0])
        tap(block.mlp, "mlp")
        tap(block.mlp.act, "act")
        tap(block, "last", lambda output: output if torch.is_tensor(output) else output[0])
    with torch.no_grad():
        output = model(ids, output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    return output, given


def near(ours, theirs):
    assert_close(torch.as_tensor(ours), torch.as_tensor(theirs))


def check_guess(guess, logits, ids):
    """A Guess against their logits (N, V) of the last N of `ids`."""
    known = logits.double().log_softmax(-1)
    best = known.topk(GUESSES)
    near(guess.probabilities, best.values.exp().float())
    chosen = known.gather(1, torch.as_tensor(guess.tokens))
    near(chosen.float(), best.values.float())  # by value, as two tokens may be equally likely
    real = known[:-1].gather(1, ids[1:].unsqueeze(1))
    near(guess.bits, (-real[:, 0] / math.log(2)).float())
    assert guess.ranks.tolist() == ((known[:-1] > real).sum(1) + 1).tolist()


@pytest.mark.oracle
@pytest.mark.parametrize("form", FORMS)
@every_shape
def test_equal_theirs(shape, form, shown):
    ours, theirs = pair(shape)
    ids = tokens(rows=1)
    inside = look_inside(ours.use_attention(form), ids[0].tolist(), shown)
    output, given = theirs_inside(theirs, ids)
    assert inside.tokens == ids[0, -shown:].tolist() and inside.earlier == 24 - shown
    assert len(inside.layers) == len(output.attentions) == LAYERS

    streams = [output.hidden_states[0][0], *given["last"]]
    for number, x in enumerate(streams):
        x = x[-shown:]
        near(inside.norms[number], x.norm(dim=-1))
        logits = theirs.lm_head(theirs.transformer.ln_f(x)).detach()
        check_guess(inside.lens[number], logits, ids[0, -shown:])
    check_guess(inside.lens[-1], output.logits[0, -shown:], ids[0, -shown:])

    for layer, weights in enumerate(output.attentions):
        ours = inside.layers[layer]
        weights = weights[0, :, -shown:]  # (H, N, T)
        near(ours.attention[:, :, 1:], weights[:, :, -shown:])
        earlier = torch.as_tensor(ours.attention[:, :, 0])
        assert (earlier - weights[:, :, :-shown].sum(2)).abs().max() <= 1e-5
        assert ours.gap <= 1e-5
        near(ours.attended, given["attn"][layer][-shown:].norm(dim=-1))
        near(ours.written, given["mlp"][layer][-shown:].norm(dim=-1))
        active = given["act"][layer][-shown:]
        near(ours.activations, active.topk(UNITS).values)
        near(ours.activations, active.gather(1, torch.as_tensor(ours.units)))


def test_the_model_is_left_as_it_was():
    model = random_gpt(SHAPES["8 a head, odd inner"])
    ids = tokens(rows=1)
    before = model(ids)
    look_inside(model, ids[0].tolist(), 5)
    assert torch.equal(model(ids), before)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_hooks_go_after_an_error_too():
    model = random_gpt(SHAPES["8 a head, odd inner"])
    with pytest.raises(ValueError, match="25 tokens do not fit into 24 positions"):
        look_inside(model, [1] * 25, 5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_last_layer_is_the_model_itself():
    """With muP's scales too, of which the lens must not forget one."""
    model = random_gpt(SHAPES["17 a head, odd inner"])
    model.config = type(model.config)(
        **{**vars(model.config), "output_scale": 0.3, "embedding_scale": 10.0}
    )
    inside = look_inside(model, tokens(rows=1)[0].tolist(), 24)
    logits = model(torch.tensor([inside.tokens]))[0].detach()
    check_guess(inside.lens[-1], logits, torch.tensor(inside.tokens))


def test_another_attention_than_the_formula_is_noticed():
    def looks_ahead(q, k, v, mask, scale, dropout):
        return torch.softmax(q @ k.transpose(-2, -1) * scale, -1) @ v

    model = random_gpt(SHAPES["8 a head, odd inner"]).use_attention(looks_ahead)
    with pytest.raises(RuntimeError, match="do not give what attention gave"):
        look_inside(model, tokens(rows=1)[0].tolist(), 24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_16_bits(dtype):
    model = random_gpt(SHAPES["64 a head, exact gelu"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)  # or its scores are as large as no trained model's
    ids = tokens(rows=1)[0].tolist()
    exact = look_inside(model, ids, 24)
    try:
        rounded = look_inside(model.to(dtype), ids, 24)
    except RuntimeError as error:
        pytest.skip("this PyTorch has no %s on a CPU: %s" % (dtype, error))
    for ours, theirs in zip(rounded.layers, exact.layers):
        assert abs(ours.attention - theirs.attention).max() < 0.03
        assert abs(ours.attention[:, :, 1:].sum(2) - 1).max() < 1e-5


def test_one_token_alone():
    inside = look_inside(random_gpt(SHAPES["8 a head, odd inner"]), [3], 64)
    assert inside.lens[-1].bits.shape == (0,) and inside.lens[-1].tokens.shape == (1, GUESSES)
    assert inside.layers[0].attention.shape == (5, 1, 2)


def test_a_model_that_gives_no_numbers():
    model = random_gpt(SHAPES["8 a head, odd inner"])
    with torch.no_grad():
        model.blocks[1].mlp.down.bias[0] = math.nan
    with pytest.raises(CheckpointError, match="logits are not numbers"):
        look_inside(model, [1, 2, 3], 3)
