"""Records prepared once are the records of the file: the same samples, the same loss bits."""

import json
import signal
import subprocess
import sys
import time
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from minigpt.__main__ import command
from minigpt.base.errors import DataError, UsageError
from minigpt.checkpoint.model_files import load_model
from minigpt.checkpoint.run_files import resolve
from minigpt.commands.cli import run as cli
from minigpt.commands.prepare import PrepareConfig, prepare
from minigpt.data import prepare as prepare_module
from minigpt.data import records
from minigpt.data.datasets import open_datasets
from minigpt.data.loader import Loader
from minigpt.data.shards import Shard
from minigpt.data.tokenizer import load_tokenizer
from tests.helpers.tuning import base, instructions, resumed, run_to_the_end, tuning

ROOT = Path(__file__).resolve().parents[2]
BYTES = load_tokenizer("bytes")


def talk(number):
    """Two answers, so that what is learned begins, ends and begins again."""
    parts = [("user", "ask %d" % number), ("assistant", "né\n"), ("user", "?"), ("assistant", "!")]
    return {"messages": [{"role": role, "content": text} for role, text in parts]}


def pair(number):
    text = "<|endoftext|> say %d " % number * (1 + number % 7)
    return {"instruction": "ask %d" % number, "output": text}


def write(path, count=150):
    """Pairs of many lengths, conversations, and lines that are left out."""
    values = [talk(n) if n % 3 == 0 else pair(n) for n in range(count)]
    path.write_text("\n".join(["broken", *map(json.dumps, values), '{"instruction": "alone"}']))
    return path


def made(source, out, **settings):
    values = {"tokenizer": "bytes", **settings}
    return prepare(PrepareConfig(source=str(source), out=str(out), **values))


def epoch(dataset):
    """All batches of an epoch of a run, the last one running into the next epoch."""
    loader = Loader(dataset, batch_size=4, seed=11)
    batches = [next(loader) for _ in range(-(-len(dataset) // 4))]
    loader.close()
    return batches


def assert_same(first, second):
    """Every number of every batch, in the same order; and what is said of them."""
    for one, other in ((first.train, second.train), (first.validation, second.validation)):
        assert one.fingerprint == other.fingerprint and one.token_count == other.token_count
        for mine, theirs in zip(epoch(one), epoch(other)):
            assert (mine.supervised, mine.padding) == (theirs.supervised, theirs.padding)
            assert mine.lengths == theirs.lengths
            for name in ("tokens", "targets", "positions"):
                a, b = getattr(mine, name), getattr(theirs, name)
                assert a is b is None or (a.dtype == b.dtype and torch.equal(a, b)), name
    assert first.prompt == second.prompt and first.template == second.template
    assert first.notes[0] == second.notes[0]


@pytest.mark.parametrize("template", ["instruct", "moai"])
@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_an_epoch_is_that_of_the_file(tmp_path, name, template):
    """Whatever the block and the packing: neither is decided before."""
    tokenizer, path = load_tokenizer(name), str(write(tmp_path / "x.jsonl"))
    out = made(path, tmp_path / "out", tokenizer=name, template=template, shard_tokens=700)
    assert len(list(out.glob("*.tokens"))) > 2
    for block in (48, 96, 512):
        for packing in (True, False):
            wanted = (tokenizer, block, template, packing)
            assert_same(open_datasets(path, *wanted), open_datasets(str(out), *wanted))


@pytest.mark.parametrize("count", [2, 3, 9])
def test_of_a_few_records_the_same_one_is_held_out(tmp_path, count):
    """Which has the smallest draw of those that fit depends on the block."""
    path = str(write(tmp_path / "x.jsonl", count))
    out = made(path, tmp_path / "out")
    for block in (48, 60, 300) if count > 3 else (300,):
        assert_same(open_datasets(path, BYTES, block), open_datasets(str(out), BYTES, block))


def test_the_librarys_functions(tmp_path, monkeypatch):
    some = list(islice(records.library_functions(), 300))
    monkeypatch.setattr(records, "library_functions", lambda: some)
    out = made("stdlib-functions", tmp_path / "out")
    assert_same(*(open_datasets(str(name), BYTES, 700) for name in ("stdlib-functions", out)))


def test_unusual_keys(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"a": "i%d" % n, "b": "o"}) for n in range(20)))
    out = made(path, tmp_path / "out", record_keys="a,b")
    first = open_datasets(str(path), BYTES, 64, record_keys="a,b")
    assert_same(first, open_datasets(str(out), BYTES, 64))


