"""A checkpoint that says what no run can have written is refused by name, not half believed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigpt import load_model
from minigpt.base.errors import CheckpointError
from minigpt.checkpoint.manifest import NAME, write_manifest
from tests.helpers.runs import corpus
from tests.helpers.tuning import base, trainer_of

UP = "blocks.0.mlp.up.weight"
MEAN = "mean.token_embedding.weight"
STATES = {
    "an unknown key": {"foo": 1},
    "a text": {"step": "4"},
    "a fraction": {"step": 2.5},
    "below zero": {"samples_seen": -5},
    "a number nothing has": {"step": 10**30},
    "more skipped than done": {"skipped_steps": 4000},
    "a list": {"samples_seen": [1]},
    "none": {"tokens_seen": None},
    "a text for a loss": {"best_loss": "x"},
    "no generator": {"rng": {}},
    "a short generator": {"rng": {"cpu": "AAAA"}},
    "no base64": {"rng": {"cpu": "\u00e9!!"}},
    "a number for a generator": {"rng": {"cpu": 5}},
    "a list of generators": {"rng": [1]},
}
MOMENTS = {
    "none": lambda tensors: {},
    "no square": lambda tensors: {n: t for n, t in tensors.items() if n.startswith("mean")},
    "one missing": lambda tensors: {n: t for n, t in tensors.items() if n != MEAN},
    "one more": lambda tensors: {**tensors, MEAN.replace("mean", "carry"): tensors[MEAN].clone()},
    "half": lambda tensors: {n: t.half() for n, t in tensors.items()},
    "double": lambda tensors: {**tensors, MEAN: tensors[MEAN].double()},
    "integers": lambda tensors: {n: t.int() for n, t in tensors.items()},
    "another shape": lambda tensors: {**tensors, MEAN: tensors[MEAN].t().contiguous()},
}
ADAPTERS = {
    "no list": {"base": 5},
    "of numbers": {"base": [5, 6]},
    "no name": {"base": ["a\0b"]},
    "too long a name": {"base": ["x" * 3000]},
    "a surrogate": {"base": ["\ud800"]},
    "another rank": {"rank": 7},
    "no rank": {"rank": "x"},
    "no targets": {"targets": 5},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of two steps, and one of an adapter: their checkpoints by name."""
    place = tmp_path_factory.mktemp("damaged")
    base(place / "base")
    made = {}
    for name, rank in (("run", 0), ("adapter", 2)):
        trainer = trainer_of(
            init=str(place / "base"), data=str(corpus(place / "corpus")), device="cpu", steps=2,
            out=str(place / name), block_size=32, batch_size=4, lora_rank=rank, sample_every=0,
        )  # fmt: skip
        (place / name).mkdir()
        trainer.train()
        made[name] = trainer.save()
    return made


def damaged(checkpoint, tmp_path, name, change):
    """A copy with the file `name` changed, and a manifest that says so: it was written that way."""
    place = tmp_path / "runs" / "x" / "checkpoints" / checkpoint.name
    shutil.copytree(str(checkpoint), str(place))
    path = place / name
    if name.endswith(".json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    else:
        save_file(change(load_file(str(path))), str(path))
    (place / NAME).unlink()
    write_manifest(place, {})
    return place


def resumed(checkpoint):
    from minigpt.checkpoint.resume import load_optimizer, load_state
    from minigpt.optim.adamw import AdamW

    state, model = load_state(checkpoint), load_model(checkpoint)
    load_optimizer(checkpoint, model, AdamW(model.parameters()), state.step)
    return state


def test_what_was_written_is_believed(runs):
    assert resumed(runs["run"]).step == 2


@pytest.mark.parametrize("case", STATES)
def test_a_state(runs, tmp_path, case):
    with pytest.raises(CheckpointError, match="state"):
        resumed(damaged(runs["run"], tmp_path, "state.json", STATES[case]))


@pytest.mark.parametrize("case", MOMENTS)
def test_the_moments(runs, tmp_path, case):
    with pytest.raises(CheckpointError, match="optimizer"):
        resumed(damaged(runs["run"], tmp_path, "optimizer.safetensors", MOMENTS[case]))


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter(runs, tmp_path, case):
    with pytest.raises(CheckpointError, match="adapter"):
        load_model(damaged(runs["adapter"], tmp_path, "adapter.json", ADAPTERS[case]))


def test_weights_that_are_not_the_models(runs, tmp_path):
    def more(tensors):
        return {**tensors, "x": torch.zeros(2, dtype=torch.int32)}

    with pytest.raises(CheckpointError, match="tensor x does not belong"):
        load_model(damaged(runs["run"], tmp_path, "model.safetensors", more))


def test_weights_of_several_widths_are_read_as_the_widest(runs, tmp_path):
    def mixed(tensors):
        return {**tensors, UP: tensors[UP].half()}

    model = load_model(damaged(runs["run"], tmp_path, "model.safetensors", mixed))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model(torch.zeros(1, 3, dtype=torch.long))


def test_a_model_of_no_width_inside(runs, tmp_path):
    with pytest.raises(CheckpointError, match="inner is -1"):
        load_model(damaged(runs["run"], tmp_path, "config.json", {"n_inner": -1}))
