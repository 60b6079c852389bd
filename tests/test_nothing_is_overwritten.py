"""Every command that makes a directory, told to make it where something of a person's is: one
sentence, and not a byte of it has changed.
"""

import hashlib
import os
import shutil

import pytest

from minigpt.__main__ import command as minigpt
from minigpt.__main__ import convert as convert_command
from minigpt.checkpoint.run_files import resolve
from minigpt.commands.cli import run
from minigpt.hf.export import export
from minigpt.model.gpt import GPTConfig
from tests.helpers.runs import environment
from tests.helpers.tuning import base, run_to_the_end, tuning

# Each is run beside base/, hf/, corpus/ and adapter/. What it reads comes first; --out is added.
COMMANDS = {
    "convert": ("hf", convert_command, ["hf"]),
    "to-hf": ("base", convert_command, ["--to-hf", "base"]),
    "prepare": ("corpus", minigpt, ["prepare", "corpus", "--tokenizer", "bytes"]),
    "merge": ("adapter", minigpt, ["merge", "--checkpoint", "adapter"]),
    "train": (None, minigpt, ["train", "--data", "corpus", "--steps", "1", "--block-size", "8"]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    base(folder / "base", "gpt2", shape=GPTConfig(50257, 64, 1, 1, 8))
    export(folder / "base", folder / "hf")
    (folder / "corpus").mkdir()
    for name in ("a", "b"):
        (folder / "corpus" / (name + ".txt")).write_text("x = 1\n" * 2000)
    elsewhere = tmp_path_factory.mktemp("tuned")
    tuned = run_to_the_end(tuning(elsewhere, lora_rank=2, steps=1))
    shutil.copytree(str(resolve(tuned)), str(folder / "adapter"))
    return folder


@pytest.fixture()
def here(made, tmp_path, monkeypatch):
    """A person's working directory."""
    shutil.copytree(str(made), str(tmp_path / "w"))
    monkeypatch.chdir(tmp_path / "w")
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path / "w"


def project(here):
    (here / "proj" / ".git").mkdir(parents=True)
    (here / "proj" / "thesis.txt").write_text("mine")
    return "proj"


def hidden(here):
    (here / "h").mkdir()
    (here / "h" / ".env").write_text("mine")
    return "h"


def file(here):
    (here / "notes").write_text("mine")
    return "notes"


def in_a_file(here):
    return file(here) + "/new"


def link_to_an_empty_directory(here):
    (here / "big disk").mkdir()
    (here / "link").symlink_to("big disk")
    return "link"


def link_to_a_full_one(here):
    (here / "link").symlink_to(project(here))
    return "link/"


def dangling_link(here):
    (here / "link").symlink_to("not mounted")
    return "link"


def checkpoints(here):
    shutil.copytree(str(here / "base"), str(here / "checkpoints" / "a"))
    return "checkpoints"


def another_checkpoint(here):
    shutil.copytree(str(here / "base"), str(here / "b"))
    return str(here / "b")


PLACES = {
    "where one is": lambda here: ".",
    "above": lambda here: "..",
    "far above": lambda here: "/",
    "where one is, in full": str,
    "back from nowhere": lambda here: "nowhere/..",
    "itself, another way": lambda here: "corpus/../corpus",
    **{
        f.__name__: f
        for f in (
            project, hidden, file, in_a_file, link_to_an_empty_directory, link_to_a_full_one,
            dangling_link, checkpoints, another_checkpoint,
        )
    },
}  # fmt: skip


def contents(folder):
    """Everything below `folder`: what files hold and where links lead."""
    return {
        str(path): os.readlink(str(path)) if path.is_symlink() else _digest(path)
        for path in folder.rglob("*")
    }


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def refused(capsys, function, words, folder):
    """The one sentence; asserts that nothing in `folder` has changed."""
    before = contents(folder)
    capsys.readouterr()
    code = run(function, words)
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    assert contents(folder) == before
    return lines[0]


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("source, function, words", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_place_that_is_not_free_is_refused(here, capsys, source, function, words, place):
    said = refused(capsys, function, [*words, "--out", place(here)], here)
    assert "--out" in said or ("--resume" in said and "or name another" in said)


@pytest.mark.parametrize("out", [".", "../empty", "../empty/."])
def test_the_empty_directory_one_is_in_stays(here, capsys, monkeypatch, out):
    (here / "empty").mkdir()
    monkeypatch.chdir(here / "empty")
    refused(capsys, convert_command, ["../hf", "--out", out], here)


@pytest.mark.parametrize("form", ["%s", "%s/", "%s/new", "%s/new/deep", "./%s/../%s/x", "alias/x"])
@pytest.mark.parametrize("name", ["convert", "to-hf", "prepare", "merge"])
def test_nothing_is_made_in_what_is_read(here, capsys, name, form):
    source, function, words = COMMANDS[name]
    (here / "alias").symlink_to(source)
    out = form.replace("%s", source)
    said = refused(capsys, function, [*words, "--out", out], here)
    assert "name another directory with --out" in said and "remove" not in said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_free_place_and_an_empty_directory_are_taken(here, name):
    _, function, words = COMMANDS[name]
    (here / "empty").mkdir()
    for out in ("new/deep", "empty"):
        assert run(function, [*words, "--out", out]) == 0
        assert any((here / out).iterdir())


def test_conversion_never_takes_its_own_source(here, capsys):
    (here / "checkpoints").mkdir()
    shutil.copytree(str(here / "hf"), str(here / "checkpoints" / "mine"))
    said = refused(capsys, convert_command, ["checkpoints/mine"], here)
    assert "is what is to be read" in said


def test_a_second_conversion_says_what_to_do(here, capsys):
    assert run(convert_command, ["hf"]) == 0
    said = refused(capsys, convert_command, ["hf"], here)
    assert said.endswith(
        "checkpoints/hf exists and is not an empty directory; use it, remove it, or name another"
        " with --out"
    )


def test_it_is_refused_before_anything_is_downloaded(here, capsys):
    """Nobody listens at the endpoint, so that asking it would be another error."""
    refused(capsys, convert_command, ["gpt2", "--out", project(here)], here)
    (here / "checkpoints").mkdir()
    (here / "checkpoints" / "gpt2").symlink_to("unmounted")
    refused(capsys, convert_command, ["gpt2"], here)
    words = ["train", "--init", "gpt2", "--data", "corpus", "--steps", "1", "--block-size", "8"]
    refused(capsys, minigpt, words, here)


def test_a_name_that_is_none_is_named_before_its_place(here, capsys):
    """checkpoints/ + an absolute path is that path, and nobody is told to remove his own file."""
    said = refused(capsys, convert_command, [str(here / file(here))], here)
    assert "is a file; name its directory" in said and "remove" not in said


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_a_page_takes_no_place_either(here, capsys, place):
    words = ["look", "--checkpoint", "base", "--prompt", "x"]
    assert "--out" in refused(capsys, minigpt, [*words, "--out", place(here)], here)


def test_nor_an_empty_directory_or_one_that_is_read(here, capsys):
    (here / "empty").mkdir()
    words = ["look", "--checkpoint", "base", "--prompt", "x", "--out"]
    assert "empty exists; name another" in refused(capsys, minigpt, [*words, "empty"], here)
    assert "is what is to be read" in refused(capsys, minigpt, [*words, "base/look.html"], here)
