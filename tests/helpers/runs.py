"""Small real runs, through the command itself, for the tests beside this file."""

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers.warm import warm

ROOT = Path(__file__).resolve().parents[2]

# Big enough to learn, small enough for a second: a few hundred windows of real Python.
SMALL = [
    "--batch-size",
    "4",
    "--block-size",
    "32",
    "--warmup-steps",
    "2",
    "--log-every",
    "1",
    "--eval-every",
    "10",
    "--save-every",
    "10",
    "--sample-every",
    "0",
    "--eval-tokens",
    "640",
    "--seed",
    "5",
]


def corpus(directory):
    """A few real source files of this project as training data."""
    directory.mkdir(exist_ok=True)
    for name in ("base/errors", "base/text", "base/files", "commands/cli"):
        source = ROOT / "minigpt" / (name + ".py")
        (directory / source.name).write_text(source.read_text())
    return directory


def command(tmp_path, *words, python=True, anew=True):
    """The command line of train.py with SMALL settings; without `python`, its flags alone; not
    `anew`, for a copy of a process that has imported what it needs.
    """
    data = corpus(tmp_path / "corpus")
    start = [] if "--resume" in words else ["--data", str(data), *SMALL]
    script = str(ROOT / "train.py")
    anew = anew or "--compile" in words  # the compiler makes a copy wait for ever
    program = ([sys.executable, script] if anew else warm(script)) if python else []
    return [*program, *start, *map(str, words)]


def environment(tmp_path):
    import os

    here = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    return {"HF_ENDPOINT": "http://127.0.0.1:9", **os.environ, **here}


def train(tmp_path, *words, code=0, anew=False):
    """Runs train.py with SMALL settings; returns the finished process."""
    line = command(tmp_path, *words, anew=anew)
    done = subprocess.run(line, capture_output=True, text=True, env=environment(tmp_path))
    assert done.returncode == code, done.stdout + done.stderr
    return done


def records(run, key="loss"):
    """{step: value} of what metrics.jsonl says of `key`."""
    path = Path(run) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    values = [json.loads(line) for line in lines if line.endswith("}")]
    return {value["step"]: value[key] for value in values if key in value}


def files(checkpoint):
    """The bytes of a checkpoint's tensors and state."""
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    return {name: (Path(checkpoint) / name).read_bytes() for name in names}
