"""Times two ways to do one thing, in turn, in one run: a noisy machine is noisy for both."""

from __future__ import annotations

import statistics
import time
from typing import Callable, Dict


def side_by_side(ways: Dict[str, Callable[[], object]], rounds: int) -> Dict[str, float]:
    """Median seconds of each way; each is run once before, unmeasured."""
    for way in ways.values():
        way()
    seconds: Dict[str, list] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(what: str, medians: Dict[str, float], against: str) -> None:
    """Prints each median, and the ratio of `against` to it: above 1 is faster than `against`."""
    print(what)
    for name, median in medians.items():
        ratio = medians[against] / median
        print("  %-28s %9.2f ms   %.2fx of %s" % (name, 1e3 * median, ratio, against))
