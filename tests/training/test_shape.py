"""Any shape: flags on top of --model."""

import json
import math

import pytest
import torch

from minigpt import load_model
from minigpt.base.errors import UsageError
from minigpt.commands.flags import parse_settings
from minigpt.devices.device import find_device
from minigpt.model.gpt import GPT
from minigpt.model.zoo import ZOO
from minigpt.training.apply import set_dropout
from minigpt.training.config import TrainConfig
from minigpt.training.resolve import resolve, shape_of
from tests.helpers.runs import train
from tests.helpers.tuning import base


def settled(*words):
    return resolve(parse_settings(TrainConfig, "train.py", list(map(str, words))), None)


@pytest.mark.parametrize("name", ZOO)
def test_a_name_alone_is_what_it_was(name):
    assert shape_of(ZOO[name], TrainConfig(model=name)) == (ZOO[name].config, ZOO[name].recipe)


def test_every_part_of_a_shape():
    words = ["--n-layer", 2, "--n-head", 3, "--n-embd", 48, "--n-inner", 50, "--n-positions", 77]
    words += ["--activation", "gelu", "--dropout", 0.25, "--tied-head", "False"]
    run = settled("--model", "gpt2", *words)
    s = run.shape
    assert (s.n_layer, s.n_head, s.n_embd, s.n_inner, s.n_positions) == (2, 3, 48, 50, 77)
    assert (s.activation, s.dropout, s.tied_head, s.vocab_size) == ("gelu", 0.25, False, 50257)
    assert run.block_size == 77  # all of the context is trained, as by the recipe


@pytest.mark.parametrize("word", ["--tied-head=false", "--no-tied-head"])
def test_a_flag_that_is_true_or_false_is_said_either_way(word):
    assert settled(word).shape.tied_head is False
    assert settled("--packing", "false").asked.packing is False


@pytest.mark.parametrize("width", [32, 64, 256, 768])
def test_fresh_weights_are_fitted_to_the_width(width):
    """So that logits and the inside of a block are as large as in the model that was tried."""
    torch.manual_seed(0)
    spread = []
    for one in (128, width):
        model = GPT(settled("--n-embd", one).shape)
        tokens = torch.randint(0, 257, (4, 96))
        spread.append(float(model(tokens).detach().std()))
        matrix = model.blocks[0].mlp.up.weight
        assert float(matrix.detach().std()) * math.sqrt(one) == pytest.approx(
            0.05 * math.sqrt(128), rel=0.1
        )
    assert spread[1] == pytest.approx(spread[0], rel=0.25)


def test_a_wider_model_learns_slower_and_mup_has_its_own_rules():
    assert settled("--n-embd", 512).lr == pytest.approx(5e-3 / 4)
    assert settled("--n-embd", 512, "--lr", 1).lr == 1
    assert settled("--n-embd", 32).lr == 5e-3
    run = settled("--model", "cerebras-256m-mup", "--n-embd", 768, "--n-head", 12)
    there = ZOO["cerebras-111m-mup"]
    for name in ("output_scale", "attention_scale", "init_std", "hidden_init_std"):
        assert getattr(run.shape, name) == pytest.approx(getattr(there.config, name))
    assert run.hidden_lr_scale == pytest.approx(there.recipe.hidden_lr_scale)
    assert run.lr == there.recipe.lr


WRONG = {
    "heads": (["--n-embd", 100, "--n-head", 3], "say --n-head 2, or --n-embd 102"),
    "heads of the model": (["--model", "gpt2", "--n-embd", 500], "--n-head 10"),
    "no layer": (["--n-layer", 0], "--n-layer is 0"),
    "no inside": (["--n-inner", 0], "--n-inner is 0"),
    "activation": (["--activation", "gelu_new"], "did you mean gelu"),
    "dropout": (["--dropout", 1], "--dropout is 1"),
    "no number": (["--dropout", "nan"], "--dropout is nan"),
    "block": (["--n-positions", 64, "--block-size", 96], "--block-size 64"),
    "longer": (["--block-size", 200], "--n-positions 200"),
}


@pytest.mark.parametrize("words, said", WRONG.values(), ids=WRONG)
def test_what_contradicts_itself_is_a_sentence(words, said):
    with pytest.raises(UsageError) as caught:
        settled(*words)
    assert said in str(caught.value)


def test_a_shape_is_trained_goes_on_is_planned_and_begun_again(tmp_path):
    shape = ["--n-layer", 2, "--n-head", 4, "--n-embd", 48, "--n-inner", 70, "--n-positions", 40]
    shape += ["--activation", "gelu", "--dropout", 0.1, "--tied-head", "False"]
    train(tmp_path, *shape, "--steps", 2, "--out", tmp_path / "run")
    train(tmp_path, "--resume", tmp_path / "run", "--steps", 3)
    config = load_model(tmp_path / "run").config
    assert (config.n_layer, config.n_inner, config.tied_head) == (2, 70, False)
    again = settled("--config", tmp_path / "run" / "config.toml", "--n-layer", 3).shape
    assert (again.n_layer, again.n_embd, again.n_inner, again.dropout) == (3, 48, 70, 0.1)
    with pytest.raises(UsageError, match="--n-layer is for training from scratch"):
        settled("--init", tmp_path / "run", "--n-layer", 3)


def test_a_checkpoint_gets_another_dropout(tmp_path):
    start = base(tmp_path / "base")
    train(tmp_path, "--init", start, "--dropout", 0.3, "--steps", 1, "--out", tmp_path / "run")
    last = (tmp_path / "run" / "checkpoints" / "step_00000001" / "config.json").read_text()
    assert json.loads(last)["dropout"] == 0.3
    model = load_model(start).train()
    tokens = torch.randint(0, 257, (1, 20))
    assert torch.equal(model(tokens), model(tokens))
    set_dropout(model, 0.5)
    assert not torch.equal(model(tokens), model(tokens))
    assert find_device("cpu") and torch.equal(model.eval()(tokens), model(tokens))
