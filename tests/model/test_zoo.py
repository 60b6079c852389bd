"""The published shapes, against the published numbers."""

import pytest
import torch

from minigpt.base.errors import UsageError
from minigpt.model.gpt import GPT
from minigpt.model.zoo import ZOO, find

# Parameters with the head tied, as counted for the published models.
PARAMETERS = {
    "cerebras-111m": 111_050_496,
    "cerebras-256m": 255_977_024,
    "cerebras-590m": 590_310_912,
    "cerebras-1.3b": 1_315_723_264,
    "cerebras-2.7b": 2_651_553_280,
    "cerebras-6.7b": 6_658_404_352,
    "cerebras-13b": 12_853_386_240,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "distilgpt2": 81_912_576,
}
PARAMETERS.update(
    {name + "-mup": PARAMETERS[name] for name in list(PARAMETERS)[:5]},
)


@pytest.mark.parametrize("name, count", PARAMETERS.items())
def test_exact_parameter_counts(name, count):
    config = find(name).config
    assert config.parameter_count() == count
    assert GPT(config, device=torch.device("meta")).parameter_count() == count


def test_nothing_published_is_left_uncounted():
    assert {name for name, entry in ZOO.items() if entry.repo} == set(PARAMETERS)


HEADS = {"111m": (12, 64), "256m": (17, 64), "590m": (12, 128), "1.3b": (16, 128),
         "2.7b": (32, 80), "6.7b": (32, 128), "13b": (40, 128)}  # fmt: skip


@pytest.mark.parametrize("name, heads", HEADS.items())
def test_cerebras_heads(name, heads):
    """2.7B has 32 heads of 80: a wrong number loads without an error and computes nonsense."""
    config = find("cerebras-" + name).config
    assert (config.n_head, config.head_dim) == heads
    assert (config.n_positions, config.activation, config.dropout) == (2048, "gelu", 0.0)


def test_gpt2_has_the_other_gelu():
    for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"):
        assert find(name).config.activation == "gelu_tanh"
        assert find(name).config.n_positions == 1024


@pytest.mark.parametrize("name", HEADS)
def test_recipes_are_chinchillas(name):
    """Twenty tokens for each parameter, within the rounding of the published schedules."""
    entry = find("cerebras-" + name)
    recipe = entry.recipe
    tokens = recipe.steps * recipe.batch_size * recipe.block_size
    assert tokens / entry.config.parameter_count() == pytest.approx(20, rel=0.02)


def test_mup_scales():
    config = find("cerebras-111m-mup").config
    assert config.embedding_scale == 10.0
    assert config.output_scale == pytest.approx(1 / 3)
    assert config.qk_scale == pytest.approx(1 / 64)
    assert find("cerebras-2.7b-mup").recipe.hidden_lr_scale == pytest.approx(0.1)


def test_a_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean cerebras-13b"):
        find("cerebras-31b")
