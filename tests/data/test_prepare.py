"""Token shards: what is written is what is mapped, by any number of processes, whole or not at
all.
"""

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minigpt.base.errors import DataError, UsageError
from minigpt.commands.prepare import PrepareConfig, prepare, prepare_command
from minigpt.data import prepare as prepare_module
from minigpt.data.datasets import open_datasets
from minigpt.data.prepare import cached, work_of
from minigpt.data.shards import Encoded, Shard, SplitWriter, open_shards
from minigpt.data.tokenizer import BytesTokenizer, load_tokenizer
from tests.helpers.runs import train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture()
def corpus(tmp_path):
    """This project's own modules, and some JSON lines."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    for path in (ROOT / "minigpt" / "data").glob("*.py"):
        (directory / path.name).write_text(path.read_text())
    records = [{"text": "record %d é" % number} for number in range(300)]
    (directory / "z.jsonl").write_text("\n".join(map(json.dumps, records)))
    return directory


def run(corpus, out, **settings):
    return prepare(PrepareConfig(source=str(corpus), out=str(out), **settings))


def documents(directory, split, tokenizer):
    """The texts in the shards of a split."""
    content = json.loads((directory / "dataset.json").read_text())["splits"][split]
    found = []
    for name in content["shards"]:
        shard = Shard(directory / name)
        ends = [*shard.starts[1:].tolist(), len(shard.tokens)]
        for start, end in zip(shard.starts.tolist(), ends):
            assert shard.tokens[end - 1] == tokenizer.eos_id
            found.append(tokenizer.decode(shard.tokens[start : end - 1].tolist()))
    assert len(found) == content["documents"]
    return found


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_every_document_comes_back(corpus, tmp_path, name):
    out = run(corpus, tmp_path / "out", tokenizer=name)
    tokenizer = load_tokenizer(out)
    found = [t for split in ("train", "validation") for t in documents(out, split, tokenizer)]
    expected = [p.read_text() for p in corpus.glob("*.py")]
    expected += ["record %d é" % number for number in range(300)]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_the_command_that_it_prints_is_right(corpus, tmp_path, capsys, name):
    """In a place with a blank; for a model of the same vocabulary."""
    out = str(tmp_path / "a place")
    prepare_command(PrepareConfig(source=str(corpus), out=out, tokenizer=name, workers=1))
    words = shlex.split(capsys.readouterr().out.rpartition("python ")[2])
    done = train(tmp_path, *words[1:], "--dry-run")
    assert f"; {name} tokenizer" in done.stdout


def test_any_number_of_processes_writes_the_same_bytes(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_WORTH_PROCESSES", 0)
    monkeypatch.setattr(prepare_module, "_BATCH", 2000)
    outs = [run(corpus, tmp_path / str(n), workers=n, shard_tokens=1500) for n in (1, 2)]
    names = sorted(path.name for path in outs[0].iterdir())
    assert len([name for name in names if name.startswith("train-")]) > 2
    for name in names:
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name


def test_where_the_cores_of_a_process_are_not_told(corpus, tmp_path, monkeypatch):
    """macOS and Windows have no sched_getaffinity."""
    monkeypatch.setattr(prepare_module, "_WORTH_PROCESSES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert (run(corpus, tmp_path / "out", tokenizer="bytes") / "dataset.json").is_file()


def test_the_counts_are_true(corpus, tmp_path):
    out = run(corpus, tmp_path / "out", tokenizer="bytes", shard_tokens=5000)
    for content in json.loads((out / "dataset.json").read_text())["splits"].values():
        shards = [Shard(out / name) for name in content["shards"]]
        assert sum(len(shard.tokens) for shard in shards) == content["tokens"]
        assert content["tokens"] == content["bytes"] + content["documents"]


@pytest.mark.parametrize("line", ["{", '{"prompt": "x"}'])
def test_a_broken_record_leaves_nothing_half_made(corpus, tmp_path, line):
    with (corpus / "z.jsonl").open("a") as file:
        file.write("\n" + line)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"z\.jsonl:301"):
        run(corpus, tmp_path / "out", strict=True)
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_directory_is_not_overwritten(corpus, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        run(corpus, tmp_path / "out")


@pytest.mark.parametrize("name", ["none.txt", "none.jsonl", "nothing"])
def test_a_source_that_is_not_there_is_named_before_any_vocabulary(tmp_path, monkeypatch, name):
    monkeypatch.setattr(
        "minigpt.commands.prepare.load_tokenizer", lambda _: pytest.fail("asked for")
    )
    with pytest.raises(DataError, match="there is no .*%s; name a file" % name):
        prepare(PrepareConfig(source=str(tmp_path / name), out=str(tmp_path / "out")))


def test_wrong_numbers_are_refused(corpus, tmp_path):
    for settings in ({"validation": 0.0}, {"validation": 1.0}, {"shard_tokens": 0}):
        with pytest.raises(UsageError):
            run(corpus, tmp_path / "out", **settings)


def test_kill_9_leaves_nothing_that_looks_finished(tmp_path):
    big = tmp_path / "big.txt"
    big.write_text("".join("value_%d = %d\n" % (i, i) for i in range(400_000)))
    command = [sys.executable, "-m", "minigpt", "prepare", str(big), "--out", str(tmp_path / "o")]
    process = subprocess.Popen(command, cwd=str(ROOT), stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".o.*.partial/*.tokens")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "o").exists()
    run(big, tmp_path / "o", tokenizer="bytes")  # and the leftover is no obstacle
    assert not list(tmp_path.glob(".o*"))


def test_the_cache_is_used_again_until_a_file_changes(corpus, tmp_path, monkeypatch):
    def prepared(names, tokenizer):
        return cached(work_of(names, tokenizer), tokenizer)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = prepared(str(corpus), BytesTokenizer())
    stamp = (first / "dataset.json").stat().st_mtime_ns
    assert prepared(str(corpus), BytesTokenizer()) == first
    assert (first / "dataset.json").stat().st_mtime_ns == stamp
    (corpus / "cli.py").write_text("x = 1\n")
    assert prepared(str(corpus), BytesTokenizer()) != first


PREPARES = """
import sys
from minigpt.data.prepare import cached, work_of
from minigpt.data.tokenizer import BytesTokenizer
print(cached(work_of(sys.argv[1], BytesTokenizer()), BytesTokenizer()))
"""


def test_two_jobs_may_begin_with_the_same_text(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "big.txt").write_text("".join("value_%d = %d\n" % (i, i) for i in range(50_000)))
    line = [sys.executable, "-c", PREPARES, str(tmp_path / "big.txt")]
    jobs = [subprocess.Popen(line, cwd=str(ROOT), stdout=subprocess.PIPE) for _ in range(3)]
    said = {job.communicate()[0] for job in jobs}
    assert [job.returncode for job in jobs] == [0, 0, 0] and len(said) == 1
    [made] = (tmp_path / "cache" / "minigpt" / "data").iterdir()
    assert (made / "dataset.json").is_file()


def shard(path, tokens=(1, 2, 3, 4), width=2):
    writer = SplitWriter(path.parent, path.name, "ab" * 32, width, 100)
    writer.write(Encoded(np.array(tokens[:2])), 2)
    writer.write(Encoded(np.array(tokens[2:])), 2)
    [name] = writer.close()["shards"]
    return path.with_name(name)


@pytest.mark.parametrize("width, tokens", [(2, (1, 65535, 3, 4)), (4, (1, 70000, 3, 4))])
def test_a_shard_says_what_it_is(tmp_path, width, tokens):
    read = Shard(shard(tmp_path / "x", tokens, width))
    assert read.tokens.tolist() == list(tokens)
    assert read.starts.tolist() == [0, 2]
    assert read.tokenizer == "ab" * 32
    assert isinstance(read.tokens, np.memmap)
    assert not len(read.turns) and not len(read.draws)


def test_a_shard_of_text_is_what_it_always_was(tmp_path):
    numbers = [
        (1, 4),
        (2, 4),
        (4, 8),
        (0, 8),
        (2, 8),
    ]  # version, width, tokens, turns, documents
    header = b"minigpt\0" + b"".join(n.to_bytes(size, "little") for n, size in numbers)
    index = b"".join(n.to_bytes(8, "little") for n in (0, 2))
    expected = header + b"\xab" * 32 + bytes([1, 0, 2, 0, 3, 0, 4, 0]) + index
    assert shard(tmp_path / "x").read_bytes() == expected


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda data: b"", "is no token shard"),
        (lambda data: b"PK" + data[2:], "is no token shard"),
        (lambda data: data[:30], "is no token shard"),
        (lambda data: data[:8] + b"\x09" + data[9:], "of version 9"),
        (lambda data: data[:8] + b"\x02" + data[9:], "is cut short"),
        (lambda data: data[:-1], "is cut short"),
        (lambda data: data + b"x", "has bytes behind its end"),
        (None, "is no token shard"),
    ],
)
def test_a_damaged_shard_is_named_with_the_command_that_makes_it(tmp_path, damage, words):
    path = tmp_path / "x.tokens"
    if damage:
        path.write_bytes(damage(shard(path).read_bytes()))
    with pytest.raises(DataError) as caught:
        Shard(path)
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert "python -m minigpt prepare" in caught.value.fix


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc")
def test_memory_does_not_grow_with_the_source(tmp_path):
    """30 MB of one text, in one process: far less than the text is ever held."""
    big = tmp_path / "big.txt"
    line = "value = [%d for number in range(%d)]\n"
    with big.open("w") as file:
        for block in range(300):
            file.write("".join(line % (i, block) for i in range(2600)))
    assert big.stat().st_size > 25_000_000
    code = (
        "import resource, sys; from minigpt.commands.prepare import *\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "load_tokenizer('bytes'); before = peak()\n"
        "prepare(PrepareConfig(source=sys.argv[1], out=sys.argv[2], tokenizer='bytes'))\n"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(big), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=str(ROOT), check=True)
    assert int(done.stdout) < 25


def test_a_hundred_gigabytes_are_opened_and_not_read(tmp_path):
    """Sparse files: what is read of them counts as pages that the process has asked for."""
    count, names = 5 * 10**9, []
    for number in range(10):
        path = shard(tmp_path / ("large%d" % number))
        names.append(path.name)
        with path.open("r+b") as file:
            header = bytearray(file.read(72))
            header[16:24] = count.to_bytes(8, "little")
            file.seek(0)
            file.write(header)
            file.truncate(72)
            file.truncate(72 + 2 * count + 8 * 2)  # zeros, on no disk
    split = {"shards": names, "tokens": 10 * count, "sha256": "0" * 64}
    before = resource.getrusage(resource.RUSAGE_SELF)
    opened = open_shards(tmp_path, split, 257)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert sum(one.tokens.nbytes for one in opened) == 100 * 10**9
    assert after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt < 10_000
    with pytest.raises(DataError, match="has not as many tokens as were written"):
        open_shards(tmp_path, {**split, "tokens": 10 * count - 1}, 257)
    with (tmp_path / names[3]).open("r+b") as file:
        file.seek(72)
        file.write(b"\xff\xff")
    with pytest.raises(DataError, match="has ids from 257 on"):
        open_shards(tmp_path, split, 257)


def test_damage_in_text_too_large_to_be_read_whole_is_named_when_it_is_met(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("a line of text\n" * 3000)
    config = PrepareConfig(source=str(tmp_path / "text.txt"), out=str(tmp_path / "out"))
    config.tokenizer = "bytes"
    out = prepare(config)
    monkeypatch.setattr("minigpt.data.shards._READ_WHOLE", 1000)
    (path,) = out.glob("train-*.tokens")
    data = bytearray(path.read_bytes())
    data[40_000:40_100] = b"\xff" * 100
    path.write_bytes(data)
    dataset = open_datasets(str(out), load_tokenizer("bytes"), 50).train
    with pytest.raises(DataError, match="the text is damaged: it has ids from 257 on; make it"):
        dataset.batch(np.arange(len(dataset)))
