"""Every file of a checkpoint with a bit flipped, cut short or gone is named, and what to use."""

import shutil

import pytest

from minigpt import load_model
from minigpt.base.errors import MinigptError
from minigpt.checkpoint.run_files import BEST, LATEST, pointed
from minigpt.model.config import GPTConfig
from tests.helpers.tuning import base, instructions, resumed, run_to_the_end, trainer_of
from tests.helpers.vocabulary import small_vocabulary


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of records with a small GPT-2 vocabulary, so one that has every kind of file."""
    place = tmp_path_factory.mktemp("damage")
    base(place / "base", small_vocabulary(place / "words"), shape=GPTConfig(300, 256, 1, 1, 8))
    instructions(place / "functions.jsonl")
    return run_to_the_end(trainer_of(
        init=str(place / "base"), data=str(place / "functions.jsonl"), out=str(place / "run"),
        steps=2, eval_every=1, save_every=1, sample_every=0, batch_size=2, device="cpu", lr=1e-3,
    ))  # fmt: skip


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


FILES = (
    "config.json", "manifest.json", "merges.txt", "model.safetensors", "optimizer.safetensors",
    "state.json", "template.json", "vocab.json",
)  # fmt: skip


def test_that_is_all_there_is(run):
    assert sorted(path.name for path in pointed(run, LATEST).iterdir()) == sorted(FILES)


@pytest.mark.parametrize("change", [flipped, cut, lambda path: path.unlink()],
                         ids=["flipped", "cut", "gone"])  # fmt: skip
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_one_before_it(run, tmp_path, name, change):
    here = tmp_path / "runs" / "x"
    shutil.copytree(str(run), str(here))
    damaged = pointed(here, LATEST)
    before = here / "checkpoints" / "step_00000001"
    change(damaged / name)
    if name == "manifest.json" and change is not flipped and change is not cut:
        assert resumed(here).state.step == 1  # a directory without one was never finished
        return
    acts = [(resumed, here), (load_model, damaged)]
    if name == "optimizer.safetensors" and change is flipped:  # which nobody reads but who resumes
        load_model(damaged)
        acts.pop()
    for act, path in acts:
        with pytest.raises(MinigptError) as caught:
            act(path)
        said = str(caught.value)
        named = damaged if name == "manifest.json" else damaged / name  # or what it says of another
        assert str(named) in said and "\n" not in said
        assert str(before) in said and "train.py --resume %s" % here in said
    shutil.move(str(damaged), str(tmp_path / "away"))  # as the sentence says
    assert resumed(here).state.step == 1


@pytest.mark.parametrize(
    "text", ["", "checkpoints/step_0000000", "checkpoints/step_00000009\n", "\0"]
)
def test_a_damaged_pointer_is_not_followed(run, tmp_path, text):
    """The newest whole checkpoint is meant then, and the pointer is mended by the next save."""
    here = tmp_path / "run"
    shutil.copytree(str(run), str(here))
    for pointer in (LATEST, BEST):
        (here / pointer).write_text(text)
    assert resumed(here).state.step == 2
    assert load_model(here).config.n_layer == 1


def test_without_another_one_there_is_none_to_offer(run, tmp_path):
    shutil.copytree(str(pointed(run, LATEST)), str(tmp_path / "alone"))
    flipped(tmp_path / "alone" / "model.safetensors")
    with pytest.raises(MinigptError, match="use another"):
        load_model(tmp_path / "alone")
