"""A run that is done and saved ends well, whatever its closing report cannot show."""

import shutil

import pytest

from minigpt.training import closing
from tests.helpers.runs import corpus, train
from tests.helpers.tuning import run_to_the_end, trainer_of


def test_a_run_inside_of_its_own_data(tmp_path):
    done = train(tmp_path, "--steps", 2, "--out", corpus(tmp_path / "corpus") / "run")
    assert "gzip, xz not shown: " in done.stdout and "saved    " in done.stdout


@pytest.mark.parametrize("part", ["_yardsticks", "_sample", "plot"])
def test_what_breaks_is_one_line(tmp_path, monkeypatch, part):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = corpus(tmp_path / "corpus")
    run = trainer_of(
        data=str(data), out=str(tmp_path / "r"), steps=1, batch_size=2, block_size=8, eval_tokens=64
    )
    run_to_the_end(run)

    def broken(*_):
        raise ValueError("first line\nsecond line")

    monkeypatch.setattr(closing, part, broken)
    report = closing.closing_report(run)
    assert "not shown: first line\n" in report and "second" not in report
    assert "saved    " in report and "next     " in report


def test_data_that_went_away(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = corpus(tmp_path / "corpus")
    run = trainer_of(
        data=str(data), out=str(tmp_path / "r"), steps=1, batch_size=2, block_size=8, eval_tokens=64
    )
    run_to_the_end(run)
    shutil.rmtree(str(data))
    assert "gzip, xz not shown: there is no " in closing.closing_report(run)
