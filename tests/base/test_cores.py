"""Threads that wait spin only where nobody else wants the cores."""

import os
import subprocess
import sys

import pytest

from minigpt.base import cores
from tests.helpers.runs import ROOT


@pytest.fixture
def quiet(monkeypatch):
    """No settings of the person's; returns a function that says what others do meanwhile."""
    for name in cores._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cores, "_MOMENT", -1e9)

    def meanwhile(used, all_cores=2, mine=2):
        """`used` core-seconds in one second, of a machine with so many cores."""
        monkeypatch.setattr(os, "cpu_count", lambda: all_cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(mine)), raising=False)
        monkeypatch.setattr(cores, "now", lambda: (11.0, 5.0 + used))
        monkeypatch.setattr(cores, "found", [])
        cores.share_cores((10.0, 5.0))
        return "".join(cores.found)

    return meanwhile


@pytest.mark.parametrize(
    ("used", "machine"), [(0.0, {}), (0.3, {}), (50, {"all_cores": 64}), (3, {"mine": 1})]
)
def test_where_there_is_room_nothing_is_set(quiet, used, machine):
    assert quiet(used, **machine) == "" and "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize(
    ("used", "machine"), [(1.0, {}), (2.0, {}), (63, {"all_cores": 64, "mine": 16})]
)
def test_where_others_compute_threads_give_way_and_a_line_says_so(quiet, used, machine):
    said = quiet(used, **machine)
    assert said.startswith("other programs keep %.1f of" % used)
    assert os.environ.pop("OMP_WAIT_POLICY") == "PASSIVE"


@pytest.mark.parametrize("name", cores._SETTINGS)
def test_a_persons_own_setting_stays(quiet, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    assert quiet(2.0) == "" and os.environ[name] == "4"


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="nothing tells what others do")
def test_busy_programs_are_seen():
    """Real ones, one for each core, and this process's own work is none of theirs."""
    code = "from minigpt.base import cores; a = cores.now(); import time; time.sleep(0.3)\n"
    code += "b = cores.now(); print((b[1] - a[1]) / (b[0] - a[0]))"
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=str(ROOT))
    finally:
        for loop in loops:
            loop.kill()
    assert float(said.stdout) > 0.5
