"""A directory is replaced whole or not at all, whatever happens in between."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minigpt.base.errors import MinigptError, StorageError, UsageError
from minigpt.base.files import atomic_directory, require_space, write_text


def test_an_error_leaves_the_old_directory_and_no_trace_of_the_new(tmp_path):
    ours(tmp_path / "d", old="old")
    with pytest.raises(KeyError), atomic_directory(tmp_path / "d", replace=True) as partial:
        (partial / "new").write_text("new")
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d" / "old").read_text() == "old"


def ours(directory, **files):
    """A directory with our manifest, so one that a run may replace."""
    directory.mkdir()
    for name, text in {"manifest.json": '{"format": 1, "minigpt": "0"}', **files}.items():
        (directory / name).write_text(text)
    return directory


def test_success_replaces_an_older_checkpoint_where_that_is_asked_for(tmp_path):
    ours(tmp_path / "d", old="old")
    with atomic_directory(tmp_path / "d", replace=True) as partial:
        (partial / "new").write_text("new")
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def a_file(path):
    path.write_text("mine")


def a_link(path):
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


def a_dangling_link(path):
    path.symlink_to("nowhere")


def a_directory(path):
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


def a_manifest_of_others(path):
    a_directory(path)
    (path / "manifest.json").write_text('{"name": "a browser extension"}')


def a_linked_checkpoint(path):
    ours(path.parent / "elsewhere")
    path.symlink_to("elsewhere")


def state(folder):
    """All that is in it, by name: contents, and where links lead."""
    return {
        str(path.relative_to(folder)): os.readlink(str(path))
        if path.is_symlink()
        else path.read_text() if path.is_file() else None
        for path in folder.rglob("*")
    }  # fmt: skip


THEIRS = [a_file, a_link, a_dangling_link, a_directory, a_manifest_of_others, a_linked_checkpoint]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("make", THEIRS)
def test_what_is_not_ours_stays_whoever_came_first(tmp_path, make, replace):
    """It is there at the start, or appears while the new one is written."""
    with atomic_directory(tmp_path / "later", replace) as partial:
        (partial / "x").write_text("x")
    make(tmp_path / "d")
    before = state(tmp_path)
    with pytest.raises(MinigptError, match="--out"), atomic_directory(tmp_path / "d", replace):
        raise AssertionError("no work is begun")
    assert state(tmp_path) == before
    (tmp_path / "e").mkdir()
    appeared = pytest.raises(StorageError, match="has appeared meanwhile")
    with appeared, atomic_directory(tmp_path / "e" / "d", replace) as partial:
        (partial / "new").write_text("new")
        make(tmp_path / "e" / "d")
        before = {k: v for k, v in state(tmp_path / "e").items() if not k.startswith(".")}
    assert state(tmp_path / "e") == before


def test_a_whole_checkpoint_stays_too_where_nobody_asked(tmp_path):
    ours(tmp_path / "d", old="old")
    with pytest.raises(UsageError, match="exists"), atomic_directory(tmp_path / "d"):
        pass
    assert (tmp_path / "d" / "old").exists()


def test_an_empty_directory_is_filled(tmp_path):
    (tmp_path / "d").mkdir()
    with atomic_directory(tmp_path / "d") as partial:
        (partial / "new").write_text("new")
    assert (tmp_path / "d" / "new").exists()


def test_two_processes_do_not_touch_each_others(tmp_path):
    """Both write at the same time; the first one done has the place."""
    with pytest.raises(StorageError, match="appeared"), atomic_directory(tmp_path / "d") as one:
        (one / "one").write_text("1")
        with atomic_directory(tmp_path / "d") as two:
            (two / "two").write_text("2")
        assert (one / "one").read_text() == "1"
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


HOLDER = """
import sys, time
from pathlib import Path
from minigpt.base.files import atomic_directory
with atomic_directory(Path(sys.argv[1])) as partial:
    (partial / "x").write_text("x")
    print(partial, flush=True)
    sys.stdin.read()
"""


def holder(target):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(target)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    living, theirs = holder(tmp_path / "step_1")
    killed, abandoned = holder(tmp_path / "step_1")
    other, of_another_step = holder(tmp_path / "step_2")
    for process in (killed, other):
        process.kill()
        process.wait()
    mine = [".step_1.partial", ".step_1.backup", ".partial", ".step_1.0123.partial"]
    for name in mine:
        (tmp_path / name).mkdir()
    with pytest.raises(KeyError), atomic_directory(tmp_path / "step_1"):
        raise KeyError
    assert theirs.exists() and of_another_step.exists() and not abandoned.exists()
    with atomic_directory(tmp_path / "step_3", replace=True):
        pass
    assert theirs.exists() and not of_another_step.exists()
    assert all((tmp_path / name).is_dir() for name in mine)
    living.communicate()
    assert living.returncode == 0 and (tmp_path / "step_1" / "x").exists()


def test_what_is_just_being_made_is_never_taken_for_abandoned(tmp_path):
    """Four write side by side, each removing at every step what seems to be held by nobody."""

    def write(writer):
        for step in range(40):
            with atomic_directory(tmp_path / f"{writer}_{step}", replace=True) as partial:
                (partial / "x").write_text("x")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(list(tmp_path.glob("*_*/x"))) == 160 and not list(tmp_path.glob(".*"))


def test_the_last_whole_directory_is_kept_until_the_next_has_its_name(tmp_path, monkeypatch):
    """A crash between the two renames has left the old one beside its place; so may the next."""
    old = ".d.0123456789abcdef.replaced"
    ours(tmp_path / old)

    def crash(*paths):
        raise OSError("a crash")

    saving = atomic_directory(tmp_path / "d", replace=True)
    with pytest.raises(StorageError, match="a crash"), saving:
        monkeypatch.setattr(os, "rename", crash)
    assert [p.name for p in tmp_path.iterdir()] == [old]
    monkeypatch.undo()
    with atomic_directory(tmp_path / "d", replace=True):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


WRITER = """
import itertools, sys
from pathlib import Path
from minigpt.base.files import atomic_directory
for i in itertools.count():
    with atomic_directory(Path(sys.argv[1]), replace=True) as partial:
        for name in "abcd":
            (partial / name).write_text(str(i) * 20000)
        (partial / "manifest.json").write_text('{"minigpt": "0"}')
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
        beside = list(tmp_path.glob(".%d.*.replaced" % attempt))
        whole = target if target.exists() else beside[0]
        assert len({(whole / name).read_text() for name in "abcd"}) == 1
        with atomic_directory(target, replace=True):  # and the next one tidies up
            pass
        assert not list(tmp_path.glob(".*"))


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
