"""Which checkpoint of a run is meant, and whose tokenizer."""

import pytest

import minigpt
from minigpt.__main__ import command
from minigpt.base.errors import MinigptError
from minigpt.checkpoint.run_files import BEST, LATEST, point, resolve, step_directory
from minigpt.data.tokenizer import BytesTokenizer
from tests.helpers.tuning import base


@pytest.fixture()
def run(tmp_path):
    """Steps 2, 4 and 6; the best is 2."""
    for step in (2, 4, 6):
        base(step_directory(tmp_path / "run", step), positions=8)
    point(tmp_path / "run", LATEST, step_directory(tmp_path / "run", 4))
    point(tmp_path / "run", BEST, step_directory(tmp_path / "run", 2))
    return tmp_path / "run"


def test_the_best_or_the_latest_or_the_last_that_is_whole(run):
    assert resolve(run).name == "step_00000002"
    assert resolve(run, (LATEST,)).name == "step_00000004"
    (run / BEST).unlink()
    assert resolve(run).name == "step_00000004"
    (run / LATEST).unlink()
    assert resolve(run).name == "step_00000006"
    (step_directory(run, 6) / "manifest.json").unlink()
    assert resolve(run).name == "step_00000004"


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe", b"a\0b", b"x" * 5000, b"checkpoints/step_00000099", b"/dev/zero"]
)
def test_a_pointer_to_nothing_is_none(run, text):
    (run / BEST).write_bytes(text)
    assert resolve(run).name == "step_00000004"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "nowhere"])
def test_a_name_no_file_can_have_is_a_sentence(name):
    for load in (minigpt.load_model, minigpt.load_tokenizer):
        with pytest.raises(MinigptError):
            load(name)


def test_the_tokenizer_of_anything(run, tmp_path):
    (tmp_path / "x.txt").write_text("x = 1\n" * 500)
    out = str(tmp_path / "prepared")
    command(["prepare", str(tmp_path / "x.txt"), "--out", out, "--tokenizer", str(run)])
    (step_directory(run, 6) / "manifest.json").unlink()
    for source in ("bytes", run, step_directory(run, 4), step_directory(run, 6), str(run), out):
        assert isinstance(minigpt.load_tokenizer(source), BytesTokenizer)
    assert minigpt.load_tokenizer("gpt2").vocab_size == 50257


def test_a_directory_called_as_a_tokenizer_is_meant_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    minigpt.load_tokenizer("gpt2").save(base(tmp_path / "bytes", positions=8))
    (tmp_path / "bytes" / "bytes_tokenizer.json").unlink()
    assert minigpt.load_tokenizer("bytes").name == "bytes"
    for source in (tmp_path / "bytes", "./bytes", (tmp_path / "bytes").relative_to(tmp_path)):
        assert minigpt.load_tokenizer(source).name == "gpt2"


def test_a_run_from_scratch_takes_the_vocabulary_of_another(run, tmp_path):
    (tmp_path / "x.txt").write_text("x = 1\n" * 500)
    words = ["train", "--data", str(tmp_path / "x.txt"), "--tokenizer", str(run), "--out"]
    small = ["--steps", "1", "--block-size", "8", "--batch-size", "2", "--sample-every", "0"]
    assert command([*words, str(tmp_path / "new"), *small]) == 0
    assert minigpt.load_model(tmp_path / "new").config.vocab_size == 257
