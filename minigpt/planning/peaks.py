"""What devices can do at most: FLOP/s of matrix products and bytes of memory.

Source: the vendors' data sheets, dense figures, NVIDIA A100, H100 and H200; AMD Instinct MI250 (to
PyTorch two devices, GCDs, of which this is one) and MI300X. float32 is without TF32, as PyTorch
multiplies by default. Links are NVLink's on SXM boards, the slot of H100 PCIe, and xGMI: all seven
of MI300X, one of a GCD, as a ring of them uses. A vendor's GB counts as 1e9 bytes: the cards have a
few percent more, which is left for the driver and for the allocator's fragments.

A MoAI accelerator has one of the sizes that Moreh calls flavors, here those of KT's cloud ("KT HAC
model information" on docs.moreh.io, 2024): other providers have other boards behind the same names.
Of a GCD's 64 GB `moreh-smi` reports 65,520 MiB: `4xLarge.2048GB`, 16 MI250, shows 2,096,640 MiB.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from typing import Optional

import torch

from minigpt.base.errors import UsageError
from minigpt.base.text import nearest, parse_size
from minigpt.devices import DEVICES
from minigpt.devices.device import Device

GB, TERA = 10**9, 1e12
GCD_MIB = 65_520  # the memory of one GCD, as moreh-smi counts it


@dataclass(frozen=True)
class Flavor:
    """One size: `name` as `moreh-switch-model` lists it, how many MI250, on how many nodes."""

    name: str
    mi250: float
    nodes: int
    inferred: bool = False  # the boards and nodes are computed from the name, not published

    @property
    def gcds(self) -> int:
        """GPUs of 64 GB: two on each MI250."""
        return int(2 * self.mi250)

    @property
    def memory_mib(self) -> int:
        """Memory of all GCDs, in MiB as `moreh-smi` reports them."""
        return self.gcds * GCD_MIB


# In the order of moreh-switch-model, which numbers them from 1.
FLAVORS = (
    Flavor("Small.64GB", 0.5, 1), Flavor("Medium.128GB", 1, 1), Flavor("Large.256GB", 2, 1),
    Flavor("xLarge.512GB", 4, 1), Flavor("1.5xLarge.768GB", 6, 2, inferred=True),
    Flavor("2xLarge.1024GB", 8, 2), Flavor("3xLarge.1536GB", 12, 3),
    Flavor("4xLarge.2048GB", 16, 4), Flavor("6xLarge.3072GB", 24, 6),
    Flavor("8xLarge.4096GB", 32, 8), Flavor("12xLarge.6144GB", 48, 12),
    Flavor("24xLarge.12288GB", 96, 24), Flavor("48xLarge.24576GB", 192, 48),
)  # fmt: skip


@dataclass(frozen=True)
class Accelerator:
    """What PyTorch sees as one device, or a MoAI flavor with all its GCDs as one."""

    name: str
    memory: int  # bytes
    bf16: float  # FLOP/s
    fp32: float
    flavor: Optional[Flavor] = None
    link: float = 0.0  # GB/s to the others of its machine, each way; 0: not known

    def flops(self, product_bytes: int) -> float:
        """FLOP/s for factors of so many bytes."""
        return self.fp32 if product_bytes == 4 else self.bf16


GCD = Accelerator("MI250 (one of its two GCDs)", 64 * GB, 181.05 * TERA, 45.25 * TERA, link=50)
ACCELERATORS = {
    "mi250": GCD,
    "mi300x": Accelerator("MI300X", 192 * GB, 1307.4 * TERA, 163.4 * TERA, link=448),
    "a100-40gb": Accelerator("A100 40GB", 40 * GB, 312 * TERA, 19.5 * TERA, link=300),
    "a100": Accelerator("A100 80GB", 80 * GB, 312 * TERA, 19.5 * TERA, link=300),
    "h100-pcie": Accelerator("H100 PCIe", 80 * GB, 756 * TERA, 51 * TERA, link=64),
    "h100": Accelerator("H100 SXM", 80 * GB, 989.4 * TERA, 67 * TERA, link=450),
    "h200": Accelerator("H200 SXM", 141 * GB, 989.4 * TERA, 67 * TERA, link=450),
}


def find_flavor(spelling: str) -> Optional[Flavor]:
    """The flavor meant by `4xLarge.2048GB`, `4xLarge.2048` or `4xlarge`; None for others, such as
    those of 2022 (`4xlarge.384gb`), other boards, and `micro`, whose size is not published.
    """
    for flavor in FLAVORS:
        full = flavor.name.lower()
        if spelling.strip().lower() in (full, full[: -len("gb")], full.rpartition(".")[0]):
            return flavor
    return None


def find_accelerator(name: str) -> Accelerator:
    """The accelerator meant by `name` (h200, A100 40GB, 4xLarge.2048GB); UsageError otherwise."""
    flavor, found = find_flavor(name), _known(name)
    if flavor is not None:
        n = flavor.gcds
        return Accelerator(flavor.name, n * GCD.memory, n * GCD.bf16, n * GCD.fp32, flavor)
    if found is None:
        known = [*DEVICES, "moai", *ACCELERATORS, *(flavor.name for flavor in FLAVORS)]
        raise UsageError(f"--device {name} is not known", nearest(name.lower(), known))
    return found


def _known(name: str) -> Optional[Accelerator]:
    """The entry for `name` as a person or as PyTorch writes it; a size in it must be right."""
    word = name.lower().replace("_", "-")
    size = re.search(r"\b(\d+) ?gb\b", word)
    if size:
        word = word.replace(size.group(), "")
    word = re.sub(r"nvidia|amd|instinct|sxm\d?|hbm\d?e?|/.*| vf$|[ _-]", "", word)
    word = {"mi250x": "mi250", "h100pcie": "h100-pcie", "a100pcie": "a100"}.get(word, word)
    found = ACCELERATORS.get(f"{word}-{size.group(1)}gb" if size else word, ACCELERATORS.get(word))
    return found if found and (not size or int(size.group(1)) * GB == found.memory) else None


def parse_memory(text: str) -> int:
    """80GB, 512 MB or 79.2GiB -> bytes."""
    count = parse_size(text)
    if count < 1_000_000:  # perhaps without its unit
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
        return replace(known, name=f"{known.name}, this machine's", memory=free)
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
