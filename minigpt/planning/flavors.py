"""The sizes of a MoAI accelerator, which Moreh calls flavors, as KT's cloud offers them.

An MI250 is two GPUs on one board (GCDs) of 64 GB each, of which `moreh-smi` reports 65,520 MiB:
`4xLarge.2048GB`, 16 MI250, shows 32 x 65,520 = 2,096,640 MiB.

Source: "KT HAC model information" on docs.moreh.io (2024, MoAI framework 24.5). What it does not
say and was inferred is marked so. Other providers have other boards behind the same names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

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
    Flavor("Small.64GB", 0.5, 1),
    Flavor("Medium.128GB", 1, 1),
    Flavor("Large.256GB", 2, 1),
    Flavor("xLarge.512GB", 4, 1),
    Flavor("1.5xLarge.768GB", 6, 2, inferred=True),
    Flavor("2xLarge.1024GB", 8, 2),
    Flavor("3xLarge.1536GB", 12, 3),
    Flavor("4xLarge.2048GB", 16, 4),
    Flavor("6xLarge.3072GB", 24, 6),
    Flavor("8xLarge.4096GB", 32, 8),
    Flavor("12xLarge.6144GB", 48, 12),
    Flavor("24xLarge.12288GB", 96, 24),
    Flavor("48xLarge.24576GB", 192, 48),
)


def find_flavor(spelling: str) -> Optional[Flavor]:
    """The flavor meant by any spelling seen in a table: `4xLarge.2048GB`, `4xLarge.2048`, and
    `4xlarge`, as trial containers write it (published for xlarge to 8xlarge). None for others:
    `micro` and `flavor-default-8`, whose size is not published, and names of 2022 such as
    `4xlarge.384gb`, which were other boards.
    """
    wanted = spelling.strip().lower()
    for flavor in FLAVORS:
        full = flavor.name.lower()
        if wanted in (full, full[: -len("gb")], full.rpartition(".")[0]):
            return flavor
    return None
