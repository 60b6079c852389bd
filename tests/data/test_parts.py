"""Parts of a source, made by processes that know nothing of each other, are the undivided source:
the same tokens in the same order, none twice and none lost.
"""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from minigpt.base.errors import DataError, UsageError
from minigpt.commands.prepare import PrepareConfig, prepare
from minigpt.data import corpus as corpus_module
from minigpt.data.datasets import open_datasets
from minigpt.data.shards import Shard
from minigpt.data.tokenizer import load_tokenizer
from tests.helpers.warm import warm

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = load_tokenizer("bytes")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(corpus_module, "_PIECE", 500)  # so that small texts are cut, too
    monkeypatch.setattr(corpus_module, "_SMALL", 64)


def line(number):
    return "line %d of it, é and all\n" % number * (1 + number % 3)


def texts(directory):
    """Texts of all kinds and sizes: one without a letter, one that ends in what is no UTF-8, two
    that are the same, values in lines, lists and rows, some of which are left out.
    """
    directory.mkdir()
    (directory / "a.txt").write_text("".join(map(line, range(200))))
    (directory / "b.txt").write_text("")
    (directory / "c.py").write_text("x = 1\n" * 5)
    (directory / "d.py").write_text("x = 1\n" * 5)
    (directory / "e.txt").write_bytes(line(1).encode() * 60 + b"\xff\n" + b"after\n" * 90)
    (directory / "f.txt").write_bytes("\n".join(map(line, range(50))).encode("utf-16"))
    values = [json.dumps({"text": line(n), "more": n}) for n in range(150)]
    values[40:45] = ["{broken", '{"other": 1}', '{"text": 3}', "", '{"text": "<|endoftext|>"}']
    (directory / "g.jsonl").write_text("\n".join(values))
    (directory / "h.jsonl").write_bytes("\n".join(values[60:]).encode("utf-16"))
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import table

    columns = table({"text": [line(n) for n in range(130)], "n": [*range(130)]})
    parquet.write_table(columns, str(directory / "i.parquet"))
    (directory / "j.parquet").write_bytes(b"none")
    (directory / "z.txt").write_text("")
    return directory


def one_text(path):
    path.write_text("".join(map(line, range(300))))
    return path


def a_list(path):
    path.write_text(json.dumps([{"text": line(n)} for n in range(40)]))
    return path


def records(path):
    values = [{"instruction": "ask %d" % n, "output": line(n)} for n in range(60)]
    values.insert(20, {"instruction": "nothing"})
    path.write_text("\n".join(map(json.dumps, values)))
    return path


SOURCES = {
    "texts": lambda: texts(Path("texts")),
    "one text": lambda: one_text(Path("one.txt")),
    "a list": lambda: a_list(Path("list.json")),
    "records": lambda: records(Path("records.jsonl")),
}


def part(source, out, which, **settings):
    values = {"tokenizer": "bytes", **settings}
    return prepare(PrepareConfig(source=str(source), out=str(out), part=which, **values))


def content(directory):
    """Of each split its tokens (and of records where answers and draws are), and the counts."""
    facts = json.loads((Path(directory) / "dataset.json").read_text())
    found = {}
    for split, said in facts["splits"].items():
        shards = [Shard(Path(directory) / name) for name in said["shards"]]
        tokens = b"".join(shard.tokens.tobytes() for shard in shards)
        kept = [
            (one.turns.tolist(), one.drawn) for s in shards if len(s.draws) for one in s.records()
        ]
        sha = said["sha256"] if not kept else ""
        found[split] = tokens, kept, said["tokens"], said["documents"], said["bytes"], sha
    return found, {name: facts[name] for name in facts if name != "splits"}