def test_more_may_be_held_out(tmp_path):
    path = write(tmp_path / "x.jsonl")
    few, many = (
        open_datasets(str(made(path, tmp_path / str(part), validation=part)), BYTES, 512)
        for part in (0.03, 0.4)
    )
    assert len(few.validation.examples) < 20 < len(many.validation.examples)


def test_any_number_of_processes_writes_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_WORTH_PROCESSES", 0)
    monkeypatch.setattr(prepare_module, "_BATCH", 900)
    path = write(tmp_path / "x.jsonl")
    outs = [made(path, tmp_path / str(n), workers=n, shard_tokens=1500) for n in (1, 2)]
    names = sorted(file.name for file in outs[0].iterdir())
    assert len(names) > 5
    for name in names:
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name


def test_a_run_is_the_run_on_the_file(tmp_path):
    """Every logged loss and every weight, and the template in the checkpoint."""
    base(tmp_path / "base")
    data = instructions(tmp_path / "functions.jsonl")
    out = made(data, tmp_path / "out", tokenizer=str(tmp_path / "base"), template="moai")
    runs = [
        run_to_the_end(tuning(tmp_path, name, data=str(source), template="moai", block_size=256))
        for name, source in (("file", data), ("prepared", out))
    ]
    losses = [
        [json.loads(line).get("loss") for line in (run / "metrics.jsonl").open()] for run in runs
    ]
    assert losses[0] == losses[1] and len(losses[0]) > 5
    weights = [load_model(resolve(run)).state_dict() for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    kept = [(resolve(run) / "template.json").read_text() for run in runs]
    assert kept[0] == kept[1] and json.loads(kept[0])["name"] == "moai"


def test_a_run_on_the_file_goes_on_from_what_was_prepared(tmp_path):
    run = run_to_the_end(tuning(tmp_path, block_size=256))
    out = made(tmp_path / "functions.jsonl", tmp_path / "out")
    again = resumed(run, data=str(out), block_size=256, steps=8)
    assert again.state.step == 6
    again.loader.close()


def test_evaluate_and_inspect_say_the_same(tmp_path, capsys):
    data, start = instructions(tmp_path / "f.jsonl"), str(base(tmp_path / "base"))
    out = made(data, tmp_path / "out")
    for words in (["evaluate", "--block-size", "512"], ["inspect", "--block-size", "512"]):
        printed = []
        for source in (data, out):
            command([*words, "--checkpoint", start, "--data", str(source)])
            printed.append(capsys.readouterr().out.replace(str(source), "DATA"))
        kept = [[li for li in text.splitlines() if "left out" not in li] for text in printed]
        assert kept[0] == kept[1] and kept[0]


def test_what_was_left_out_is_said_when_it_is_prepared_and_when_it_is_used(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl")
    out = made(path, tmp_path / "out")
    assert "note: left out 1: no JSON (%s:1)\n" % path in capsys.readouterr().err
    notes = open_datasets(str(out), BYTES, 50).notes
    assert any("no JSON (%s:1)" % path in note for note in notes)
    assert any("longer than --block-size 50 (%s, record 2, " % out in note for note in notes)
    for source in (path, out):
        with pytest.raises(DataError, match=r"x\.jsonl:1: no JSON"):
            open_datasets(str(source), BYTES, 50, strict=True)
    path.write_text("\n".join(path.read_text().splitlines()[1:-1]))
    out = made(path, tmp_path / "again", strict=True)
    with pytest.raises(DataError, match=r"again, record 2: longer than --block-size 50"):
        open_datasets(str(out), BYTES, 50, strict=True)


def test_strict_leaves_nothing_half_made(tmp_path):
    path = write(tmp_path / "x.jsonl")
    for settings in ({"strict": True}, {"record_keys": "no,such"}):
        with pytest.raises(DataError, match=r"x\.jsonl"):
            made(path, tmp_path / "out", **settings)
        assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"template": "moai"}, "--template is for records"),
        ({"record_keys": "a,b"}, "--record-keys is for records"),
    ],
)
def test_what_text_has_no_use_for(tmp_path, settings, words):
    (tmp_path / "x.txt").write_text("text\n" * 100)
    with pytest.raises(UsageError, match=words):
        made(tmp_path / "x.txt", tmp_path / "out", **settings)


def test_what_records_are_asked_for_wrongly(tmp_path):
    with pytest.raises(UsageError, match="did you mean moai"):
        made(write(tmp_path / "x.jsonl"), tmp_path / "out", template="moia")
    with pytest.raises(DataError, match="there is no file"):
        made(tmp_path / "none.jsonl", tmp_path / "out")
    out = made(tmp_path / "x.jsonl", tmp_path / "out")
    with pytest.raises(UsageError, match="--record-keys is for records"):
        open_datasets(str(out), BYTES, 64, record_keys="a,b")


