"""N steps == k steps + stop + a new process + N - k steps, byte for byte: weights, optimizer,
state, losses.
"""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from tests.helpers.runs import command, environment, files, records, train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 20 steps that nothing interrupted."""
    path = tmp_path_factory.mktemp("whole")
    train(path, "--steps", 20, "--out", path / "run")
    return path / "run"


def assert_same(run, whole):
    last = "checkpoints/step_00000020"
    assert files(run / last) == files(whole / last)
    assert records(run) == records(whole)
    assert records(run, "val_loss") == records(whole, "val_loss")
    assert (run / "best").read_text() == (whole / "best").read_text()


def test_ten_steps_and_ten_more(tmp_path, whole):
    """A run that ended at step 10 (its schedule made for 20) goes on in a new process."""
    words = ("--steps", 20, "--out", tmp_path / "run", "--log-every", 1)
    process = start(tmp_path, *words, anew=True)
    wait_for(tmp_path / "run" / "checkpoints" / "step_00000010" / "manifest.json", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(tmp_path, "--resume", tmp_path / "run", anew=True)
    assert_same(tmp_path / "run", whole)


def start(tmp_path, *words, anew=False):
    return subprocess.Popen(
        command(tmp_path, *words, anew=anew),
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_says_where_and_resumes_exactly(tmp_path, whole, number, code):
    process = start(tmp_path, "--steps", 20, "--out", tmp_path / "run")
    while len(records(tmp_path / "run")) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(number)
    rest = process.stdout.read()
    assert process.wait() == code, process.stderr.read()
    if "stopped after step" in rest:  # else it came in the last moment of a run already done
        assert "--resume %s" % (tmp_path / "run") in rest
    train(tmp_path, "--resume", tmp_path / "run")
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path, whole):
    """Whatever moment it is killed at, the run resumes from a whole checkpoint to the same end."""
    moments = random.Random(7)
    words = ("--steps", 20, "--out", tmp_path / "run", "--save-every", 1)
    train(tmp_path, *words, "--dry-run")
    kills, wanted = 0, 200 if os.environ.get("MINIGPT_FAULTS") == "all" else 4
    process = start(tmp_path, *words)
    while kills < wanted:
        wait_for(tmp_path / "run" / "latest", process)
        time.sleep(moments.uniform(0.0, 0.2 if wanted == 4 else 3.0))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:  # it was done before
            assert_same(tmp_path / "run", whole)
            shutil.rmtree(str(tmp_path / "run"))
            process = start(tmp_path, *words)
        else:
            process = start(tmp_path, "--resume", tmp_path / "run")
    process.communicate()
    assert process.returncode == 0
    assert not list((tmp_path / "run").rglob(".*"))  # nor is a half left
    assert_same(tmp_path / "run", whole)


def test_resuming_with_other_data_is_refused(tmp_path):
    train(tmp_path, "--steps", 2, "--out", tmp_path / "run")
    done = train(tmp_path, "--resume", tmp_path / "run", "--steps", 4, "--seed", 6, code=2)
    assert "is not what" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_finished_run_says_so_and_goes_further_when_asked(tmp_path):
    train(tmp_path, "--steps", 2, "--out", tmp_path / "run")
    done = train(tmp_path, "--resume", tmp_path / "run")
    assert "saved    " in done.stdout and max(records(tmp_path / "run")) == 2
    done = train(tmp_path, "--resume", tmp_path / "run", "--lr", "1e-4", code=2)
    assert "has done all of its 2 steps" in done.stderr
    train(tmp_path, "--resume", tmp_path / "run", "--steps", 3)
    assert max(records(tmp_path / "run")) == 3
