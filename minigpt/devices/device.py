"""The one place that knows what a device is and what it can do; the trainer asks it and nothing
else.

    cpu   everywhere      cuda  NVIDIA      rocm  AMD, through the same torch.cuda      mps  Apple
    moai  Moreh's platform: PyTorch 1.13 whose one cuda:0 is a cluster of AMD GPUs
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from dataclasses import dataclass
from typing import ContextManager, Dict, Optional

import torch
from torch import Tensor

from minigpt.base.errors import DeviceError, UsageError

DEVICES = ("auto", "cpu", "cuda", "mps")  # what --device can name on any machine; and moai
PRECISIONS = ("fp32", "bf16-mixed", "bf16", "fp16-mixed")

_PRODUCTS = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "fp16-mixed": torch.float16}
_MOAI = "cuda"  # what PyTorch calls MoAI's one device
_OUT_OF_MEMORY = (
    "out of memory", "out_of_memory", "can't allocate memory", "memory not enough",
    "too big output tensor",
)  # fmt: skip


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
        if self.kind in ("cuda", "rocm") and importlib.util.find_spec("triton") is None:
            return "torch.compile needs the triton package for a GPU"
        return ""

    def autocast(self, precision: str) -> ContextManager[object]:
        """The context a forward pass runs in: in mixed precision, matmuls of 16 bits."""
        if not precision.endswith("-mixed"):
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, self.product_dtype(precision))

    def product_dtype(self, precision: str) -> torch.dtype:
        """The dtype in which matrices are multiplied under `autocast(precision)`."""
        return _PRODUCTS.get(precision, torch.float32)

    def precision_missing(self, precision: str) -> str:
        """Why `precision` is not to be had here; empty when it is."""
        if precision == "fp32":
            return ""
        if self.kind == "moai":
            return "MoAI keeps fp32 weights and computes in bfloat16 by a switch of its own"
        if self.kind == "mps":
            return "only fp32 is known to work on mps"
        if self.kind == "cpu" and precision == "fp16-mixed":
            return _no_float16()
        # torch.cuda.is_bf16_supported() counts emulation, which is slow and has no fused attention.
        old = self.kind == "cuda" and torch.cuda.get_device_capability()[0] < 8
        if old and precision != "fp16-mixed":
            return "this GPU has no bfloat16, but it can do fp16-mixed"
        return ""

    def check_precision(self, precision: str) -> None:
        """DeviceError when `precision` is not to be had here."""
        missing = self.precision_missing(precision)
        if missing:
            raise DeviceError("--precision %s: %s" % (precision, missing), "use another")

    def fused_backward_missing(self) -> str:
        """Why the optimizer cannot step inside the backward pass here; empty when it can."""
        if self.kind == "moai":
            return "MoAI runs a step as one graph of its own"
        if hasattr(Tensor, "register_post_accumulate_grad_hook"):
            return ""
        return "PyTorch %s has no hook for it (2.1 and later have)" % torch.__version__

    def peak_memory(self) -> Optional[int]:
        """The most bytes that tensors have taken on the device so far; None where nobody counts."""
        if self.kind in ("cuda", "rocm"):
            return int(torch.cuda.max_memory_allocated())
        return None

    @property
    def fused_attention(self) -> bool:
        """Whether PyTorch's scaled_dot_product_attention is known to work here."""
        return self.kind != "moai" and hasattr(torch.nn.functional, "scaled_dot_product_attention")

    @property
    def pins_memory(self) -> bool:
        """Whether tensors in page-locked memory reach the device while the host goes on."""
        return self.kind in ("cuda", "rocm")

    def send(self, tensor: Tensor) -> Tensor:
        """A tensor of the host on the device, without waiting for what the device has to do."""
        tensor = tensor.pin_memory() if self.pins_memory else tensor
        return tensor.to(self.torch_device, non_blocking=True)

    @property
    def generator_device(self) -> torch.device:
        """Where random draws with a generator of their own are made: on the device, where it has
        such generators.
        """
        own = self.kind in ("cpu", "cuda", "rocm")
        return self.torch_device if own else torch.device("cpu")

    @property
    def static_shapes(self) -> bool:
        """Whether every new shape of a tensor costs the compilation of a new graph."""
        return self.kind == "moai"

    @property
    def loss_format(self) -> str:
        """How a loss is printed: MoAI computes it in bfloat16, which has three digits."""
        return "%.3g" if self.kind == "moai" else "%.4f"

    def more_memory(self) -> str:
        """What to do when it runs out."""
        if self.kind == "moai":
            return (
                "use a smaller --batch-size or --block-size, a larger flavor (moreh-switch-model),"
                " or --moai-distribute-parameter True"
            )
        return (
            "use a smaller --micro-batch-size or --block-size, or --recompute;"
            " python -m minigpt plan with the same flags says what fits"
        )

    def be_deterministic(self) -> None:
        """From now on, PyTorch uses only kernels that repeat themselves to the last bit, and raises
        where it has none. To be called before the first matrix product.
        """
        if self.kind in ("cuda", "rocm"):
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

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
    """The device called `name`: auto, cpu, cuda, mps or moai. DeviceError when it is not here. Of
    NVIDIA's attention kernels, PyTorch is left those that suit texts.
    """
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
            "PyTorch %s finds no %s device here" % (torch.__version__, name),
            "use --device %s" % ("moai" if is_moai() else "cpu"),
        )
    if name == "cuda" and hasattr(torch.backends.cuda, "enable_cudnn_sdp"):
        # It plans anew for every length, and texts have many; and it is never deterministic.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if name == "cuda" and torch.version.hip is not None:
        return Device("rocm", torch.device("cuda"))
    return Device(name, torch.device(_MOAI if name == "moai" else name))


def device_of(place: torch.device) -> Device:
    """The device that tensors on `place` are on."""
    if place.type != "cuda":
        return Device(place.type, place)
    kind = "moai" if is_moai() else "cuda" if torch.version.hip is None else "rocm"
    return Device(kind, place)


def weight_dtype(precision: str) -> torch.dtype:
    """The dtype in which weights are kept: bfloat16 for bf16, float32 for all others."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, of whatever kind, says that it has no memory left."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _OUT_OF_MEMORY)


def _no_float16() -> str:
    ones = torch.ones(2, 2, dtype=torch.float16)
    try:
        torch.mm(ones, ones)
    except RuntimeError:
        return "PyTorch %s cannot multiply float16 on a CPU" % torch.__version__
    return ""
