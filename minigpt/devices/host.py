"""What the machine that a program runs on has."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Optional, Tuple


def host_memory() -> Tuple[Optional[int], Optional[int]]:
    """Bytes in all, and bytes that a program may still take; None where the system does not say.
    In a container, all is its limit (control groups, version 2).
    """
    try:
        found = dict(re.findall(r"(\w+): +(\d+) kB", Path("/proc/meminfo").read_text()))
        total, free = int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024
    except (OSError, KeyError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
        except (AttributeError, ValueError, OSError):
            return None, None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        cache = dict(re.findall(r"(\w+) (\d+)", (group / "memory.stat").read_text()))
        left = limit - used + int(cache["inactive_file"])
    except (OSError, ValueError, KeyError):  # no such limit, or "max"
        return total, free
    return min(total, limit), max(min(free, left), 0)
