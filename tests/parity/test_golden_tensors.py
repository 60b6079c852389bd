"""The whole ladder once more, against tensors that transformers computed earlier: for where it
cannot be installed.
"""

import pytest
import torch
from safetensors.torch import load_file

from minigpt.model.attention import HAS_FUSED, explicit_attention, fused_attention
from minigpt.model.gpt import GPT
from minigpt.optim.adamw import AdamW, decay_groups
from minigpt.training.objective import cross_entropy_sum
from tests.golden.make_golden import ADAMW, GOLDEN, HERE, golden
from tests.helpers.reference import assert_close, config_of

FORMS = [explicit_attention] + ([fused_attention] if HAS_FUSED else [])
each_form = pytest.mark.parametrize("form", FORMS)
each_file = pytest.mark.parametrize("name", GOLDEN)


def load(name, form=None):
    stored = load_file(str(HERE / (name + ".safetensors")))
    model = GPT(config_of(GOLDEN[name])).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.copy_(stored["before." + parameter_name])
    return model.use_attention(form) if form else model, stored


@each_form
@each_file
def test_every_stage_of_the_forward_pass(name, form):
    model, stored = load(name, form)
    stream = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, args: stream.append(args[0]))
    assert_close(model(stored["tokens"]), stored["logits"])
    for layer, x in enumerate(stream):
        assert_close(x, stored["stream.%d" % layer])


@each_form
@each_file
def test_loss_gradients_and_a_step(name, form):
    model, stored = load(name, form)
    ids = stored["tokens"]
    loss = cross_entropy_sum(model(ids[:, :-1]), ids[:, 1:]) / ids[:, 1:].numel()
    assert_close(loss, stored["loss"])
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert_close(parameter.grad, stored["gradient." + parameter_name])
    optimizer = AdamW(decay_groups(model, 0.1), weight_decay=0.1, **ADAMW)
    optimizer.step()
    for parameter_name, parameter in model.named_parameters():
        assert_close(parameter.detach(), stored["after." + parameter_name])


@pytest.mark.oracle
@each_file
def test_the_stored_tensors_are_what_transformers_computes(name):
    pytest.importorskip("transformers")
    _, stored = load(name)
    fresh = golden(GOLDEN[name])
    assert fresh.keys() == stored.keys()
    for key, tensor in fresh.items():
        assert (tensor - stored[key]).abs().max() <= 1e-5, key
