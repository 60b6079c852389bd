"""Ways to hold it wrong, each tried for real: one sentence on stderr that says what to do, no
traceback.
"""

from types import SimpleNamespace

import pytest

from minigpt.__main__ import train as train_command
from minigpt.commands.cli import run
from tests.helpers.runs import command, environment, train


def sentence(done):
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert "; " in lines[0], "no way out is named: %s" % lines[0]
    return lines[0]


def text(path, content="x = 1\n" * 3000):
    path.write_text(content)
    return path


CASES = {
    "no such data": (1, lambda p: ["--data", p / "none.txt"], "none.txt"),
    "empty data": (1, lambda p: ["--data", text(p / "e.txt", "")], "e.txt"),
    "no text in the directory": (1, lambda p: ["--data", (p / "d").mkdir() or p / "d"], "d"),
    "a file of another kind": (1, lambda p: ["--data", text(p / "x.exe")], "x.exe"),
    "broken jsonl": (1, lambda p: ["--data", text(p / "x.jsonl", '{"text": "a"}\n{')], "x.jsonl:2"),
    "data shorter than a block": (
        1,
        lambda p: ["--data", text(p / "s.txt", "a = 1\n" * 10), "--block-size", 90],
        "--block-size",
    ),
    "a block longer than the positions": (2, lambda p: ["--block-size", 4000], "4000"),
    "no such model": (2, lambda p: ["--model", "cerebras-12b"], "did you mean"),
    "no such init": (2, lambda p: ["--init", "cerebras-12b"], "did you mean cerebras-13b"),
    "weights not there": (
        1,
        lambda p: ["--init", "cerebras-111m", "--dry-run"],
        "convert_hf.py cerebras-111m",
    ),
    "weights not to be had": (1, lambda p: ["--init", "cerebras-111m"], "cannot be fetched"),
    "more than the memory": (1, lambda p: ["--init", "cerebras-13b"], "does not fit into what is"),
    "init from a directory of something else": (1, lambda p: ["--init", p], "manifest.json"),
    "no such tokenizer": (2, lambda p: ["--tokenizer", "bpe"], "bpe"),
    "no such device": (2, lambda p: ["--device", "tpu"], "unknown device"),
    "a device that is not here": (1, lambda p: ["--device", "moai"], "--device cpu"),
    "resume of nothing": (2, lambda p: ["--resume", p / "none"], "no config.toml"),
    "a directory in use": (2, lambda p: ["--out", p], "not an empty directory"),
    "a file for a directory": (2, lambda p: ["--out", text(p / "f")], "not an empty directory"),
    "a place one cannot write": (1, lambda p: ["--out", "/proc/minigpt"], "--out"),
    "a vocabulary larger than the model's": (
        1,
        lambda p: ["--model", "mini", "--init", model_of(p), "--data", prepared(p)],
        "another tokenizer",
    ),
}


def model_of(path):
    train(path, "--steps", 1, "--out", path / "small")
    return path / "small"


def prepared(path):
    """Data prepared with the GPT-2 vocabulary, for a model that has bytes."""
    from minigpt.commands.prepare import PrepareConfig, prepare

    config = PrepareConfig(source=str(text(path / "p.txt")), out=str(path / "p"), tokenizer="gpt2")
    return prepare(config)


@pytest.mark.parametrize("code, words, expected", CASES.values(), ids=CASES.keys())
def test_one_sentence(tmp_path, code, words, expected, monkeypatch, capsys):
    """The whole command line, but in this process: a new one would load PyTorch each time."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    line = command(
        tmp_path, "--steps", 1, "--out", tmp_path / "run", *words(tmp_path), python=False
    )
    capsys.readouterr()
    assert run(train_command, line) == code
    assert expected in sentence(SimpleNamespace(stderr=capsys.readouterr().err))


def test_a_full_disk_while_saving_keeps_the_last_checkpoint(tmp_path):
    """A real file system of 6 MB, where the model fits once."""
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=14m", "none", str(disk)], capture_output=True
    )
    if mount.returncode:
        pytest.skip("may not mount a small file system here")
    try:
        done = train(tmp_path, "--steps", 3, "--save-every", 1, "--eval-every", 0,
                     "--out", disk / "run", code=1)  # fmt: skip
        assert "free" in sentence(done)
        assert (disk / "run" / (disk / "run" / "latest").read_text().strip()).is_dir()
        assert not list((disk / "run" / "checkpoints").glob(".*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
