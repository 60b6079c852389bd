"""Every test starts from the same random numbers, on one thread, so that it can be repeated.

One that hangs ends, with the lines it waits at on the screen, so that the others are still run.
"""

import faulthandler
import os

import pytest
import torch

# Seconds for one test and the fixtures it makes; docs/reliability.md has the long ones.
LONGEST = 36_000 if os.environ.get("MINIGPT_FAULTS") == "all" else 300
STDERR = []  # the real one: pytest catches what a test writes to its own


def pytest_configure():
    STDERR.append(os.dup(2))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    faulthandler.dump_traceback_later(LONGEST, exit=True, file=STDERR[0])


def pytest_sessionfinish():
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def repeatable():
    torch.manual_seed(20240417)
    torch.set_num_threads(1)


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts a shell script called `name` on the PATH, where no real one stands."""
    monkeypatch.setenv("PATH", "%s:/usr/bin:/bin" % tmp_path)

    def make(name, body):
        path = tmp_path / name
        path.write_text("#!/bin/sh\n" + body)
        path.chmod(0o755)

    return make
