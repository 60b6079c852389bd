"""A directory is replaced whole or not at all, whatever happens in between."""

import os
import signal
import subprocess
import sys
import time

import pytest

from minigpt.base.errors import StorageError
from minigpt.base.files import atomic_directory, require_space, write_text


def test_an_error_leaves_the_old_directory_and_no_trace_of_the_new(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").write_text("old")
    with pytest.raises(KeyError), atomic_directory(tmp_path / "d") as partial:
        (partial / "new").write_text("new")
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d" / "old").read_text() == "old"


def test_success_replaces_the_old_directory(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").write_text("old")
    with atomic_directory(tmp_path / "d") as partial:
        (partial / "new").write_text("new")
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_the_last_whole_directory_is_kept_until_the_next_has_its_name(tmp_path, monkeypatch):
    """A crash between the two renames has left the old one beside its place; so may the next."""
    (tmp_path / ".d.replaced").mkdir()

    def crash(*paths):
        raise OSError("a crash")

    monkeypatch.setattr(os, "rename", crash)
    with pytest.raises(StorageError, match="a crash"), atomic_directory(tmp_path / "d"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [".d.replaced"]
    monkeypatch.undo()
    with atomic_directory(tmp_path / "d"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


WRITER = """
import itertools, sys
from pathlib import Path
from minigpt.base.files import atomic_directory
for i in itertools.count():
    with atomic_directory(Path(sys.argv[1])) as partial:
        for name in "abcd":
            (partial / name).write_text(str(i) * 20000)
    print(i, flush=True)
"""


def test_kill_9_at_random_moments_leaves_one_whole_generation(tmp_path):
    """The four files always belong together, or the directory is not there for a moment between
    two renames, in which case its predecessor stands beside it.
    """
    for attempt in range(8):
        target = tmp_path / str(attempt)
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(0.002 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole = target if target.exists() else target.with_name(".%d.replaced" % attempt)
        assert len({(whole / name).read_text() for name in "abcd"}) == 1


def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path):
    """A real limit of the kernel: the process may write no file beyond 10 kB."""
    resource = pytest.importorskip("resource")
    code = (
        "import resource, signal; from pathlib import Path\n"
        "from minigpt.base.files import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "path = Path(%r)\n"
        "write_text(path, 'small')\n"
        "write_text(path, 'x' * 100000)\n" % str(tmp_path / "file")
    )
    assert resource
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "StorageError: no room left to write" in done.stderr
    assert (tmp_path / "file").read_text() == "small"


def test_space_is_asked_for_before_writing(tmp_path):
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(StorageError, match="are needed"):
        require_space(tmp_path, 10**18)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_one_may_not_write_is_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="may not write"):
        write_text(tmp_path / "x", "x")