@pytest.mark.parametrize("name", SOURCES)
def test_parts_in_any_order_are_the_undivided_source(name):
    source = SOURCES[name]()
    expected = content(prepare(PrepareConfig(source=str(source), out="whole", tokenizer="bytes")))
    for count in (2, 3, 16):
        numbers = random.Random(count).sample(range(1, count + 1), count)
        for number in numbers:
            assert not Path("parts%d/dataset.json" % count).exists()
            part(source, "parts%d" % count, "%d/%d" % (number, count))
        assert content("parts%d" % count) == expected
        opened = open_datasets("parts%d" % count, TOKENIZER, 64)
        whole = open_datasets("whole", TOKENIZER, 64)
        assert opened.held_out == whole.held_out
        assert [note.replace("parts%d" % count, "whole") for note in opened.notes] == whole.notes
        assert abs(len(opened.train) - len(whole.train)) <= count


def test_the_work_is_divided():
    """Each of four parts has about a quarter of the tokens: of one text, of lines, of files."""
    Path("many").mkdir()
    for number in range(40):
        Path("many/%02d.txt" % number).write_text(line(number) * 30)
    lines = [json.dumps({"text": line(n)}) for n in range(800)]
    Path("lines.jsonl").write_text("\n".join(lines))
    for source in (one_text(Path("one.txt")), Path("lines.jsonl"), Path("many")):
        shares = []
        for number in range(1, 5):
            out = part(source, source.stem + ".out", "%d/4" % number)
            said = json.loads((out / ("part-%05d-of-00004" % number) / "dataset.json").read_text())
            shares.append(sum(split["tokens"] for split in said["splits"].values()))
        assert max(shares) < 0.25 * sum(shares) * 1.15, (source, shares)


def command(*words):
    return warm("-m", "minigpt", "prepare", *words)


def ran(words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, capture_output=True, text=True, env=environment)


def test_killed_with_9_and_started_again_a_part_is_whole_and_once(tmp_path):
    Path("big.txt").write_text("".join("value_%d = %d\n" % (i, i) for i in range(500_000)))
    words = ["big.txt", "--tokenizer", "bytes", "--out", "o", "--part"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command(*words, "2/2"), stderr=subprocess.DEVNULL, start_new_session=True, env=environment
    )
    while not list(tmp_path.glob("o/.part-*.partial/*.tokens")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("o/part-*"))
    said = ran(command(*words, "1/2"))  # another one goes on beside what the killed one left
    assert "part 1/2 is ready in o; to come: 2 (" in said.stdout, said
    for _ in range(2):  # given again, nothing is made anew
        said = ran(command(*words, "2/2"))
        assert said.stdout.startswith("o is ready; train on it with: python train.py"), said
        before = [path.stat().st_mtime_ns for path in sorted(Path("o").glob("part-*/*"))]
    assert before == [path.stat().st_mtime_ns for path in sorted(Path("o").glob("part-*/*"))]
    assert not list(tmp_path.glob("o/.*"))
    assert ran(command(*words[:-3], "--out", "whole")).returncode == 0
    assert content("o") == content("whole")


def test_two_processes_make_the_last_two_parts_at_the_same_time():
    one_text(Path("one.txt"))
    words = ["one.txt", "--tokenizer", "bytes", "--out", "o", "--part"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command(*words, which), env=environment, stdout=subprocess.PIPE)
            for which in ("1/2", "2/2")]  # fmt: skip
    assert [process.wait() for process in both] == [0, 0]
    assert any(b"o is ready; train on it" in process.stdout.read() for process in both)
    assert content("o") == content(
        prepare(PrepareConfig(source="one.txt", out="whole", tokenizer="bytes"))
    )


def test_parts_of_several_disks_are_copied_together_and_joined_by_any_command():
    source = records(Path("records.jsonl"))
    for number in (1, 2, 3):
        part(source, "disk%d" % number, "%d/3" % number)
    for number in (1, 2):
        name = "part-%05d-of-00003" % number
        shutil.copytree("disk%d/%s" % (number, name), "disk3/%s" % name)
    with pytest.raises(DataError, match=r"disk3 has all parts, not joined yet; make it with: "):
        open_datasets("disk3", TOKENIZER, 64)
    part(source, "disk3", "2/3")
    expected = prepare(PrepareConfig(source=str(source), out="whole", tokenizer="bytes"))
    assert content("disk3") == content(expected)


