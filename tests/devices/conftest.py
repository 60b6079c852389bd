"""Tools on a PATH of their own."""

import pytest


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts a shell script called `name` on the PATH, where no real one stands."""
    monkeypatch.setenv("PATH", "%s:/usr/bin:/bin" % tmp_path)

    def make(name, body):
        path = tmp_path / name
        path.write_text("#!/bin/sh\n" + body)
        path.chmod(0o755)

    return make
