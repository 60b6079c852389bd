"""What `moreh-smi` (MoAI framework up to 25.1) and `ap-smi` (25.5) print, as data.

A row is what stands between bars, and the header row above it says what each cell is. Nothing
more is relied on: widths vary, a date or messages stand around the tables, the flavor is headed
Model or Flavor, an idle accelerator shows dashes. What cannot be read is left out or None; no
text makes a parser fail. The formats are those of docs.moreh.io (2023 to 2024) and of the
repository moreh-dev/moai-examples (2025).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Tuple

from minigpt.errors import DeviceError

Row = Dict[str, str]  # heading, lower case: cell


@dataclass(frozen=True)
class Accelerator:
    """One virtual device. An idle one has no memory and no utilization."""

    index: int
    default: bool  # the one a program gets when it does not choose
    name: str
    flavor: str  # empty where none is set
    used_mib: Optional[int] = None
    total_mib: Optional[int] = None
    used_percent: Optional[int] = None  # ap-smi: memory in percent, not in MiB
    utilization: Optional[int] = None  # percent


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
    """One physical GPU behind the accelerator: a row of `moreh-smi -p`. Celsius and percent."""

    index: int
    location: str  # node:place
    temperature: Optional[int]
    memory_temperature: Optional[int]
    utilization: Optional[int]
    memory_utilization: Optional[int]
    memory_usage: Optional[int]


def parse_moreh_smi(text: str) -> Smi:
    """Reads `moreh-smi`."""
    devices, processes = [], []
    for row in _rows(text):
        place = _place(row.get("device", ""))
        flavor = row.get("model", row.get("flavor"))
        if place and "pid" in row:
            used = _number(row.get("memory usage"), "MiB")
            pid, command = _number(row["pid"]), row.get("process", "")
            processes.append(Process(place[0], row.get("job id", ""), pid, command, used))
        elif place and flavor is not None:
            devices.append(
                Accelerator(
                    *place,
                    row.get("name", ""),
                    "" if flavor == "-" else flavor,
                    used_mib=_number(row.get("memory usage"), "MiB"),
                    total_mib=_number(row.get("total memory"), "MiB"),
                    utilization=_number(row.get("utilization"), "%"),
                )
            )
    return Smi(_version(text, "Current"), _version(text, "Latest"), devices, processes)


def parse_ap_smi(text: str) -> Smi:
    """Reads `ap-smi`, which shows percent in place of MiB, and no processes."""
    devices = []
    for row in _rows(text):
        place = _place(row.get("#", ""))
        if place and "flavor" in row:
            flavor = "" if row["flavor"] == "-" else row["flavor"]
            used = _number(row.get("mem usage(%)"), "%?")
            busy = _number(row.get("gpu util(%)"), "%?")
            name = row.get("name", "")
            devices.append(Accelerator(*place, name, flavor, used_percent=used, utilization=busy))
    return Smi(_version(text, "Framework"), _version(text, "Latest"), devices, [])


def parse_gcds(text: str) -> List[Gcd]:
    """Reads `moreh-smi -p`."""
    gcds = []
    for row in _rows(text):
        index = _number(row.get("dev"))
        if index is not None and "location" in row:
            celsius = [_number(row.get(heading), "C") for heading in ("dev temp", "mem temp")]
            shares = ("dev util", "mem util", "mem usage")
            percent = [_number(row.get(heading), "%") for heading in shares]
            gcds.append(Gcd(index, row["location"], *celsius, *percent))
    return gcds


_TOOLS = (("moreh-smi", parse_moreh_smi), ("ap-smi", parse_ap_smi))


def read_smi(timeout: float) -> Optional[Tuple[str, Smi]]:
    """Runs the tool that is here: its name, and what it shows; None where there is none.
    DeviceError when it fails, shows no accelerator, or takes longer than `timeout` seconds.
    """
    for name, parser in _TOOLS:
        text = run_tool([name], timeout)
        if text is None:
            continue
        smi = parser(text)
        if not smi.devices:
            raise DeviceError("%s shows no accelerator%s" % (name, _says(text)))
        return name, smi
    return None


def run_tool(words: List[str], timeout: float) -> Optional[str]:
    """What a command prints; None when it is not on the PATH. DeviceError when it fails or takes
    longer than `timeout` seconds; then it is ended, with all it started.
    """
    path = shutil.which(words[0])
    if path is None:
        return None
    name, pipe = " ".join(words), subprocess.PIPE
    try:
        process = subprocess.Popen(
            [path, *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
        )
    except OSError as error:
        raise DeviceError("%s cannot be started: %s" % (path, error.strerror or error)) from None
    try:
        out, complaint = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise DeviceError("%s gave no answer within %g s" % (name, timeout)) from None
    finally:
        _end(process)
    if process.returncode != 0:
        said = _says(complaint.decode("utf-8", "replace") or out.decode("utf-8", "replace"))
        raise DeviceError("%s failed with exit code %d%s" % (name, process.returncode, said))
    return out.decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Also what it started: a child of a tool would keep the pipe open, and us waiting."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _says(text: str) -> str:
    """The last line of a message, which in a traceback is the one that says why."""
    lines = text.strip().splitlines()
    return ": %s" % lines[-1].strip()[:200] if lines else ""


def _rows(text: str) -> Iterator[Row]:
    """The rows under every header; a header is a row whose first cell is Device, Dev or #."""
    headings: List[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().split("|")[1:-1]]
        if cells and cells[0].lower() in ("device", "dev", "#"):
            headings = [cell.lower() for cell in cells]
        elif headings and len(cells) >= len(headings):
            yield dict(zip(headings, _join(cells, headings)))


def _join(cells: List[str], headings: List[str]) -> List[str]:
    """A command line may hold bars of its own; then there are more cells than headings."""
    extra = len(cells) - len(headings)
    if extra == 0 or "process" not in headings:
        return cells
    place = headings.index("process")
    return [
        *cells[:place],
        " | ".join(cells[place : place + extra + 1]),
        *cells[place + extra + 1 :],
    ]


def _place(cell: str) -> Optional[Tuple[int, bool]]:
    """`* 0` is device 0, the default."""
    found = re.fullmatch(r"(\*?)\s*([0-9]{1,9})", cell)
    return (int(found.group(2)), bool(found.group(1))) if found else None


def _number(cell: Optional[str], unit: str = "") -> Optional[int]:
    found = re.fullmatch(r"([0-9]{1,15})\s*" + unit, cell or "")
    return int(found.group(1)) if found else None


def _version(text: str, which: str) -> str:
    found = re.search(which + r"\W+Version\s*:\s*(v?[0-9][\w.+-]*)", text)
    return found.group(1) if found else ""