def test_a_part_that_is_missing_is_named_with_the_command_that_makes_it():
    Path("a place").mkdir()
    source = one_text(Path("a place/one.txt"))
    for number in (1, 3):
        part(source, "my parts", "%d/3" % number, validation=0.1)
    with pytest.raises(DataError, match="my parts lacks part 2 of 3; make it with: ") as caught:
        open_datasets("my parts", TOKENIZER, 64)
    words = shlex.split(caught.value.fix.partition("python -m minigpt prepare ")[2])
    assert ran(command(*words)).returncode == 0
    assert len(open_datasets("my parts", TOKENIZER, 64).train) > 10
    shutil.rmtree("my parts/part-00001-of-00003")  # also when all were joined before
    with pytest.raises(DataError, match="my parts lacks part 1 of 3"):
        open_datasets("my parts", TOKENIZER, 64)


def test_what_was_prepared_in_parts_is_no_text_to_learn_from():
    for number in (1, 2):
        part(one_text(Path("one.txt")), "here/o", "%d/2" % number)
    said = r"here has no \.py, .* file; .*: a run, a model or prepared data"
    with pytest.raises(DataError, match=said):
        open_datasets("here", TOKENIZER, 64)


def test_parts_that_do_not_belong_together_are_refused_and_nothing_is_touched():
    source = texts(Path("texts"))
    part(source, "o", "1/3")
    before = sorted(Path("o").rglob("*"))
    for which, settings, word in (
        ("2/3", {"tokenizer": "gpt2"}, "vocabulary"),
        ("2/3", {"validation": 0.1}, "flags"),
        ("2/3", {"text_key": "more"}, "flags"),
        ("1/3", {"special_tokens": True}, "flags"),
        ("2/4", {}, "number of parts"),
    ):
        with pytest.raises(UsageError, match="part-00001-of-00003 was made with another %s" % word):
            part(source, "o", which, **settings)
    with (source / "a.txt").open("a") as file:
        file.write("more")
    with pytest.raises(UsageError, match="was made with another source"):
        part(source, "o", "2/3")
    Path("theirs").mkdir()
    Path("theirs/part-of-mine").write_text("mine")
    with pytest.raises(UsageError, match="theirs exists and is not an empty directory"):
        part(source, Path("theirs"), "2/3")
    assert sorted(Path("o").rglob("*")) == before


def test_a_damaged_part_is_named_before_anything_is_joined():
    source = one_text(Path("one.txt"))
    part(source, "o", "1/2")
    path = Path("o/part-00001-of-00002/train-00000.tokens")
    data = path.read_bytes()
    for damaged, words in ((data[:-9], "is cut short"), (data[:80] + b"\0" + data[81:], "damaged")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="part-00001-of-00002.* %s" % words):
            part(source, "o", "2/2")
        assert not Path("o/dataset.json").exists()
    path.write_bytes(data)
    part(source, "o", "2/2")
    assert np.concatenate([Shard(p).tokens for p in sorted(Path("o").rglob("*.tokens"))]).size


@pytest.mark.parametrize("which", ["0/16", "17/16", "3", "3/0", "a/b", "", "-1/2", "1/2/3", "²/3"])
def test_what_is_no_part_is_one_sentence(which):
    with pytest.raises(UsageError, match=r"--part is '.*'; say 3/16 for the third of sixteen"):
        PrepareConfig(source="stdlib", out="o", part=which)


def test_functions_are_no_files_to_divide():
    with pytest.raises(UsageError, match="--part is for files"):
        part("stdlib-functions", "o", "1/2")
