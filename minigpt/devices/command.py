"""`python -m minigpt devices`: what this machine computes on, and why not on something else.

On MoAI no function of torch.cuda is called, since some of them (`get_device_name`) allocate the
whole cluster; there `moreh-smi` or `ap-smi` is asked.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import torch

from minigpt.devices.device import find_device, is_moai
from minigpt.devices.flavors import find_flavor
from minigpt.devices.smi import Accelerator, Process, Smi, parse_gcds, read_smi, run_tool
from minigpt.errors import DeviceError, UsageError
from minigpt.text import size

Lines = List[Tuple[str, str]]  # what it is about, what there is to say

_NOT_BUILT = "not here: this PyTorch is not built for it"

# Documented by Moreh in 2024 and 2025; shown where they are set.
_VARIABLES = {
    "MOREH_VISIBLE_DEVICE": "which accelerator a program gets",
    "MOREH_ENABLE_ADVANCED_PARALLELIZATION": "1 spreads a model over the GPUs",
    "MOREH_ADVANCED_PARALLELIZATION_MEMORY_USAGE_CORRECTION_RATIO": "percent of memory to plan with",
    "ACCELERATOR_PLATFORM_FLAVOR": "the flavor a program gets",
}


@dataclass
class DevicesConfig:
    """Says what is here: Python, PyTorch, and each kind of device with its memory, or why not."""

    timeout: float = 20.0
    """Seconds to wait for moreh-smi or ap-smi."""

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise UsageError("--timeout is %g" % self.timeout, "it must be more than 0 seconds")


def devices_command(config: DevicesConfig) -> None:
    """Prints what is here."""
    for about, text in describe(config.timeout):
        print(("%-9s %s" % (about, text)).rstrip())


def describe(timeout: float) -> Lines:
    """All there is to say, line by line; `timeout` seconds for a tool to answer."""
    machine = "%s %s" % (platform.system(), platform.machine())
    lines = [("python", "%s on %s" % (platform.python_version(), machine))]
    lines += [("torch", torch.__version__), ("cpu", _cpu())]
    lines += [*_gpus(), ("mps", _mps()), *_moai(timeout)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # _gpus has said it
        return [*lines, ("auto", "--device auto takes %s" % find_device("auto"))]


def _cpu() -> str:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    total, free = _memory()
    text = "%s cores, %s of memory" % (cores or "unknown", size(total) if total else "unknown")
    text += ", %s free" % (size(free) if free else "unknown")
    limit = _container_limit()
    return text + (", %s allowed here" % size(limit) if limit and limit < (total or 0) else "")


def _memory() -> Tuple[Optional[int], Optional[int]]:
    """Bytes in all, and bytes that a program may still take; None where nothing tells."""
    try:
        text = Path("/proc/meminfo").read_text()
        found: Dict[str, str] = dict(re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE))
        return int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024
    except (OSError, KeyError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    except (AttributeError, ValueError, OSError):
        return None, None


def _container_limit() -> Optional[int]:
    """The memory limit of the control group (version 2, then 1), in bytes."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def _gpus() -> Lines:
    if is_moai():
        return [("cuda", "cuda:0 is the MoAI accelerator; it is not asked, lest it be allocated")]
    here = "rocm" if torch.version.hip else "cuda"
    other = ("cuda" if here == "rocm" else "rocm", _NOT_BUILT)
    if here == "cuda" and torch.version.cuda is None:
        return [("cuda", _NOT_BUILT), other]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return [(here, _gpu(i, here)) for i in range(torch.cuda.device_count())] + [other]
    why = str(caught[0].message).split(". ")[0] if caught else "no GPU is found"
    return [(here, "not here: %s" % why), other]


def _gpu(index: int, kind: str) -> str:
    properties = torch.cuda.get_device_properties(index)
    try:
        free = size(torch.cuda.mem_get_info(index)[0])
    except RuntimeError:  # another program has it to itself, or all of its memory
        free = "unknown"
    bf16 = "bf16" if kind == "rocm" or properties.major >= 8 else "no bf16"
    memory = "%s of memory, %s free" % (size(properties.total_memory), free)
    return "%d: %s, %s, %s" % (index, properties.name, memory, bf16)


