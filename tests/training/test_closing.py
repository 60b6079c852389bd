"""A run that is done and saved ends well, whatever its closing report cannot show."""

import shutil

import pytest

from minigpt.training import closing
from minigpt.training.closing import plot
from minigpt.training.history import History
from tests.helpers.runs import corpus, train
from tests.helpers.tuning import run_to_the_end, trainer_of


def test_a_run_inside_of_its_own_data(tmp_path):
    done = train(tmp_path, "--steps", 2, "--out", corpus(tmp_path / "corpus") / "run")
    assert "gzip -9  " in done.stdout and "saved    " in done.stdout  # what it wrote is no data


@pytest.mark.parametrize("part", ["_yardsticks", "_sample", "plot"])
def test_what_breaks_is_one_line(tmp_path, monkeypatch, part):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = corpus(tmp_path / "corpus")
    run = trainer_of(
        data=str(data), out=str(tmp_path / "a run"), steps=1, batch_size=2, block_size=8,
        eval_tokens=64,
    )  # fmt: skip
    run_to_the_end(run)

    def broken(*_):
        raise ValueError("first line\nsecond line")

    monkeypatch.setattr(closing, part, broken)
    report = closing.closing_report(run)
    assert "not shown: first line\n" in report and "second" not in report
    assert "saved    " in report and f"--checkpoint '{run.run}' --prompt" in report


def test_data_that_went_away(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = corpus(tmp_path / "corpus")
    run = trainer_of(
        data=str(data), out=str(tmp_path / "r"), steps=1, batch_size=2, block_size=8, eval_tokens=64
    )
    run_to_the_end(run)
    shutil.rmtree(str(data))
    assert "gzip, xz not shown: there is no " in closing.closing_report(run)


def test_no_sample_where_none_was_asked_for(tmp_path):
    done = train(tmp_path, "--steps", 2, "--sample-every", 0, "--out", tmp_path / "run")
    assert "\nsample" not in done.stdout and not (tmp_path / "run" / "samples.md").exists()
    assert "next     python -m minigpt generate" in done.stdout


def test_a_sample_is_cut_into_lines_that_a_screen_has(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = trainer_of(
        data=str(corpus(tmp_path / "corpus")), out=str(tmp_path / "r"), steps=1, batch_size=2,
        block_size=8, eval_tokens=64, sample_prompt="값 = ",
    )  # fmt: skip
    run_to_the_end(run)
    monkeypatch.setattr(run, "sample", lambda *_: "a" * 2000 + "\n\n    return \x1b[2J b")
    report = closing.closing_report(run)
    assert max(map(len, report.split("sample\n")[1].split("saved")[0].splitlines())) <= 96
    assert "\n        return \\x1b[2J b\n" in report
    assert "--prompt '값 = '\n" in report + "\n"


@pytest.mark.parametrize(
    "text, begun", [("한국어로 쓴 글입니다. ", "한국어로"), ("x = 1\ndef f(): pass\n", "def ")]
)
def test_samples_continue_a_text_in_its_own_language(tmp_path, monkeypatch, text, begun):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "t.txt").write_text(text * 2000, encoding="utf-8")
    flags = {"data": str(tmp_path / "t.txt"), "out": str(tmp_path / "r"), "batch_size": 2}
    run = trainer_of(**flags, steps=1, block_size=32, eval_tokens=64)
    prompt = run.tokenizer.decode(run.prompt).strip("\ufffd")
    assert prompt in text * 2 and (prompt == begun) == (begun == "def ")


def history(run, losses):
    run.mkdir(parents=True)
    lines = [f'{{"step": {n}, "loss": {v}, "val_loss": {v}}}\n' for n, v in enumerate(losses, 1)]
    (run / "metrics.jsonl").write_text("".join(lines))
    return run


@pytest.mark.parametrize("name", ["lr$x^$", "한글 실행", "a_b{", "模型"])
def test_a_picture_of_a_run_of_any_name(tmp_path, name, capfd, recwarn):
    pytest.importorskip("matplotlib")
    run, other = history(tmp_path / name, [3.0, 2.0]), history(tmp_path / "o" / name, [3.0, 1.0])
    assert plot([History(run)]) == [f"plot     {run / 'loss.png'}"]
    assert plot([History(run), History(other)]) == [f"plot     {run / 'compared.png'}"]
    assert (
        (run / "loss.png").read_bytes()[:4] == (run / "compared.png").read_bytes()[:4] == b"\x89PNG"
    )
    said = [str(one.message) for one in recwarn]
    assert capfd.readouterr().err == "" and not [one for one in said if "glyph" in one.lower()]
