"""`python -m minigpt devices`: what this machine computes on, and why not on something else.

On MoAI no function of torch.cuda is called, since some (`get_device_name`) allocate the cluster.
"""

from __future__ import annotations

import os
import platform
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import List, Tuple

import torch

from minigpt.base.errors import DeviceError, require_number
from minigpt.base.text import size, visible
from minigpt.devices.device import find_device, host_memory, is_moai
from minigpt.devices.smi import VirtualDevice, find_tool, parse_smi, run_tool
from minigpt.planning.peaks import GCD_MIB, find_flavor

Lines = List[Tuple[str, str]]  # what it is about, what there is to say
_NOT_BUILT = "not here: this PyTorch is not built for it"
# Those of Moreh's documents and examples (2024, 2025) that choose what a program gets.
_VARIABLES = (
    "MOREH_VISIBLE_DEVICE", "ACCELERATOR_PLATFORM_FLAVOR", "MOREH_ENABLE_ADVANCED_PARALLELIZATION",
    "MOREH_ADVANCED_PARALLELIZATION_MEMORY_USAGE_CORRECTION_RATIO",
)  # fmt: skip


@dataclass
class DevicesConfig:
    """Says what is here: Python, PyTorch, and each kind of device with its memory, or why not."""

    timeout: float = 20.0
    """Seconds to wait for moreh-smi or ap-smi."""

    def __post_init__(self) -> None:
        require_number("--timeout", self.timeout, above=0, most=3600)


def devices_command(config: DevicesConfig) -> None:
    """Prints what is here."""
    for about, text in describe(config.timeout):
        print(f"{about:7} {text}")


def describe(timeout: float) -> Lines:
    """All there is to say, line by line; a tool has `timeout` seconds to answer."""
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    lines = [("python", system), ("torch", torch.__version__), ("cpu", _cpu())]
    lines += [*_gpus(), ("mps", _mps()), *_moai(timeout)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # _gpus has said it
        return [*lines, ("auto", f"--device auto takes {find_device('auto')}")]


def _cpu() -> str:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    total, free = (size(count) if count else "unknown" for count in host_memory())
    return f"{cores or 'unknown'} cores, {total} of memory, {free} free"


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


def _mps() -> str:
    if not hasattr(torch.backends, "mps") or not torch.backends.mps.is_built():
        return _NOT_BUILT
    here = torch.backends.mps.is_available()
    return "here; its memory is the CPU's" if here else "not here: no Apple GPU is found"


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