def _mps() -> str:
    if not hasattr(torch.backends, "mps") or not torch.backends.mps.is_built():
        return _NOT_BUILT
    here = torch.backends.mps.is_available()
    return "here; its memory is the CPU's" if here else "not here: no Apple GPU is found"


def _moai(timeout: float) -> Lines:
    if not is_moai():
        tool = shutil.which("moreh-smi") or shutil.which("ap-smi")
        hint = "; %s is here, so another environment may have it" % tool if tool else ""
        return [("moai", "not here: this PyTorch is not Moreh's" + hint)]
    version = getattr(torch.version, "moreh", None)
    missing = "torch.version.moreh is missing: the installation is broken"
    lines = [("moai", "framework %s" % version if version else missing)]
    try:
        shown = read_smi(timeout)
        if shown is None:
            why = "neither moreh-smi nor ap-smi is on the PATH; they are in MoAI's environment"
            lines.append(("", why))
        else:
            lines += _shown(*shown, timeout)
    except DeviceError as error:
        lines.append(("", str(error)))
    values = ((name, os.environ.get(name), what) for name, what in _VARIABLES.items())
    return lines + [("", "%s=%s: %s" % each) for each in values if each[1] is not None]


def _shown(tool: str, smi: Smi, timeout: float) -> Lines:
    """What `tool` shows, and how to change it."""
    texts = ["%s: version %s, latest %s" % (tool, smi.version or "-", smi.latest or "-")]
    for device in smi.devices:
        texts += [_accelerator(device), "    " + _flavor(device)]
    texts += [_process(process) for process in smi.processes]
    if tool == "ap-smi":
        texts.append("to change the flavor: ACCELERATOR_PLATFORM_FLAVOR=NAME before the command")
    else:
        texts += _gcds(timeout) if smi.processes else []
        when = "not while a program runs" + (", as one does now" if smi.processes else "")
        texts.append("to change the flavor: moreh-switch-model (%s)" % when)
    return [("", text) for text in texts]


def _accelerator(device: Accelerator) -> str:
    star = "*" if device.default else " "
    text = "%s %d %s, %s" % (star, device.index, device.name, device.flavor or "no flavor")
    if device.used_mib is not None and device.total_mib is not None:
        text += ", {:,} of {:,} MiB used".format(device.used_mib, device.total_mib)
    if device.used_percent is not None:
        text += ", %d%% of memory used" % device.used_percent
    idle = device.utilization is None
    return text + (", idle" if idle else ", %d%% busy" % device.utilization)


def _flavor(device: Accelerator) -> str:
    flavor = find_flavor(device.flavor)
    if flavor is None:
        return "how many GPUs that is, is not published"
    plural = "" if flavor.nodes == 1 else "s"
    source = "inferred from the name" if flavor.inferred else "as on KT's cloud"
    return "{} GCDs, {:,} MiB ({:g} MI250 on {} node{}, {})".format(
        flavor.gcds, flavor.memory_mib, flavor.mi250, flavor.nodes, plural, source
    )


def _process(process: Process) -> str:
    used = "-" if process.used_mib is None else "{:,} MiB".format(process.used_mib)
    pid = "-" if process.pid is None else process.pid
    text = "on %d: process %s, job %s, %s: %s"
    return text % (process.device, pid, process.job, used, process.command)


def _gcds(timeout: float) -> List[str]:
    """`moreh-smi -p` in a line: a GCD that idles while others work is a node in trouble."""
    gcds = parse_gcds(run_tool(["moreh-smi", "-p"], timeout) or "")
    busy = [gcd.utilization for gcd in gcds if gcd.utilization is not None]
    heat = [gcd.temperature for gcd in gcds if gcd.temperature is not None]
    if not busy or not heat:
        return []
    text = "moreh-smi -p: %d GCDs, %d to %d%% busy, at most %d C"
    return [text % (len(gcds), min(busy), max(busy), max(heat))]
