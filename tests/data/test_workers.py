"""Threads that tokenize: in order, no further ahead than they are many, and stopped at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minigpt.base.errors import DataError
from minigpt.data.prepare import in_order
from minigpt.data.shards import Shard
from minigpt.data.tokenizer import load_tokenizer, no_panic

ROOT = Path(__file__).resolve().parents[2]


def slow_squares(numbers):
    time.sleep(0.05 if numbers[0] % 3 == 0 else 0)
    return [number * number for number in numbers]


def panics(numbers):
    with no_panic("number %d" % numbers[0]):
        load_tokenizer("gpt2")._encoding.encode_ordinary(" " * 1_000_000)


def defective(numbers):
    return [1 / number for number in numbers]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order(workers):
    batches = [[n, n + 1] for n in range(0, 30, 2)]
    found = list(in_order(batches, slow_squares, workers))
    assert found == [(n, n * n) for n in range(30)]


def test_no_work_at_all():
    assert list(in_order([], slow_squares, 2)) == []


def test_a_panic_is_a_sentence_and_a_defect_keeps_its_traceback():
    with pytest.raises(DataError, match="tiktoken gives up on number 7"):
        list(in_order([[7]], panics, 1))
    with pytest.raises(ZeroDivisionError) as caught:
        list(in_order([[0]], defective, 1))
    assert caught.traceback[-1].name in ("defective", "<listcomp>")


def test_no_more_is_read_than_is_under_way():
    read = []

    def batches():
        for number in range(12):
            read.append(number)
            yield [number]

    for number, _ in in_order(batches(), slow_squares, 2):
        assert len(read) <= number + 4


def test_an_end_before_the_end_waits_for_no_more_than_is_begun():
    done = []
    pairs = in_order(([n] for n in range(100)), lambda batch: done.append(batch) or batch, 2)
    next(pairs)
    pairs.close()
    assert len(done) <= 4


# Of the rest, real commands.


def prepare(source, out, *more):
    """The command as it is typed."""
    command = [sys.executable, "-m", "minigpt", "prepare", str(source), "--out", str(out), *more]
    return subprocess.Popen(
        command, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def under_way(process, out):
    """Waits until something is written."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(path.stat().st_size for path in out.parent.glob(".o*.partial/*.tokens")):
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate())


@pytest.fixture()
def big(tmp_path):
    path = tmp_path / "big.txt"
    path.write_text("".join("value_%d = %d\n" % (i, i) for i in range(3_000_000)))
    return path


@pytest.mark.skipif(os.name == "nt", reason="no process groups")
def test_ctrl_c_ends_at_once(tmp_path, big):
    process = prepare(big, tmp_path / "o", "--workers", "2")
    under_way(process, tmp_path / "o")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    started = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert (process.returncode, err) == (130, "\nstopped\n")
    assert sorted(tmp_path.iterdir()) == [big]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("run", [" ", " \n", "x"], ids=["blanks", "blank lines", "letters"])
def test_a_million_blanks_are_prepared(tmp_path, workers, run):
    text = "one two\n" * 40_000 + run * 1_000_000 + "word\n" + "three four\n" * 40_000
    (tmp_path / "text.txt").write_text(text)
    process = prepare(tmp_path / "text.txt", tmp_path / "o", "--workers", str(workers))
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    tokenizer, ids = load_tokenizer("gpt2"), []
    for split in ("train", "validation"):
        ids.append(Shard(tmp_path / "o" / ("%s-00000.tokens" % split)).tokens)
    ids = [token for token in np.concatenate(ids).tolist() if token != tokenizer.eos_id]
    assert tokenizer.decode(ids) == text
