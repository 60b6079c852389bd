"""Runs a program that nobody has read: one that a model has written.

It gets a world of its own, made of Linux namespaces by guard.py: an empty file system in which
Python can be read, a scratch folder that is gone afterwards, no network, no other process, no
environment, a user without rights, and limits on time, memory, files and processes. It is process
1 there, so when it ends or its time is over, every process it has started ends with it.

This keeps a program from doing harm, unless the kernel has a fault. It does not keep it from being
counted as right: tests in the same process as what they test can be deceived.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Dict, NamedTuple

from minigpt.base.errors import DeviceError, UsageError

_GUARD = Path(__file__).with_name("guard.py")
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")  # where Python's libraries are
_LAST_LINE = "\n__import__('os').write(2, b'%s')\n"
_EXCEPTION = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception|Interrupt|Iteration))\b", re.M)
_PRINTED = 15 << 20  # characters; guard.py lets no file have more than 16 MB
_KILLED = 137  # by SIGKILL, with which the kernel ends what has used up its CPU time


@dataclass(frozen=True)
class Limits:
    """Seconds on the clock and of the CPU, and bytes of memory for each of at most 8 processes."""

    seconds: float = 5.0
    memory: int = 1 << 30

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 3600:
            raise UsageError(f"--timeout is {self.seconds}", "it must be 1 to 3600 seconds")
        if self.memory < 64 << 20:
            what = f"--memory is {self.memory >> 20} MB, in which Python does not start"
            raise UsageError(what, "it must be at least 64")


class Verdict(NamedTuple):
    """Whether a program ran to its last line. `reason` is "passed", "timed out", "ended early"
    (before its last line, with no error to be seen), "printed too much", "killed", or the name of
    an exception.
    """

    passed: bool
    reason: str


def run_program(source: str, limits: Limits = Limits()) -> Verdict:
    """Runs Python source in the sandbox. DeviceError when there can be none on this machine."""
    if not sys.platform.startswith("linux"):
        raise DeviceError("running programs of a model needs Linux", "evaluate on a Linux machine")
    if "\0" in source:  # some versions of Python leave out such a line and go on
        return Verdict(False, "SyntaxError")
    token = secrets.token_hex(16)
    root = os.path.realpath(tempfile.mkdtemp(prefix="minigpt-sandbox-"))
    python = str(Path(os.path.realpath(sys.executable)).parent.parent)
    readable = {*_SYSTEM, sys.prefix, sys.base_prefix, python} - {"/"}
    try:
        with tempfile.TemporaryFile() as output:
            orders = {"source": source + _LAST_LINE % token, "root": root, **asdict(limits)}
            # Sorted: a folder comes before what is in it.
            orders.update(parent=os.getpid(), readable=sorted(readable))
            code = _run_guard(orders, output)
            output.seek(0)
            return _verdict(code, output.read().decode("utf-8", "replace"), token)
    finally:
        os.rmdir(root)


@functools.lru_cache(maxsize=1)
def sandbox_missing() -> str:
    """Why no sandbox can be had on this machine; empty when one can."""
    try:
        verdict = run_program("import random, re, typing", Limits(60.0))
    except DeviceError as error:
        return error.what
    return "" if verdict.passed else f"Python does not start in the sandbox: {verdict.reason}"


def _run_guard(orders: Dict[str, Any], output: IO[bytes]) -> int:
    """The exit code of the program; _KILLED when its time is over."""
    try:
        # Out of time, it is killed, and with it, by the kernel, process 1 and all others.
        guard = subprocess.run(
            [sys.executable, "-I", "-S", str(_GUARD)], input=json.dumps(orders).encode(),
            stdout=subprocess.PIPE, stderr=output, env={}, cwd="/", start_new_session=True,
            timeout=orders["seconds"], check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return _KILLED
    if guard.stdout:
        what = f"no sandbox can be had here: {guard.stdout.decode('utf-8', 'replace')}"
        raise DeviceError(what, "evaluate where Linux namespaces are allowed")
    return guard.returncode


def _verdict(code: int, output: str, token: str) -> Verdict:
    if code == _KILLED:
        return Verdict(False, "timed out")
    if code == 0 and token in output:
        return Verdict(True, "passed")
    if len(output) >= _PRINTED:
        return Verdict(False, "printed too much")
    if code < 0 or code > 128:
        return Verdict(False, "killed")
    raised = _EXCEPTION.findall(output[-4000:])
    return Verdict(False, raised[-1] if raised and code else "ended early")
