"""Whether other programs want the cores, asked before PyTorch is loaded.

PyTorch's threads (OpenMP) wait for each other by spinning, which is fastest while they have the
cores to themselves. Where others run, a thread spins for one that is not running, and a step can
take many times as long (docs/benchmarks.md). What decides is read once, when the library is loaded:
OMP_WAIT_POLICY. A person's own setting stays.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import List, Tuple

_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
_MOMENT = 0.1  # seconds looked at, at least; Linux counts in hundredths
_FREE = 0.5  # of a core may be missing
found: List[str] = []  # what a run says of it


def share_cores(since: Tuple[float, float]) -> None:
    """Lets threads wait without spinning if others, `since` then (of `now`), have left fewer cores
    of this machine than this process may use. Then `found` says so.
    """
    with suppress(OSError, ValueError, AttributeError):  # no Linux: as it is
        time.sleep(max(0.0, since[0] + _MOMENT - time.perf_counter()))
        seconds, used = (after - before for after, before in zip(now(), since))
        mine = min(len(os.sched_getaffinity(0)), os.cpu_count() or 1)
        others, said = used / seconds, any(name in os.environ for name in _SETTINGS)
        if mine > 1 and not said and (os.cpu_count() or 1) - others < mine - _FREE:
            os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
            busy = f"other programs keep {others:.1f} of {os.cpu_count()} cores busy"
            found.append(f"{busy}: threads wait without spinning (OMP_WAIT_POLICY=PASSIVE)")


def now() -> Tuple[float, float]:
    """The time, and the seconds that others have computed on all cores so far, but for those that
    give way (nice). Zero where nothing tells.
    """
    with suppress(OSError, ValueError, AttributeError):
        with open("/proc/stat") as file:
            user, _, system = map(int, file.readline().split()[1:4])
        return time.perf_counter(), (user + system) / os.sysconf("SC_CLK_TCK") - time.process_time()
    return time.perf_counter(), 0.0
