"""The one place that knows what a device is and what it can do; the trainer asks it and nothing
else.

    cpu   everywhere      cuda  NVIDIA      rocm  AMD, through the same torch.cuda      mps  Apple
    moai  Moreh's platform: PyTorch 1.13 whose one cuda:0 is a cluster of AMD GPUs
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import ContextManager, Dict

import torch
from torch import Tensor

from minigpt.errors import DeviceError, UsageError

PRECISIONS = ("fp32", "bf16-mixed")


@dataclass(frozen=True)
class Device:
    """A kind of device and where PyTorch finds it."""

    kind: str  # cpu, cuda, rocm, mps or moai
    torch_device: torch.device

    def compiler_missing(self) -> str:
        """Why torch.compile is not to be had here; empty when it is."""
        if not hasattr(torch, "compile"):
            return "PyTorch %s has no torch.compile (2.0 and later have)" % torch.__version__
        if self.kind in ("moai", "mps"):
            return "torch.compile is not known to work on %s" % self.kind
        return ""

    def autocast(self, precision: str) -> ContextManager[object]:
        """The context a forward pass runs in: nothing for fp32, bfloat16 matmuls for bf16-mixed.

        MoAI computes in bfloat16 by a switch of its own and takes no autocast.
        """
        if precision == "fp32" or self.kind == "moai":
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, torch.bfloat16)

    def product_dtype(self, precision: str) -> torch.dtype:
        """The dtype in which matrices are multiplied under `autocast(precision)`."""
        plain = precision == "fp32" or self.kind == "moai"
        return torch.float32 if plain else torch.bfloat16

    @property
    def static_shapes(self) -> bool:
        """Whether every new shape of a tensor costs the compilation of a new graph."""
        return self.kind == "moai"

    def rng_state(self) -> Dict[str, Tensor]:
        """The states of the random generators that training draws from (dropout)."""
        states = {"cpu": torch.get_rng_state()}
        if self.kind in ("cuda", "rocm"):
            states["cuda"] = torch.cuda.get_rng_state()
        return states

    def set_rng_state(self, states: Dict[str, Tensor]) -> None:
        """Puts back what `rng_state` gave; a device that was not there then keeps its own."""
        torch.set_rng_state(states["cpu"])
        if self.kind in ("cuda", "rocm") and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])

    def __str__(self) -> str:
        return self.kind


def is_moai() -> bool:
    """Whether this PyTorch is MoAI's. Asked before any cuda call, because those allocate the
    cluster.
    """
    return hasattr(torch, "moreh") or getattr(torch.version, "moreh", None) is not None


def find_device(name: str = "auto") -> Device:
    """The device called `name`: auto, cpu, cuda, mps or moai. DeviceError when it is not here."""
    available = {
        "moai": is_moai(),
        "cuda": not is_moai() and torch.cuda.is_available(),
        "mps": hasattr(torch.backends, "mps") and torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, here in available.items() if here)
    if name not in available:
        raise UsageError("unknown device %r" % name, "use one of: auto, %s" % ", ".join(available))
    if not available[name]:
        raise DeviceError(
            "PyTorch %s finds no %s device here" % (torch.__version__, name), "use --device cpu"
        )
    if name == "cuda" and torch.version.hip is not None:
        return Device("rocm", torch.device("cuda"))
    return Device(name, torch.device("cuda" if name == "moai" else name))
