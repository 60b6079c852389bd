"""What a run shows while it goes on: on a terminal, in a file, and how long it will take."""

import io
import json
import re
import sys

import pytest

from minigpt.training import metrics
from minigpt.training.metrics import Reporter, read_metrics
from minigpt.training.validation import Validation


class Screen(io.StringIO):
    """A stream that says it is a terminal, or not."""

    encoding = "utf-8"

    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.fixture()
def clock(monkeypatch):
    """A clock that stands still; `clock[0] += 1.0` lets it go on."""
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture()
def screens(monkeypatch):
    def screens(out, err):
        for name, terminal in (("stdout", out), ("stderr", err)):
            monkeypatch.setattr(sys, name, Screen(terminal))
        return sys.stdout, sys.stderr

    return screens


def record(step, speed=100.0, padded=None):
    speeds = {"tokens_per_second": speed, "padded_tokens_per_second": padded or speed}
    return {"step": step, "loss": 2.0, "tokens": step, "step_seconds": 1e9, **speeds}


def run(path, clock, seconds, total=100, every=1):
    """Logs a step for each of `seconds`, after a warm-up of an hour."""
    reporter = Reporter(path, total, 0)
    clock[0] += 3600
    reporter.step()
    reporter.log({"step": 1, "loss": 3.0, "tokens": 1, "warmup_seconds": 3600.0})
    for number, second in enumerate(seconds, 2):
        clock[0] += second
        reporter.step()
        if number % every == 0:
            reporter.log(record(number))
    reporter.note("validation: well")
    reporter.close()


def etas(text):
    return re.findall(r"ETA (\S+(?: s)?)", text)


def test_a_file_gets_every_line_that_is_logged(tmp_path, clock, screens):
    """However fast they come; the bar is for a terminal."""
    out, err = screens(False, False)
    run(tmp_path, clock, [0.001] * 50)
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [f"{n}/100" for n in range(1, 52)]
    assert lines[-1] == "validation: well" and err.getvalue() == ""
    assert lines[0].endswith("loss 3.0000  warm-up 3600.0 s")


def test_a_file_gets_its_lines_also_when_the_bar_has_a_terminal(tmp_path, clock, screens):
    out, err = screens(False, True)
    run(tmp_path, clock, [1.0] * 20)
    assert len(out.getvalue().splitlines()) == 22 and "\r" not in out.getvalue()
    assert "ETA" in err.getvalue()


@pytest.mark.parametrize("name, value", [("NO_COLOR", "1"), ("NO_COLOR", ""), ("NONE", "")])
def test_a_terminal_has_one_bar_with_one_eta_and_no_colour(
    tmp_path, clock, screens, monkeypatch, name, value
):
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("TERM", "xterm-256color")
    out, err = screens(True, True)
    run(tmp_path, clock, [1.0] * 20)
    assert out.getvalue() == "validation: well\n"
    last = err.getvalue().split("\r")[-1]
    assert "21/100" in last and "ETA 1:19" in last and "<" not in last and "it/s" not in last
    assert "\x1b[3" not in err.getvalue()


def test_a_dumb_terminal_gets_lines(tmp_path, clock, screens, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out, err = screens(True, True)
    run(tmp_path, clock, [1.0] * 20)
    assert len(out.getvalue().splitlines()) == 22 and err.getvalue() == ""


def test_the_time_left_counts_pauses_and_not_the_warm_up(tmp_path, clock, screens):
    """Steps of a second, and after every fifth a validation of five: two seconds a step."""
    out, _ = screens(False, False)
    run(tmp_path, clock, ([1.0] * 4 + [6.0]) * 40, total=1001)
    last = etas(out.getvalue())[-1]
    minutes, seconds = map(int, last.split(":"))
    assert 0.75 < (60 * minutes + seconds) / (800 * 2.0) < 1.25


def test_one_slow_step_does_not_upset_the_time_left(tmp_path, clock, screens):
    """A second a step for long, then ten seconds for one: 900 steps are not 9,000 seconds."""
    out, _ = screens(False, False)
    run(tmp_path, clock, [1.0] * 98 + [10.0], total=1000)
    minutes, seconds = map(int, etas(out.getvalue())[-1].split(":"))
    assert 900 < 60 * minutes + seconds < 2 * 900


def test_steps_that_become_slow_are_noticed_once(tmp_path, clock, screens):
    out, _ = screens(False, False)
    reporter = Reporter(tmp_path, 100, 0)
    for step, seconds in enumerate([0.1, 0.2, 0.9, 1.1, 1.2, 5.0], 1):
        reporter.log({**record(step), "step_seconds": seconds})
    reporter.close()
    (said,) = [line for line in out.getvalue().splitlines() if "times as long" in line]
    assert "OMP_WAIT_POLICY=PASSIVE python train.py --resume" in said


def test_a_resumed_run_counts_what_is_left(tmp_path, clock, screens):
    out, _ = screens(False, False)
    reporter = Reporter(tmp_path, 100, 50)
    reporter.log({"step": 51, "loss": 3.0, "tokens": 1, "warmup_seconds": 1.0})
    clock[0] += 9.0
    reporter.log(record(60))
    reporter.close()
    assert etas(out.getvalue()) == ["40 s"]


def test_padding_is_named_apart(tmp_path, clock, screens):
    out, _ = screens(False, False)
    reporter = Reporter(tmp_path, 100, 0)
    reporter.log({"step": 1, "loss": 3.0, "tokens": 1, "warmup_seconds": 1.0})
    reporter.log(record(2, 100.0, 250.0))
    reporter.close()
    assert "100 tokens/s (250 with padding)" in out.getvalue()


GOOD = [{"step": 1, "loss": 2.5}, {"step": 2, "val_loss": 3.0}]


@pytest.mark.parametrize(
    "line",
    [
        "", "{", "1", "[1]", "null", "[" * 100_000, '{"loss": 2.0}', '{"step": "3", "loss": 1}',
        '{"step": 3, "loss": "x"}', '{"step": 3, "loss": NaN}', '{"step": 3, "loss": null}',
        '{"step": 1.5, "loss": 1}', "\ud83d", '{"step": 3, "loss": 1e999}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_record_is_left_out_alone(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(GOOD[0]), line, json.dumps(GOOD[1]), '{"step": 3, "lo']
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    assert read_metrics(path) == GOOD


@pytest.mark.parametrize(
    "loss, shown",
    [
        (0.0, "1.00"),
        (10.14311, "25415.39"),
        (13.9, "1.1e+06"),
        (50.0, "5.2e+21"),
        (800.0, "1.0e+304"),
    ],
)
def test_a_perplexity_is_written_out_unless_it_is_beyond_measure(loss, shown):
    assert f"perplexity {shown}  bits" in Validation(loss * 10, 10, 40).text()


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done in (0, 3):
        reporter = Reporter(tmp_path, 9, done, tensorboard=True)
        for step in range(done + 1, 6):
            reporter.log({**record(step), "loss": float(done)})
        reporter.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [
        (1, 0.0), (2, 0.0), (3, 0.0), (4, 3.0), (5, 3.0),
    ]  # fmt: skip
