"""What Moreh's tool says of the accelerator: `moreh-smi`, or `ap-smi` from framework 25.5 on.

Its text is for people. A program needs one table of it, whose cells stand between bars under a row
of headings; widths vary, the flavor is headed Model or Flavor, an idle accelerator shows dashes. No
text makes this fail. Formats: docs.moreh.io (2023 to 2024), moreh-dev/moai-examples (2025).
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import List, Optional

from minigpt.base.errors import DeviceError
from minigpt.base.text import visible

_MOST = 1 << 16  # bytes that are read; who prints more prints no table


@dataclass(frozen=True)
class VirtualDevice:
    """What PyTorch sees as one device. An idle one shows no memory."""

    flavor: str  # "-" where none is set
    total_mib: Optional[int]
    running: bool  # whether a program uses it


def parse_smi(text: str) -> List[VirtualDevice]:
    """The devices in what `moreh-smi` or `ap-smi` prints."""
    found, headings = [], [""]
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().split("|")[1:-1]]
        if cells and cells[0].lower() in ("device", "#"):
            headings = [cell.lower() for cell in cells]
        elif len(cells) == len(headings) and re.fullmatch(r"(\*\s*)?[0-9]{1,9}", cells[0]):
            row = dict(zip(headings, cells))
            flavor = row.get("model", row.get("flavor"))
            used = row.get("memory usage", row.get("mem usage(%)", ""))
            total = re.fullmatch(r"([0-9]{1,15})\s*MiB", row.get("total memory", ""))
            if flavor:  # the table of processes has none
                mib = int(total.group(1)) if total else None
                found.append(VirtualDevice(flavor, mib, re.match("[0-9]", used) is not None))
    return found


def find_tool() -> Optional[str]:
    """The path of Moreh's tool; None where there is none."""
    return shutil.which("moreh-smi") or shutil.which("ap-smi")


def run_tool(path: str, timeout: float) -> str:
    """What the tool prints. DeviceError when it fails, or takes longer than `timeout` seconds."""
    name = os.path.basename(path)
    try:
        process = subprocess.Popen(
            [path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise DeviceError(f"{path} cannot be started: {error.strerror or error}") from None
    try:
        ends = time.monotonic() + timeout
        text = _read(process, ends)
        code = process.wait(max(0.0, ends - time.monotonic()))
    except BaseException as error:  # Ctrl-C too: it does not reach another session
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)  # and no longer, as it may hang in a driver
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        what = f"{name} gave no answer within {timeout:g} s"
        raise DeviceError(what, "try it by itself") from None
    if code != 0:
        last = text.rstrip().rpartition("\n")[2].strip()[:200]
        raise DeviceError(f"{name} failed with exit code {code}{last and ': ' + visible(last)}")
    return text


def _read(process: subprocess.Popen[bytes], ends: float) -> str:
    """All that the process prints until it closes its output; TimeoutExpired after `ends`."""
    assert process.stdout is not None
    data = b""
    with process.stdout as output:
        while len(data) < _MOST:
            left = max(0.0, ends - time.monotonic())
            if not select.select([output], [], [], left)[0]:
                raise subprocess.TimeoutExpired(process.args, left)
            piece = os.read(output.fileno(), _MOST)
            if not piece:
                break
            data += piece
    return data.decode("utf-8", "replace")
