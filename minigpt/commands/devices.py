"""`python -m minigpt devices`: what this machine computes on, and why not on something else.

On MoAI no function of torch.cuda is called, since some of them (`get_device_name`) allocate the
whole cluster; there `moreh-smi` or `ap-smi` is asked.
"""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from dataclasses import dataclass
from typing import List, Optional, Tuple

import torch

from minigpt.base.errors import DeviceError, UsageError
from minigpt.base.text import size
from minigpt.devices.device import find_device, is_moai
from minigpt.devices.host import host_memory
from minigpt.devices.smi import Accelerator, Smi, parse_gcds, read_smi, run_tool
from minigpt.planning.flavors import GCD_MIB, find_flavor

Lines = List[Tuple[str, str]]  # what it is about, what there is to say

_NOT_BUILT = "not here: this PyTorch is not built for it"

# Those of Moreh's documents and examples (2024, 2025) that choose what a program gets.
_VARIABLES = (
    "MOREH_VISIBLE_DEVICE",
    "ACCELERATOR_PLATFORM_FLAVOR",
    "MOREH_ENABLE_ADVANCED_PARALLELIZATION",
    "MOREH_ADVANCED_PARALLELIZATION_MEMORY_USAGE_CORRECTION_RATIO",
)


@dataclass
class DevicesConfig:
    """Says what is here: Python, PyTorch, and each kind of device with its memory, or why not."""

    timeout: float = 20.0
    """Seconds to wait for moreh-smi or ap-smi."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= 3600:
            raise UsageError("--timeout is %g" % self.timeout, "it must be 1 to 3600 seconds")


def devices_command(config: DevicesConfig) -> None:
    """Prints what is here."""
    for about, text in describe(config.timeout):
        print("%-7s %s" % (about, text))


def describe(timeout: float) -> Lines:
    """All there is to say, line by line; a tool has `timeout` seconds to answer."""
    system = "%s on %s %s" % (platform.python_version(), platform.system(), platform.machine())
    lines = [("python", system), ("torch", torch.__version__), ("cpu", _cpu())]
    lines += [*_gpus(), ("mps", _mps()), *_moai(timeout)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # _gpus has said it
        return [*lines, ("auto", "--device auto takes %s" % find_device("auto"))]


def _cpu() -> str:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    total, free = (size(count) if count else "unknown" for count in host_memory())
    return "%s cores, %s of memory, %s free" % (cores or "unknown", total, free)


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
    return [*(lines or [(here, "not here: %s" % why)]), (other, _NOT_BUILT)]


def _gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    try:
        free = size(torch.cuda.mem_get_info(index)[0])
    except RuntimeError:  # another program has it to itself, or all of its memory
        free = "unknown"
    bf16 = "bf16" if torch.version.hip or properties.major >= 8 else "no bf16"
    what = (index, properties.name, size(properties.total_memory), free, bf16)
    return "%d: %s, %s of memory, %s free, %s" % what


def _mps() -> str:
    if not hasattr(torch.backends, "mps") or not torch.backends.mps.is_built():
        return _NOT_BUILT
    here = torch.backends.mps.is_available()
    return "here; its memory is the CPU's" if here else "not here: no Apple GPU is found"


def _moai(timeout: float) -> Lines:
    if not is_moai():
        tool = shutil.which("moreh-smi") or shutil.which("ap-smi")
        hint = "; but %s is here: activate its environment" % tool if tool else ""
        return [("moai", "not here: this PyTorch is not Moreh's" + hint)]
    version = getattr(torch.version, "moreh", None) or "unknown: torch.version.moreh is missing"
    texts = ["MoAI framework %s" % version]
    try:
        shown = read_smi(timeout)
        texts += _shown(*shown) if shown else ["neither moreh-smi nor ap-smi is on the PATH"]
        if shown and shown[1].processes:
            texts += _gcds(timeout)
    except DeviceError as error:
        texts.append(str(error))
    texts += ["%s=%s" % (name, os.environ[name]) for name in _VARIABLES if name in os.environ]
    return [("moai", texts[0]), *(("", text) for text in texts[1:])]


def _shown(tool: str, smi: Smi) -> List[str]:
    """What `tool` shows, and how to change it."""
    texts = ["%s: version %s, latest %s" % (tool, smi.version or "-", smi.latest or "-")]
    for device in smi.devices:
        texts += [_accelerator(device), *(["    " + _flavor(device)] if device.flavor else [])]
    for process in smi.processes:
        used, pid = _mib(process.used_mib), "-" if process.pid is None else process.pid
        what = (process.device, pid, process.job, used, process.command)
        texts.append("on %d: process %s, job %s, %s: %s" % what)
    if tool == "ap-smi":
        return [*texts, "another flavor: ACCELERATOR_PLATFORM_FLAVOR=NAME before the command"]
    now = ", as one does" if smi.processes else ""
    return [*texts, "another flavor: moreh-switch-model, but not while a program runs" + now]


def _accelerator(device: Accelerator) -> str:
    star, flavor = "*" if device.default else " ", device.flavor or "no flavor"
    text = "%s %d %s, %s, " % (star, device.index, device.name, flavor)
    if device.utilization is None:
        return text + "idle"
    used = "%s of %s" % (_mib(device.used_mib), _mib(device.total_mib))
    if device.used_percent is not None:
        used = "%d%% of memory" % device.used_percent
    return text + "%s used, %d%% busy" % (used, device.utilization)


def _flavor(device: Accelerator) -> str:
    flavor = find_flavor(device.flavor)
    if flavor is None:
        if device.total_mib and device.total_mib % GCD_MIB == 0:
            return "%d GCDs, by the total memory" % (device.total_mib // GCD_MIB)
        return "how many GPUs that is, is not published"
    source = "inferred from the name" if flavor.inferred else "as on KT's cloud"
    what = (flavor.gcds, _mib(flavor.memory_mib), flavor.mi250, flavor.nodes, source)
    return "%d GCDs, %s: %g MI250, nodes: %d (%s)" % what


def _mib(count: Optional[int]) -> str:
    return "-" if count is None else "%s MiB" % format(count, ",")


def _gcds(timeout: float) -> List[str]:
    """`moreh-smi -p` in a line."""
    gcds = parse_gcds(run_tool(["moreh-smi", "-p"], timeout) or "")
    busy = [gcd.utilization for gcd in gcds if gcd.utilization is not None]
    heat = [gcd.temperature for gcd in gcds if gcd.temperature is not None]
    if not busy or not heat:
        return []
    what = (len(gcds), min(busy), max(busy), max(heat))
    return ["moreh-smi -p: %d GCDs, %d to %d%% busy, at most %d C" % what]
