"""What `moreh-smi` (MoAI framework up to 25.1) and `ap-smi` (25.5) print, as data.

A row is what stands between bars, and the header row above it says what each cell is. Nothing
more is relied on: widths vary, a date or messages stand around the tables, the flavor is headed
Model or Flavor, an idle accelerator shows dashes. What cannot be read is left out or None; no
text makes a parser fail. The formats are those of docs.moreh.io (2023 to 2024) and of the
repository moreh-dev/moai-examples (2025).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Tuple

from minigpt.base.errors import DeviceError


@dataclass(frozen=True)
class Accelerator:
    """One virtual device. An idle one shows no memory and no utilization."""

    index: int
    default: bool  # the one a program gets when it does not choose
    name: str
    flavor: str  # empty where none is set
    used_mib: Optional[int]
    total_mib: Optional[int]
    utilization: Optional[int]  # percent
    used_percent: Optional[int] = None  # ap-smi gives this in place of MiB


@dataclass(frozen=True)
class Process:
    """A program that uses an accelerator."""

    device: int
    job: str
    pid: Optional[int]
    command: str
    used_mib: Optional[int]


@dataclass(frozen=True)
class Smi:
    """All a tool shows. Versions are of the MoAI framework; empty where none is shown."""

    version: str
    latest: str
    devices: List[Accelerator]
    processes: List[Process]


@dataclass(frozen=True)
class Gcd:
    """One physical GPU behind the accelerator: a row of `moreh-smi -p`."""

    index: int
    location: str  # node:place
    temperature: Optional[int]  # Celsius
    utilization: Optional[int]  # percent


def parse_moreh_smi(text: str) -> Smi:
    """Reads `moreh-smi`."""
    return _parse(text, "Current")


def parse_ap_smi(text: str) -> Smi:
    """Reads `ap-smi`, which lists no processes."""
    return _parse(text, "Framework")


def parse_gcds(text: str) -> List[Gcd]:
    """Reads `moreh-smi -p`."""
    gcds = []
    for row in _rows(text):
        index = _number(row.get("dev", ""))
        if index is not None and "location" in row:
            heat, busy = _number(row.get("dev temp", ""), "C"), _number(row.get("dev util", ""))
            gcds.append(Gcd(index, row["location"], heat, busy))
    return gcds


def read_smi(timeout: float) -> Optional[Tuple[str, Smi]]:
    """Runs the tool that is here: its name, and what it shows; None where there is none.
    DeviceError when it fails, shows no accelerator, or takes longer than `timeout` seconds.
    """
    for name, parser in (("moreh-smi", parse_moreh_smi), ("ap-smi", parse_ap_smi)):
        text = run_tool([name], timeout)
        if text is None:
            continue
        smi = parser(text)
        if not smi.devices:
            raise DeviceError("%s shows no accelerator%s" % (name, _last_line(text)))
        return name, smi
    return None


def run_tool(words: List[str], timeout: float) -> Optional[str]:
    """What a command prints; None when it is not on the PATH. DeviceError when it fails or takes
    longer than `timeout` seconds; then it is ended with all it started, for a child of it would
    keep the pipe open.
    """
    path = shutil.which(words[0])
    if path is None:
        return None
    try:
        process = subprocess.Popen(
            [path, *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise DeviceError("%s cannot be started: %s" % (path, error.strerror or error)) from None
    with process:
        try:
            printed, complaint = process.communicate(timeout=timeout)
        except BaseException as error:  # Ctrl-C too: it does not reach another session
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            what = "%s gave no answer within %g s" % (" ".join(words), timeout)
            raise DeviceError(what, "try it by itself") from None
    text = printed.decode("utf-8", "replace")
    if process.returncode != 0:
        said = _last_line(complaint.decode("utf-8", "replace") or text)
        what = "%s failed with exit code %d%s" % (" ".join(words), process.returncode, said)
        raise DeviceError(what)
    return text


def _parse(text: str, current: str) -> Smi:
    devices, processes = [], []
    for row in _rows(text):
        place = re.fullmatch(r"(\*?)\s*([0-9]{1,9})", row.get("device", row.get("#", "")))
        if place is None:
            continue
        index, used = int(place.group(2)), _number(row.get("memory usage", ""), "MiB")
        flavor = row.get("model", row.get("flavor"))
        if "pid" in row:
            job, command = row.get("job id", ""), row.get("process", "")
            processes.append(Process(index, job, _number(row["pid"]), command, used))
        elif flavor is not None:
            devices.append(
                Accelerator(
                    index,
                    place.group(1) == "*",
                    row.get("name", ""),
                    "" if flavor == "-" else flavor,
                    used,
                    _number(row.get("total memory", ""), "MiB"),
                    _number(row.get("utilization", row.get("gpu util(%)", ""))),
                    _number(row.get("mem usage(%)", "")),
                )
            )
    return Smi(_version(text, current), _version(text, "Latest"), devices, processes)


def _rows(text: str) -> Iterator[Dict[str, str]]:
    """The cells of each row by their headings, in lower case. A header begins Device, Dev or #."""
    headings: List[str] = []
    for line in text.splitlines():
        cells = line.strip().split("|")[1:-1]
        if cells and cells[0].strip().lower() in ("device", "dev", "#"):
            headings = [cell.strip().lower() for cell in cells]
        elif headings and len(cells) >= len(headings):
            if "process" in headings:  # a command line may hold bars of its own
                place, extra = headings.index("process"), len(cells) - len(headings)
                cells[place : place + extra + 1] = ["|".join(cells[place : place + extra + 1])]
            yield {heading: cell.strip() for heading, cell in zip(headings, cells)}


def _number(cell: str, unit: str = "%") -> Optional[int]:
    """`71%`, `100 %` or `43`, and with MiB `397 MiB`; a dash is None."""
    found = re.fullmatch(r"([0-9]{1,15})\s*(%s)?" % unit, cell)
    return int(found.group(1)) if found else None


def _version(text: str, which: str) -> str:
    found = re.search(which + r"\W+Version\s*:\s*([0-9][\w.+-]*)", text)
    return found.group(1) if found else ""


def _last_line(text: str) -> str:
    """The last line of a message, which in a traceback is the one that says why."""
    lines = text.strip().splitlines()
    return ": %s" % lines[-1].strip()[:200] if lines else ""
