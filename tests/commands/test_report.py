"""`python -m minigpt report`: one run, several side by side, or the list of all."""

import json
import os

import pytest

from minigpt.base.errors import DataError
from minigpt.commands.cli import parse
from minigpt.commands.report import ReportConfig, report_command


def run_of(path, best, settings, speed=100.0):
    """A run of 20 steps as metrics.jsonl has it: a warm-up of 5 s, then half a second a step."""
    path.mkdir(parents=True)
    speeds = {"tokens_per_second": speed, "step_seconds": 0.5}
    records = [
        {"step": 1, "loss": 4.0, "tokens": 50, "warmup_seconds": 5.0},
        {"step": 10, "loss": 3.0, "tokens": 500, **speeds},
        {"step": 10, "val_loss": best + 0.5, "val_bits_per_byte": 2.0},
        {"step": 20, "loss": 2.0, "tokens": 1000, **speeds},
        {"step": 20, "val_loss": best, "val_bits_per_byte": 1.5},
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    (path / "config.toml").write_text(settings)
    return path


@pytest.fixture()
def runs(tmp_path):
    common = 'data = "stdlib"\nseed = 0\n'
    first = run_of(tmp_path / "runs" / "가 b", 2.25, common + "lr = 0.001\n")
    second = run_of(tmp_path / "runs" / "other", 2.5, common + 'lr = 3e-5\ninit = "x y"\n', 250.0)
    os.utime(str(first / "metrics.jsonl"), (1, 1))
    return first, second


def report(capsys, *words):
    report_command(parse(ReportConfig, "minigpt report", [*map(str, words)]))
    return capsys.readouterr().out.splitlines()


def rows(lines):
    return {line.split()[0]: line.split()[1:] for line in lines}


def test_one_run_in_a_few_lines(runs, capsys):
    assert report(capsys, runs[0])[:5] == [
        "steps    20, 1,000 tokens",
        "loss     4.0000 at first, 2.0000 at last",
        "speed    100 tokens/s (median)",
        "best     validation loss 2.2500, 1.500 bits per byte, at 20",
        "time     14 s, validation and saving left out",
    ]


def test_several_runs_have_a_table_of_what_differs_and_one_picture(runs, capsys):
    lines = report(capsys, *runs)
    found = rows(lines[1:])
    assert found["lr"] == ["0.001", "3e-05"] and found["init"] == ["-", "x", "y"]
    assert "data" not in found and "seed" not in found
    assert found["best"][:2] == ["loss", "2.2500,"] and "2.5000," in found["best"]
    assert found["speed"] == ["100", "tokens/s", "250", "tokens/s"]
    assert found["time"] == ["14", "s", "14", "s"]
    assert all(str(run) in lines[0] for run in runs)
    if "not shown" not in lines[-1] and "pip install" not in lines[-1]:
        assert (runs[0] / "compared.png").read_bytes().startswith(b"\x89PNG")
        assert not (runs[1] / "compared.png").exists()


def test_settings_of_another_version_are_left_out(runs, capsys):
    (runs[1] / "config.toml").write_text("no_such_setting = 3\n")
    assert rows(report(capsys, *runs)[1:])["lr"] == ["0.001", "-"]


def test_a_directory_of_runs_is_listed_the_latest_last(runs, capsys, monkeypatch):
    (runs[0].parent / "no run").mkdir()
    (runs[0].parent / "empty").mkdir()
    (runs[0].parent / "empty" / "metrics.jsonl").write_text("")
    lines = report(capsys, runs[0].parent)
    assert [line.split()[0] for line in lines] == ["run", "가", "other", "empty"]
    assert lines[0].split()[1:3] == ["last", "step"] and "250 tokens/s" in lines[2]
    monkeypatch.chdir(runs[0].parent.parent)
    assert report(capsys) == lines


@pytest.mark.parametrize("name", ["none", "no\0name", "x" * 300, "runs/empty"])
def test_what_is_no_run_is_a_sentence(runs, capsys, monkeypatch, name):
    monkeypatch.chdir(runs[0].parent.parent)
    (runs[0].parent / "empty").mkdir()
    with pytest.raises(DataError, match="has no metrics"):
        report(capsys, name)
    with pytest.raises(DataError, match="has no metrics"):
        report(capsys, runs[0], name)


def test_a_run_without_a_step_is_a_sentence(runs, capsys):
    (runs[0] / "metrics.jsonl").write_text('{"step": 1, "val_loss": 3.0}\n')
    with pytest.raises(DataError, match="no logged step yet"):
        report(capsys, runs[0])
