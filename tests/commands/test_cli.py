"""What holds for every command line."""

import subprocess
import sys

from minigpt import __version__
from tests.helpers.runs import ROOT, environment
from tests.helpers.tuning import base


def run(tmp_path, *words, **variables):
    return subprocess.run(
        [sys.executable, "-m", "minigpt", *map(str, words)], capture_output=True, cwd=str(ROOT),
        env={**environment(tmp_path), **variables},
    )  # fmt: skip


def test_text_that_a_terminal_has_no_character_for_is_spelled_out(tmp_path):
    checkpoint = base(tmp_path / "모델")
    words = ("generate", "--checkpoint", checkpoint, "--prompt", "값 = ", "--max-new-tokens", "3")
    done = run(tmp_path, *words, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"\\uac12 = ")
    done = run(tmp_path, "generate", "--checkpoint", tmp_path / "없음", PYTHONIOENCODING="ascii")
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert b"\\uc5c6\\uc74c" in done.stderr


def test_the_version(tmp_path):
    done = run(tmp_path, "--version")
    assert done.stdout.decode().strip() == f"minigpt {__version__}" and done.returncode == 0
