"""What devices can do at most: FLOP/s of matrix products and bytes of memory.

Source: the vendors' data sheets, dense figures (those with sparsity are twice as high): NVIDIA
A100, H100 and H200 Tensor Core GPU; AMD Instinct MI250 and MI300X accelerators. float32 is without
TF32, as PyTorch multiplies by default. An MI250 is two devices to PyTorch (GCDs), so it stands
here as one of them. A vendor's GB counts as 1e9 bytes. The cards have a few percent more, which is
left for the driver and for the allocator's fragments.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Optional

import torch

from minigpt.base.errors import UsageError
from minigpt.base.text import nearest
from minigpt.devices.device import DEVICES, Device
from minigpt.planning.flavors import FLAVORS, Flavor, find_flavor

GB, TERA = 10**9, 1e12


@dataclass(frozen=True)
class Accelerator:
    """What PyTorch sees as one device, or a MoAI flavor with all its GCDs as one."""

    name: str
    memory: int  # bytes
    bf16: float  # FLOP/s
    fp32: float
    flavor: Optional[Flavor] = None

    def flops(self, product_bytes: int) -> float:
        """FLOP/s for factors of so many bytes."""
        return self.fp32 if product_bytes == 4 else self.bf16


GCD = Accelerator("MI250 (one of its two GCDs)", 64 * GB, 181.05 * TERA, 45.25 * TERA)
ACCELERATORS = {
    "mi250": GCD,
    "mi300x": Accelerator("MI300X", 192 * GB, 1307.4 * TERA, 163.4 * TERA),
    "a100-40gb": Accelerator("A100 40GB", 40 * GB, 312 * TERA, 19.5 * TERA),
    "a100": Accelerator("A100 80GB", 80 * GB, 312 * TERA, 19.5 * TERA),
    "h100-pcie": Accelerator("H100 PCIe", 80 * GB, 756 * TERA, 51 * TERA),
    "h100": Accelerator("H100 SXM", 80 * GB, 989.4 * TERA, 67 * TERA),
    "h200": Accelerator("H200 SXM", 141 * GB, 989.4 * TERA, 67 * TERA),
}
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def find_accelerator(name: str) -> Accelerator:
    """The accelerator meant by `name` (h200, A100 40GB, 4xLarge.2048GB); UsageError otherwise."""
    flavor = find_flavor(name)
    found = of_flavor(flavor) if flavor is not None else _known(name)
    if found is None:
        known = [*DEVICES, "moai", *ACCELERATORS, *(flavor.name for flavor in FLAVORS)]
        raise UsageError(f"--device {name} is not known", nearest(name.lower(), known))
    return found


def of_flavor(flavor: Flavor) -> Accelerator:
    """All GCDs of a MoAI flavor."""
    n = flavor.gcds
    return Accelerator(flavor.name, n * GCD.memory, n * GCD.bf16, n * GCD.fp32, flavor)


def _known(name: str) -> Optional[Accelerator]:
    """The entry for `name` as a person or as PyTorch writes it; a size in it must be right."""
    word = name.lower().replace("_", "-")
    size = re.search(r"\b(\d+) ?gb\b", word)
    if size:
        word = word.replace(size.group(), "")
    word = re.sub(r"nvidia|amd|instinct|sxm\d?|hbm\d?e?|/.*| vf$|[ _-]", "", word)
    word = {"mi250x": "mi250", "h100pcie": "h100-pcie", "a100pcie": "a100"}.get(word, word)
    if size and f"{word}-{size.group(1)}gb" in ACCELERATORS:
        return ACCELERATORS[f"{word}-{size.group(1)}gb"]
    found = ACCELERATORS.get(word)
    return found if found and (not size or int(size.group(1)) * GB == found.memory) else None


def parse_memory(text: str) -> int:
    """80GB, 512 MB or 79.2GiB -> bytes."""
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d+)?)\s*([MGT]i?B)\s*", text, re.IGNORECASE)
    count = int(float(found.group(1)) * _UNITS[found.group(2).upper()]) if found else 0
    if not count:
        raise UsageError(f"--memory is {text!r}", "write it as 80GB or 512MB")
    return count


def looked_up_peak(device: Device, product_bytes: int) -> Optional[float]:
    """FLOP/s of the GPU here, by its data sheet; None of a device that is in no table."""
    known = _known(device.gpu_name())
    return None if known is None else known.flops(product_bytes)


def here(device: Device, product_bytes: int) -> Accelerator:
    """The device of this machine: its free memory, and its peak, looked up or else measured."""
    known, free = _known(device.gpu_name()), device.free_memory() or 0
    if known is not None:
        return Accelerator(f"{known.name}, this machine's", free, known.bf16, known.fp32)
    peak = measured_peak(device, torch.float32 if product_bytes == 4 else torch.bfloat16)
    return Accelerator(f"{device} of this machine, as measured", free, peak, peak)


def measured_peak(device: Device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """FLOP/s of a matrix product, the best of those tried in about `seconds`, ever larger ones."""
    # The libraries load with the first.
    _product_seconds(torch.ones(256, 256, dtype=dtype, device=device.torch_device))
    best, width, took, ends = 0.0, 256, 0.0, time.perf_counter() + seconds
    while width <= 8192 and time.perf_counter() + 3 * 8 * took < ends:
        factor = torch.ones(width, width, dtype=dtype, device=device.torch_device)
        took = min(_product_seconds(factor) for _ in range(3))
        best, width = max(best, 2.0 * width**3 / took), width * 2
    return best


def _product_seconds(factor: torch.Tensor) -> float:
    began = time.perf_counter()
    (factor @ factor)[0, 0].item()  # the device is done when the number is here
    return time.perf_counter() - began
