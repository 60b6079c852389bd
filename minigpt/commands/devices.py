"""`python -m minigpt devices`: what this machine computes on, and why not on something else.

On MoAI no function of torch.cuda is called, since some (`get_device_name`) allocate the cluster.
There, Moreh's tool is asked: `moreh-smi`, or `ap-smi` from framework 25.5 on. Its text is for
people. A program needs one table of it, whose cells stand between bars under a row of headings;
widths vary, the flavor is headed Model or Flavor, an idle accelerator shows dashes. No text makes
this fail. Formats: docs.moreh.io (2023 to 2024), moreh-dev/moai-examples (2025).
"""

from __future__ import annotations

import os
import platform
import re
import select
import shutil
import signal
import subprocess
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import List, Optional, Tuple

import torch

from minigpt.base.errors import DeviceError
from minigpt.base.text import size, visible
from minigpt.commands.options import DevicesConfig
from minigpt.devices.device import find_device, host_memory, is_moai
from minigpt.planning.peaks import GCD_MIB, find_flavor

Lines = List[Tuple[str, str]]  # what it is about, what there is to say
_NOT_BUILT = "not here: this PyTorch is not built for it"
_MOST = 1 << 16  # bytes that are read; who prints more prints no table
# Those of Moreh's documents and examples (2024, 2025) that choose what a program gets.
_VARIABLES = (
    "MOREH_VISIBLE_DEVICE", "ACCELERATOR_PLATFORM_FLAVOR", "MOREH_ENABLE_ADVANCED_PARALLELIZATION",
    "MOREH_ADVANCED_PARALLELIZATION_MEMORY_USAGE_CORRECTION_RATIO",
)  # fmt: skip


def devices_command(config: DevicesConfig) -> None:
    """Prints what is here."""
    for about, text in describe(config.timeout):
        print(f"{about:7} {text}")


def describe(timeout: float) -> Lines:
    """All there is to say, line by line; a tool has `timeout` seconds to answer."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    total, free = (size(count) if count else "unknown" for count in host_memory())
    mps = _NOT_BUILT
    if hasattr(torch.backends, "mps") and torch.backends.mps.is_built():
        here = torch.backends.mps.is_available()
        mps = "here; its memory is the CPU's" if here else "not here: no Apple GPU is found"
    lines = [
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", torch.__version__),
        ("cpu", f"{cores or 'unknown'} cores, {total} of memory, {free} free"),
        *_gpus(), ("mps", mps), *_moai(timeout),
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # _gpus has said it
        return [*lines, ("auto", f"--device auto takes {find_device('auto')}")]


def _gpus() -> Lines:
    if is_moai():
        return [("cuda", "cuda:0 is the MoAI accelerator, not asked: some calls allocate it")]
    here, other = ("rocm", "cuda") if torch.version.hip else ("cuda", "rocm")
    if here == "cuda" and torch.version.cuda is None:
        return [("cuda", _NOT_BUILT), ("rocm", _NOT_BUILT)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    lines = [(here, _gpu(index)) for index in range(count)]
    why = str(caught[0].message).split(". ")[0] if caught else "no GPU is found"
    return [*(lines or [(here, f"not here: {why}")]), (other, _NOT_BUILT)]


def _gpu(index: int) -> str:
    properties, free = torch.cuda.get_device_properties(index), "unknown"
    with suppress(RuntimeError):  # another program has it to itself, or all of its memory
        free = size(torch.cuda.mem_get_info(index)[0])
    bf16 = "bf16" if torch.version.hip or properties.major >= 8 else "no bf16"
    total = size(properties.total_memory)
    return f"{index}: {properties.name}, {total} of memory, {free} free, {bf16}"


def _moai(timeout: float) -> Lines:
    tool = find_tool()
    if not is_moai():
        hint = f"; but {tool} is here: activate its environment" if tool else ""
        return [("moai", "not here: this PyTorch is not Moreh's" + hint)]
    version = getattr(torch.version, "moreh", None) or "unknown: torch.version.moreh is missing"
    texts = _shown(tool, timeout) if tool else ["neither moreh-smi nor ap-smi is on the PATH"]
    texts += [f"{name}={visible(os.environ[name])}" for name in _VARIABLES if name in os.environ]
    return [("moai", f"MoAI framework {version}"), *(("", text) for text in texts)]


def _shown(tool: str, timeout: float) -> List[str]:
    """What the tool prints, and what that means for a program."""
    try:
        text = run_tool(tool, timeout)
    except DeviceError as error:
        return [str(error)]
    name, devices = os.path.basename(tool), parse_smi(text)
    lines = text.splitlines()
    flavors = {device.flavor: _flavor(device) for device in devices if device.flavor != "-"}
    lines += [f"{flavor}: {what}" for flavor, what in flavors.items()]
    lines += [] if devices else [f"{name} shows no accelerator"]
    now = ", as one does" if any(device.running for device in devices) else ""
    change = f"moreh-switch-model, but not while a program runs{now}"
    if name == "ap-smi":
        change = "ACCELERATOR_PLATFORM_FLAVOR=NAME before the command"
    return [visible(line) for line in [*lines, f"another flavor: {change}"]]


def _flavor(device: VirtualDevice) -> str:
    """How many GPUs the device's flavor is, as far as that is published."""
    flavor = find_flavor(device.flavor)
    if flavor is not None:
        source = "inferred from the name" if flavor.inferred else "as on KT's cloud"
        boards = f"{flavor.mi250:g} MI250, nodes: {flavor.nodes} ({source})"
        return f"{flavor.gcds} GCDs, {flavor.memory_mib:,} MiB: {boards}"
    if device.total_mib and device.total_mib % GCD_MIB == 0:
        return f"{device.total_mib // GCD_MIB} GCDs, by the total memory"
    return "how many GPUs that is, is not published"


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
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
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
