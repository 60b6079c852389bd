"""Processes that tokenize: in order, and an error at once when one of them is gone."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from minigpt.base.errors import DataError
from minigpt.data.shards import Shard
from minigpt.data.tokenizer import load_tokenizer, no_panic
from minigpt.data.workers import WorkerLost, in_order

ROOT = Path(__file__).resolve().parents[2]


def slow_square(number):
    time.sleep(0.05 if number % 3 == 0 else 0)
    return number * number


def killed_at(number, place):
    if number == place:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def panics(number):
    with no_panic("number %d" % number):
        load_tokenizer("gpt2")._encoding.encode_ordinary(" " * 1_000_000)


def defective(number):
    return 1 / number


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order(workers):
    batches = [[n, n + 1] for n in range(0, 30, 2)]
    found = list(in_order(batches, slow_square, workers))
    assert found == [(n, n * n) for n in range(30)]


def test_no_work_at_all():
    assert list(in_order([], slow_square, 2)) == []


@pytest.mark.parametrize("place", [0, 5, 19])
def test_a_killed_process_is_an_error(place):
    batches = [[n] for n in range(20)]
    with pytest.raises(WorkerLost, match="killed by signal 9, perhaps for lack of memory"):
        list(in_order(batches, partial(killed_at, place=place), 2))


def test_a_panic_is_a_sentence_and_a_defect_keeps_its_traceback(capfd):
    with pytest.raises(DataError, match="tiktoken gives up on number 7"):
        list(in_order([[7]], panics, 1))
    with pytest.raises(WorkerLost, match="ended with exit code 1"):
        list(in_order([[0]], defective, 1))
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_no_more_is_read_than_is_under_way():
    read = []

    def batches():
        for number in range(12):
            read.append(number)
            yield [number]

    for number, _ in in_order(batches(), slow_square, 2):
        assert len(read) <= number + 4


# Of the rest, real commands with real processes.


def prepare(source, out, *more):
    """The command as it is typed, with the threshold below which it needs no processes at 0."""
    code = (
        "import sys; from minigpt.data import prepare; prepare._WORTH_PROCESSES = 0\n"
        "from minigpt.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "prepare", str(source), "--out", str(out), *more]
    return subprocess.Popen(
        command, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def children(process):
    """The processes that tokenize, of one that has started them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
            words = (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if parent == str(process.pid) and "spawn_main" in words:
            found.append(int(path.parent.name))
    return found


def under_way(process, out):
    """Waits until something is written; returns its processes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(path.stat().st_size for path in out.parent.glob(".o*.partial/*.tokens")):
            return children(process)
        time.sleep(0.01)
    raise AssertionError(process.communicate())


@pytest.fixture()
def big(tmp_path):
    path = tmp_path / "big.txt"
    path.write_text("".join("value_%d = %d\n" % (i, i) for i in range(1_000_000)))
    return path


linux = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no /proc")


def gone(pid):
    """Whether a process has ended, or does within a few seconds; a zombie has."""
    for _ in range(100):
        try:
            if Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


@linux
def test_kill_9_of_a_process_is_one_sentence_and_leaves_nothing(tmp_path, big):
    process = prepare(big, tmp_path / "o", "--workers", "2")
    pids = under_way(process, tmp_path / "o")
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == ""
    assert err == (
        "error: %s: a process that tokenizes was killed by signal 9, perhaps for lack of memory;"
        " use --workers 1\n" % big
    )
    assert sorted(tmp_path.iterdir()) == [big] and all(map(gone, pids))


@linux
def test_ctrl_c_ends_at_once(tmp_path, big):
    process = prepare(big, tmp_path / "o", "--workers", "2")
    pids = under_way(process, tmp_path / "o")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    started = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert (process.returncode, err) == (130, "\nstopped\n")
    assert sorted(tmp_path.iterdir()) == [big] and all(map(gone, pids))


@linux
def test_kill_9_of_the_command_ends_its_processes(tmp_path, big):
    process = prepare(big, tmp_path / "o", "--workers", "2")
    pids = under_way(process, tmp_path / "o")
    process.kill()
    process.communicate()
    assert all(map(gone, pids))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_million_blanks_are_prepared(tmp_path, workers):
    """Which is what tiktoken panics on; and long runs of blank lines and letters, whose time is not
    to be the square of their length.
    """
    runs = [" " * 1_000_000, " \n" * 100_000, "x" * 200_000]
    text = "one two\n" * 40_000 + "".join(run + "word\nthree four\n" * 20_000 for run in runs)
    (tmp_path / "text.txt").write_text(text)
    process = prepare(tmp_path / "text.txt", tmp_path / "o", "--workers", str(workers))
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    tokenizer, ids = load_tokenizer("gpt2"), []
    for split in ("train", "validation"):
        ids.append(Shard(tmp_path / "o" / ("%s-00000.tokens" % split)).tokens)
    ids = [token for token in np.concatenate(ids).tolist() if token != tokenizer.eos_id]
    assert tokenizer.decode(ids) == text
