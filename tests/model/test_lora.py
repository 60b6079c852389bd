"""W + (alpha / rank) B A: nothing changes at first, only A and B learn, merging changes nothing"""

import pytest
import torch

from minigpt.base.errors import UsageError
from minigpt.model.config import TARGETS
from minigpt.model.gpt import GPT, GPTConfig
from minigpt.model.lora import LoRAConfig, adapter_tensors, add_lora, merged
from minigpt.optim.adamw import AdamW, decay_groups
from minigpt.training.apply import freeze

SHAPE = GPTConfig(97, 24, 2, 3, 48, activation="gelu")
TOKENS = torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(1))


CONFIG = LoRAConfig(3, alpha=6.0, dropout=0.0)


def tuned():
    """A model whose adapters are no longer zero."""
    model = add_lora(GPT(SHAPE), CONFIG)
    with torch.no_grad():
        for parameter in adapter_tensors(model).values():
            parameter.normal_(0.0, 0.3)
    return model.eval()


def test_fresh_adapter_changes_nothing():
    model = GPT(SHAPE).eval()
    before = model(TOKENS)
    assert torch.equal(add_lora(model, LoRAConfig(4))(TOKENS), before)


def test_merging_gives_the_same_logits():
    model = tuned()
    plain = GPT(SHAPE).eval()
    weights = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith((".a", ".b")):
                weights[name.replace(".base.", ".")].copy_(parameter)
        thin = adapter_tensors(model)
        for name in {name[:-2] for name in thin}:
            weight = weights[name + ".weight"]
            weight.copy_(merged(weight, thin[name + ".a"], thin[name + ".b"], CONFIG))
    expected = model(TOKENS)
    assert (plain(TOKENS) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_only_the_adapter_learns_and_is_in_the_optimizer():
    model = tuned().train()
    thin = adapter_tensors(model)
    assert len(thin) == 2 * len(TARGETS) * SHAPE.n_layer
    optimizer = AdamW(decay_groups(model, 0.01))
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in thin.values()}
    before = {name: p.clone() for name, p in model.named_parameters()}
    model(TOKENS).logsumexp(-1).sum().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(thin)
    assert all(group["weight_decay"] == 0.01 for group in optimizer.param_groups)


def test_dropout_is_on_the_adapter_alone():
    """With B at zero the adapter adds nothing, whatever is dropped before it."""
    model = add_lora(GPT(SHAPE), LoRAConfig(4, dropout=0.5)).train()
    assert torch.equal(model(TOKENS), model(TOKENS))
    with torch.no_grad():
        model.blocks[0].mlp.up.b.normal_()
    assert not torch.equal(model(TOKENS), model(TOKENS))


def test_targets_choose_the_matrices():
    model = add_lora(GPT(SHAPE), LoRAConfig(2, targets=("qkv", "down")))
    names = {name.split(".", 2)[2] for name in adapter_tensors(model)}
    assert names == {"attention.qkv.a", "attention.qkv.b", "mlp.down.a", "mlp.down.b"}


@pytest.mark.parametrize(
    "values, says",
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 2, "dropout": 1.0}, "--lora-dropout is 1.0"),
        ({"rank": 2, "targets": ("qvk",)}, "did you mean qkv"),
        ({"rank": 2, "targets": ()}, "--lora-targets"),
    ],
)
def test_settings_that_mean_nothing(values, says):
    with pytest.raises(UsageError, match=says):
        LoRAConfig(**values)


def test_frozen_layers_keep_still():
    model = GPT(SHAPE)
    freeze(model, 1)
    model(TOKENS).logsumexp(-1).sum().backward()
    moving = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moving == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("blocks.1.", "final_norm."))
    }
