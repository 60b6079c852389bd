"""A run has a directory of its own, and one process in it; what a dead one left is no obstacle."""

import os
import signal
import subprocess
import time

import pytest

from minigpt.base.errors import TrainingError, UsageError
from minigpt.training.claim import LOCK, claimed, require_startable
from tests.helpers.runs import command, environment, files, records, train


def test_a_name_that_is_taken_in_the_same_second_becomes_another(tmp_path):
    with claimed(tmp_path / "run", named=False) as one, claimed(tmp_path / "run", False) as two:
        (one / "a").touch()
        (two / "a").touch()
    assert one != two and one.exists() and two.exists()


def test_one_process_at_a_time_and_its_name_is_said(tmp_path):
    said = "in use by minigpt, process %d" % os.getpid()
    with claimed(tmp_path / "run", named=True), pytest.raises(TrainingError, match=said):
        claimed(tmp_path / "run", named=True).__enter__()
    with claimed(tmp_path / "run", named=True):
        pass


def test_nothing_is_left_of_what_came_to_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "run", named=True):
        raise ZeroDivisionError
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["notes.txt", "config.toml", "lock"])
def test_what_is_not_ours_is_not_begun_in(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(UsageError, match="not an empty directory"):
        require_startable(tmp_path / "run")
    (tmp_path / "run" / LOCK).write_text("minigpt, process 1")
    if name == "notes.txt":
        with pytest.raises(UsageError):
            require_startable(tmp_path / "run")


def started(tmp_path, *words, anew=True, **pipes):
    return subprocess.Popen(
        command(tmp_path, *words, anew=anew), env=environment(tmp_path), text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes},
    )  # fmt: skip


def until_it_steps(run, process):
    while not records(run):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


LONG = ("--steps", 100_000, "--save-every", 0, "--eval-every", 0)


def test_killed_before_its_first_checkpoint_a_run_can_begin_again(tmp_path):
    run = tmp_path / "run"
    process = started(tmp_path, *LONG, "--out", run)
    until_it_steps(run, process)
    done = train(tmp_path, *LONG, "--out", run, code=1)
    assert "in use by minigpt, process %d" % process.pid in done.stderr
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = train(tmp_path, "--resume", run, code=1)
    assert "start it again: python train.py --config" in done.stderr
    train(tmp_path, "--steps", 2, "--out", run)
    assert max(records(run)) == 2
    done = train(tmp_path, "--steps", 2, "--out", run, code=2)
    assert "--resume" in done.stderr


def test_a_terminal_that_is_closed_ends_the_run_saved(tmp_path):
    run = tmp_path / "run"
    # As from a terminal, whoever has started the tests: nohup's children would ignore it.
    listens = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)}
    process = started(tmp_path, *LONG, "--out", run, **listens)
    until_it_steps(run, process)
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    process.stderr.read()
    assert process.wait() == 129
    assert (run / (run / "latest").read_text().strip()).is_dir()


def test_what_nobody_reads_does_not_end_a_run(tmp_path):
    process = started(tmp_path, "--steps", 20, "--out", tmp_path / "run", anew=False)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read().strip() == "nobody can read the output any more; the run goes on"
    assert process.wait() == 0 and max(records(tmp_path / "run")) == 20
    with open("/dev/full", "w") as full:
        words = ("--steps", 20, "--out", tmp_path / "full")
        process = started(tmp_path, *words, anew=False, stdout=full)
        process.communicate()
    assert process.returncode == 0
    last = "checkpoints/step_00000020"
    assert files(tmp_path / "run" / last) == files(tmp_path / "full" / last)


NEW = {
    "--out": "other", "--config": "run/config.toml", "--model": "small", "--tokenizer": "gpt2",
    "--init": "gpt2", "--n-layer": "3",
}  # fmt: skip


def test_a_run_goes_on_as_the_run_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(tmp_path, "--steps", 2, "--out", "run")
    before = (tmp_path / "run" / "config.toml").read_bytes()
    for flag, value in NEW.items():
        done = train(tmp_path, "--resume", "run", "--steps", 4, flag, value, code=2)
        assert done.stderr.startswith(f"error: {flag} "), done.stderr
    assert (tmp_path / "run" / "config.toml").read_bytes() == before
    train(tmp_path, "--resume", "run", "--out", tmp_path / "run", "--model", "mini", "--steps", 3)
    assert max(records(tmp_path / "run")) == 3
    done = train(tmp_path, "--resume", "run/checkpoints/step_00000003", code=2)
    assert "say --resume run" in done.stderr
