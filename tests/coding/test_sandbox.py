"""What a program may do to the machine: nothing. Each of these tries, fails, and the harm is looked
for.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from minigpt.base.errors import DeviceError, UsageError
from minigpt.coding import sandbox
from minigpt.coding.sandbox import Limits, run_program, sandbox_missing
from tests.helpers.hostile import HOSTILE, OUTSIDE

pytestmark = pytest.mark.skipif(bool(sandbox_missing()), reason=sandbox_missing())

ROOT = Path(__file__).resolve().parents[2]
SHORT = Limits(1.0, 128 << 20)
PATIENT = Limits(20.0, 128 << 20)  # for what ends otherwise, on a machine that is busy, too
MARK = "minigpt-test-%d" % os.getpid()


def marked():
    """The processes of the whole machine that carry the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if MARK.encode() in path.read_bytes().split(b"\0"):
                found.append(path)
        except OSError:
            pass
    return found


def soon(condition, seconds=5.0):
    end = time.time() + seconds
    while not condition() and time.time() < end:
        time.sleep(0.02)
    return condition()


class World:
    """What there is outside to be harmed or read."""

    def __init__(self, folder):
        folder.chmod(0o777)
        self.victim = folder / "victim.txt"
        self.victim.write_text("still here")
        self.victim.chmod(0o666)
        self.bystander = subprocess.Popen(["sleep", "600"])
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.unix, self.abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.unix.bind(str(folder / "socket"))
        self.abstract.bind("\0" + MARK)
        for server in (self.unix, self.abstract):
            server.listen(5)
        os.chmod(str(folder / "socket"), 0o777)
        self.callers = 0
        for server in (self.tcp, self.unix, self.abstract):
            threading.Thread(target=self._count, args=(server,), daemon=True).start()
        handle, name = tempfile.mkstemp(prefix=".minigpt-test-", dir=str(Path.home()))
        os.write(handle, b"private")
        os.close(handle)
        self.private = Path(name)

    def _count(self, server):
        while True:
            server.accept()
            self.callers += 1

    def outside(self):
        """The beginning of a hostile program."""
        return OUTSIDE % (
            (
                str(self.victim),
                str(self.private),
                self.tcp.getsockname(),
                self.unix.getsockname(),
                "\0" + MARK,
                MARK + "-secret",
                (self.bystander.pid, os.getpid()),
                MARK,
            ),
        )

    def check(self):
        """Nothing of it has been harmed, reached or left over."""
        assert self.victim.read_text() == "still here"
        assert sorted(path.name for path in self.victim.parent.iterdir()) == [
            "socket",
            "victim.txt",
        ]
        assert self.bystander.poll() is None
        assert self.callers == 0
        assert soon(lambda: not marked())
        assert not any(Path(prefix, MARK).exists() for prefix in (sys.prefix, "/usr", "/"))


@pytest.fixture(scope="module")
def world():
    folder = Path(tempfile.mkdtemp())
    os.environ["MINIGPT_TEST_SECRET"] = MARK + "-secret"
    world = World(folder)
    yield world
    world.bystander.kill()
    world.bystander.wait()
    world.private.unlink()
    shutil.rmtree(str(folder))
    del os.environ["MINIGPT_TEST_SECRET"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name, world):
    program, reasons = HOSTILE[name]
    limits = SHORT if "timed out" in reasons else PATIENT
    verdict = run_program(world.outside() + program, limits)
    world.check()
    assert not verdict.passed and verdict.reason in reasons, verdict


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="the other tests run as an ordinary user already")
def test_hostile_as_an_ordinary_user(world):
    """The same where only a user namespace gives the rights to build the sandbox."""
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if python is None:
        pytest.skip("no Python that every user may run")
    programs = {name: world.outside() + program for name, (program, _) in HOSTILE.items()}
    folder = Path(tempfile.mkdtemp())
    try:
        for name in (
            "__init__",
            "base/__init__",
            "base/errors",
            "base/text",
            "coding/__init__",
            "coding/guard",
            "coding/sandbox",
        ):
            target = folder / "minigpt" / (name + ".py")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / "minigpt" / (name + ".py")).read_bytes())
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        verdicts = drive(python, folder, programs)
    finally:
        shutil.rmtree(str(folder))
    world.check()
    assert verdicts.pop("fine") == [True, "passed"] and len(verdicts) == len(HOSTILE)
    for name, (passed, reason) in verdicts.items():
        assert not passed and reason in HOSTILE[name][1], (name, reason)


DRIVER = """
import json, sys
sys.path.insert(0, %r)
from minigpt.coding.sandbox import Limits, run_program
for name, program in json.load(sys.stdin).items():
    verdict = run_program(program, Limits(1.0, 128 << 20))
    print(json.dumps([name, [verdict.passed, verdict.reason]]), flush=True)
"""


def drive(python, folder, programs):
    def become_nobody():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    done = subprocess.run(
        [python, "-c", DRIVER % str(folder)],
        input=json.dumps({"fine": "import re", **programs}).encode(),
        capture_output=True,
        cwd="/",
        preexec_fn=become_nobody,
    )
    assert done.returncode == 0, done.stderr.decode()
    return dict(json.loads(line) for line in done.stdout.decode().splitlines())


def test_a_program_that_is_right_passes():
    assert run_program("import math, re, random\nassert math.prod([2, 3]) == 6").passed


def test_it_has_a_folder_that_is_gone_afterwards():
    program = "open('x', 'x').write('y')\nimport tempfile\ntempfile.TemporaryFile().write(b'z')"
    assert run_program(program).passed and run_program(program).passed
    assert not list(Path(tempfile.gettempdir()).glob("minigpt-sandbox-*/*"))


def test_it_may_use_the_packages_of_this_python():
    assert run_program("import numpy\nassert numpy.ones(3).sum() == 3", Limits(20.0)).passed


def test_a_program_dies_with_who_runs_it(world, tmp_path):
    """SIGKILL leaves no time to clean up: an empty folder stays, and no process."""
    program = "%s\nfrom minigpt.coding.sandbox import *\nrun_program(%r, Limits(600.0))" % (
        "import sys; sys.path.insert(0, %r)" % str(ROOT),
        world.outside() + "survive()",
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    runner = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        assert soon(marked)
    finally:
        runner.send_signal(signal.SIGKILL)
        runner.wait()
    assert soon(lambda: not marked())


def test_what_the_machine_refuses_is_one_sentence(monkeypatch, tmp_path):
    guard = tmp_path / "guard.py"
    guard.write_text("import os, sys\nsys.stdin.read()\nos.write(1, b'unshare: not permitted')")
    monkeypatch.setattr(sandbox, "_GUARD", guard)
    with pytest.raises(DeviceError, match="unshare: not permitted"):
        run_program("pass")


def test_another_system_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(DeviceError, match="needs Linux"):
        run_program("pass")


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"seconds": float("nan")}, {"memory": 1 << 20}])
def test_limits_that_mean_nothing(wrong):
    with pytest.raises(UsageError):
        Limits(**wrong)
