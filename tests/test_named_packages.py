"""What the project tells people to install is what they need: PyPI's `minigpt` is not this one."""

import re
import subprocess

import pytest

from tests.helpers.runs import ROOT

# An extra by that name, or an installation of it, however it is quoted, flagged or escaped.
STRANGER = re.compile(
    r"minigpt\\{0,2}\[[a-z]|(pip3?|pipx|uv|poetry) (install|add) +(-\S+ +)*[\"'`]?minigpt\b", re.I
)


def tracked():
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=str(ROOT), stdout=subprocess.PIPE)
    except OSError:
        pytest.skip("git is not installed")
    if done.returncode:
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_nobody_is_sent_to_the_stranger_on_pypi():
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""
        found += ["%s: %s" % (path.relative_to(ROOT), m.group()) for m in STRANGER.finditer(text)]
    assert not found


@pytest.mark.parametrize(
    "name",
    ["[plot]", " plot", "", "==1.0"],
)
def test_the_pattern_knows_what_it_looks_for(name):
    for start in ("pip install ", "pip install -U ", 'pip install "', "pipx install ", "uv add "):
        assert STRANGER.search(start + "mini" + "gpt" + name)
    for right in (
        "pip install -e .",
        "pip install matplotlib",
        "python -m minigpt",
        'pip install ".[plot]"',
    ):
        assert not STRANGER.search(right)
