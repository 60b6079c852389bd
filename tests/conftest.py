"""Every test starts from the same random numbers, on one thread, so that it can be repeated."""

import pytest
import torch


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
