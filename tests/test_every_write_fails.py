"""Every write of every command that keeps something fails once, or is the last that its process
does; docs/reliability.md says what is promised then, helpers/faults.py how it is looked at.

MINIGPT_FAULTS=all tries every write in every way: minutes, and not part of the usual tests.
"""

import json
import os
import shutil
import subprocess

import pytest

from minigpt.checkpoint.run_files import resolve
from minigpt.hf.export import export
from minigpt.model.gpt import GPTConfig
from tests.helpers.runs import ROOT, environment
from tests.helpers.tuning import base, run_to_the_end, trainer_of
from tests.helpers.vocabulary import small_vocabulary
from tests.helpers.warm import warm

EVERY = os.environ.get("MINIGPT_FAULTS") == "all"
TRAIN = ["train", "--resume", "run", "--steps", "4"]
PART = ["prepare", "corpus", "--tokenizer", "bytes", "--out", "out", "--part"]
# What is run in which of the directories below, and what it makes.
COMMANDS = {
    "a run goes on": ("run", TRAIN, ["run", "cache"]),
    "a run does a step again": ("back", TRAIN, ["run", "cache"]),
    "text": ("corpus", ["prepare", "corpus", "--tokenizer", "bytes", "--out", "out"], ["out"]),
    "records": ("corpus", ["prepare", "qa.jsonl", "--tokenizer", "bytes", "--out", "out"], ["out"]),
    "a part": ("corpus", [*PART, "1/2"], ["out"]),
    "the last part": ("half", [*PART, "2/2"], ["out"]),
    "convert": ("hf", ["convert", "hf", "--out", "out"], ["out"]),
    "export": ("base", ["convert", "--to-hf", "base", "--out", "out"], ["out"]),
    "merge": ("adapter", ["merge", "--checkpoint", "adapter", "--out", "out"], ["out"]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory for each of the commands to start in."""
    place = tmp_path_factory.mktemp("made")
    (place / "corpus" / "corpus").mkdir(parents=True)
    for name in "abcdefgh":
        (place / "corpus" / "corpus" / (name + ".txt")).write_text("x = %r\n" % name * 50)
    pairs = [{"instruction": "add %d" % n, "output": "x += %d" % n} for n in range(40)]
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    (place / "corpus" / "qa.jsonl").write_text(lines)
    shutil.copytree(str(place / "corpus"), str(place / "half"))
    run(place / "half", *PART, "1/2")
    words = small_vocabulary(place / "words")
    base(place / "base" / "base", words, shape=GPTConfig(300, 8, 1, 1, 8))
    (place / "hf").mkdir()
    export(place / "base" / "base", place / "hf" / "hf")
    a_run(place / "run")
    shutil.copytree(str(place / "run"), str(place / "back"))
    run(place / "back", *TRAIN)  # and is killed before it says which is the latest
    shutil.copy(str(place / "run" / "run" / "latest"), str(place / "back" / "run" / "latest"))
    start = base(place / "adapter" / "base", shape=GPTConfig(257, 16, 1, 1, 8))
    data = str(place / "corpus" / "corpus")
    tuned = run_to_the_end(trainer_of(
        init=str(start), data=data, out=str(place / "tuned"), lora_rank=2, steps=1, block_size=16,
        batch_size=4, sample_every=0, device="cpu",
    ))  # fmt: skip
    shutil.copytree(str(resolve(tuned)), str(place / "adapter" / "adapter"))
    return place


def run(here, *words):
    line = warm("-m", "minigpt", *words)
    done = subprocess.run(
        line, cwd=str(here), env=environment(here), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def a_run(here):
    """One of three steps, whose next one is saved twice over: as the latest and the best."""
    here.mkdir()
    shutil.copytree(str(here.parent / "corpus" / "corpus"), str(here / "corpus"))
    base(here / "base", shape=GPTConfig(257, 16, 1, 1, 8))
    run(
        here, "train", "--init", "base", "--data", "corpus", "--out", "run", "--steps", "3",
        "--batch-size", "2", "--eval-every", "1", "--save-every", "1", "--keep", "2",
        "--sample-every", "0", "--log-every", "1", "--warmup-steps", "1", "--schedule", "constant",
    )  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_write(made, tmp_path, name):
    start, words, outputs = COMMANDS[name]
    plan = {"start": str(made / start), "place": str(tmp_path / "place"), "words": words}
    plan.update(outputs=outputs, most=None if EVERY else 5)
    (tmp_path / "plan").write_text(json.dumps(plan))
    line = warm(ROOT / "tests" / "helpers" / "faults.py", tmp_path / "plan")
    done = subprocess.run(line, capture_output=True, text=True, cwd=str(ROOT))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print("%s: %d writes, %d failures" % (name, found["writes"], found["cases"]))
    assert not found["wrong"], "\n".join(found["wrong"])
    assert found["writes"] > 15 and found["cases"] >= 5