def test_another_template_is_one_sentence_with_the_command(tmp_path):
    path = write(tmp_path / "x.jsonl")
    out = made(path, tmp_path / "out", template="moai")
    with pytest.raises(DataError, match="was prepared with --template moai") as caught:
        open_datasets(str(out), BYTES, 64)
    assert caught.value.fix == (
        "add --template moai, or make it again with: python -m minigpt prepare %s --out DIR"
        " --template instruct" % path
    )


@pytest.mark.parametrize("door", ["train", "evaluate", "inspect"])
def test_another_tokenizer_is_one_sentence(tmp_path, capsys, door):
    data, start = instructions(tmp_path / "functions.jsonl"), str(base(tmp_path / "base"))
    words = ["--data", str(made(data, tmp_path / "out", tokenizer="gpt2"))]
    if door == "train":
        with pytest.raises(DataError, match=r"another tokenizer than the model's.*--tokenizer"):
            tuning(tmp_path, data=words[1])
    else:
        assert cli(command, [door, *words, "--checkpoint", start]) == 1
        assert "was prepared with another tokenizer" in capsys.readouterr().err


def flipped(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


@pytest.fixture()
def shard(tmp_path):
    """The one shard of records, with where its tokens and the three parts of its index begin."""
    out = made(write(tmp_path / "x.jsonl"), tmp_path / "out")
    path = out / "records-00000.tokens"
    found = Shard(path)
    places = np.cumsum([72, 2 * len(found.tokens), 8 * len(found.starts), 8 * len(found.turns)])
    assert len(found.draws) == len(found.starts) == 150
    assert len(found.turns) == 150 + 2 * 50  # a conversation's first answer ends, its second begins
    return path, places.tolist()


@pytest.mark.parametrize("part", range(4))
def test_a_changed_bit_anywhere_is_found(shard, part):
    path, places = shard
    flipped(path, places[part] + 8)
    with pytest.raises(DataError, match="is damaged") as caught:
        open_datasets(str(path.parent), BYTES, 64)
    assert "python -m minigpt prepare" in caught.value.fix


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is cut short"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "has bytes behind its end"),
        (lambda path: flipped(path, 24), "is cut short|has bytes behind its end"),  # turns
        (lambda path: flipped(path, 0), "is no token shard"),
        (lambda path: flipped(path, 8), "is a shard of version 3"),
        (lambda path: path.unlink(), "is no token shard"),
    ],
)
def test_a_shard_that_is_not_whole_is_named(shard, damage, words):
    damage(shard[0])
    with pytest.raises(DataError, match=words) as caught:
        open_datasets(str(shard[0].parent), BYTES, 64)
    assert str(shard[0]) in str(caught.value)


@pytest.mark.parametrize("lost", ["left_out", "template", "splits", "tokenizer_sha256"])
def test_a_directory_that_says_too_little_is_one_sentence(tmp_path, lost):
    made(write(tmp_path / "r.jsonl"), tmp_path / "out")
    path = tmp_path / "out" / "dataset.json"
    content = json.loads(path.read_text())
    del content[lost]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="lacks %s; make it again" % lost):
        open_datasets(str(tmp_path / "out"), BYTES, 256, "instruct")


def test_a_directory_of_a_later_format_is_no_prepared_data(tmp_path):
    out = made(write(tmp_path / "x.jsonl"), tmp_path / "out")
    content = json.loads((out / "dataset.json").read_text())
    assert content["format"] == 2 and content["template"]["name"] == "instruct"
    for text in (json.dumps({**content, "format": 3}), "{"):
        (out / "dataset.json").write_text(text)
        with pytest.raises(DataError, match="is no prepared data"):
            open_datasets(str(out), BYTES, 64)


def test_kill_9_leaves_nothing_that_looks_finished(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps(pair(n)) for n in range(60_000)))
    line = [sys.executable, "-m", "minigpt", "prepare", str(path), "--out", str(tmp_path / "o"),
            "--tokenizer", "bytes"]  # fmt: skip
    process = subprocess.Popen(line, cwd=str(ROOT), stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".o.*.partial/*.tokens")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "o").exists()
    write(path)
    made(path, tmp_path / "o")  # and the leftover is no obstacle
    assert not list(tmp_path.glob(".o*"))


def test_memory_does_not_grow_with_the_records(tmp_path):
    """8 MB of records: of each no more is kept than where it begins and its turns."""
    path = tmp_path / "x.jsonl"
    line = json.dumps({"instruction": "i", "output": "o" * 5000})
    path.write_text((line + "\n") * 1600)
    tracemalloc.start()
    made(path, tmp_path / "out", workers=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 8_000_000 and peak < 2_000_000
