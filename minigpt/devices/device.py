"""What a device is and what it can do. Others ask a Device, and compare no names of devices.

    cpu   everywhere      cuda  NVIDIA      rocm  AMD, through the same torch.cuda      mps  Apple
    moai  Moreh's platform: PyTorch 1.13.1 or 2.1.0 whose one cuda:0 is a cluster of AMD GPUs

What a program writes for one device, MoAI divides among all: it records the operations, compiles
the graph, and chooses pipeline stages and micro-batches by itself (advanced parallelization,
docs.moreh.io, framework 24.5). So a trainer passes the batch whole, keeps its shapes fixed, reads
nothing between two log lines, and calls `start` before it builds a model.

A method that is called `..._missing` says why something cannot be done here; nothing where it can.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ContextManager, Dict, Optional, Tuple

import torch
from torch import Tensor

from minigpt.base.errors import DeviceError, UsageError

_PRODUCTS = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "fp16-mixed": torch.float16}
_USABLE = 0.96  # of a GPU's free memory: kernels are loaded, and the allocator leaves gaps
_MOAI = "cuda"  # what PyTorch calls MoAI's one device
_OUT_OF_MEMORY = re.compile(
    "out.of.memory|can't allocate memory|memory not enough|too big output tensor", re.IGNORECASE
)


@dataclass(frozen=True)
class Device:
    """A kind of device and where PyTorch finds it."""

    kind: str  # cpu, cuda, rocm, mps or moai; for messages, and for this room alone
    torch_device: torch.device

    def __str__(self) -> str:
        return self.kind

    @property
    def on_cpu(self) -> bool:
        return self.kind == "cpu"

    @property
    def static_shapes(self) -> bool:
        """Whether a step must be one graph of fixed shapes, with the batch whole, as on MoAI."""
        return self.kind == "moai"

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU of NVIDIA's or AMD's, driven by torch.cuda."""
        return self.kind in ("cuda", "rocm")

    @property
    def fused_attention(self) -> bool:
        """Whether PyTorch's scaled_dot_product_attention is known to work here."""
        return self.kind != "moai" and hasattr(torch.nn.functional, "scaled_dot_product_attention")

    def compiler_missing(self) -> str:
        """Why there is no torch.compile."""
        if not hasattr(torch, "compile"):
            return f"PyTorch {torch.__version__} has no torch.compile (2.0 and later have)"
        if self.kind in ("moai", "mps"):
            return f"torch.compile is not known to work on {self}"
        if self.is_gpu and importlib.util.find_spec("triton") is None:
            return "torch.compile needs the triton package for a GPU"
        return ""

    @property
    def has_graphs(self) -> bool:
        """Whether kernels can be recorded once and sent again as a whole (CUDA graphs)."""
        return self.kind == "cuda" and hasattr(torch.cuda, "CUDAGraph")

    @property
    def has_varlen(self) -> bool:
        """Whether FlashAttention's kernels for packed rows run here: NVIDIA's since Ampere."""
        return self.kind == "cuda" and torch.cuda.get_device_capability()[0] >= 8

    def fused_backward_missing(self) -> str:
        """Why the optimizer cannot step inside the backward pass."""
        if self.kind == "moai":
            return "MoAI runs a step as one graph of its own"
        if hasattr(Tensor, "register_post_accumulate_grad_hook"):
            return ""
        return f"PyTorch {torch.__version__} has no hook for it (2.1 and later have)"

    def recompute_missing(self) -> str:
        """Why activations cannot be recomputed by minigpt."""
        return "it would hide the model from MoAI" if self.kind == "moai" else ""

    def precision_missing(self, precision: str) -> str:
        """Why there is no such precision."""
        if precision == "fp32":
            return ""
        if self.kind == "moai":
            return "MoAI keeps fp32 weights and computes in bfloat16 by a switch of its own"
        if self.kind == "mps":
            return "only fp32 is known to work on mps"
        if self.kind == "cpu" and precision == "fp16-mixed":
            ones = torch.ones(2, 2, dtype=torch.float16)
            try:
                torch.mm(ones, ones)
            except RuntimeError:
                return f"PyTorch {torch.__version__} cannot multiply float16 on a CPU"
        # torch.cuda.is_bf16_supported() counts emulation, which is slow and has no fused attention.
        old = self.kind == "cuda" and torch.cuda.get_device_capability()[0] < 8
        if old and precision != "fp16-mixed":
            return "this GPU has no bfloat16, but it can do fp16-mixed"
        return ""

    def check_precision(self, precision: str) -> None:
        """DeviceError when there is no such precision here."""
        missing = self.precision_missing(precision)
        if missing:
            raise DeviceError(f"--precision {precision}: {missing}", "use another")

    def start(self, options: Optional[Dict[str, Any]]) -> None:
        """To be called before a model is built. On MoAI, turns on advanced parallelization with
        those of the `options` (num_stages, ...) that are not None; `options` None leaves it off.
        DeviceError when it cannot be had, or not by one of several processes.
        """
        if self.kind != "moai":
            return
        if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
            what = "MoAI divides the work among its GPUs itself, and torchrun started several"
            raise DeviceError(f"{what} processes", "start one with: python train.py")
        if options is None:
            return
        moreh = getattr(torch, "moreh", None)
        enable = getattr(getattr(moreh, "option", None), "enable_advanced_parallelization", None)
        if enable is None:
            fix = "update it with update-moreh, or train without by --no-moai-parallelization"
            raise DeviceError("this MoAI framework has no advanced parallelization", fix)
        enable(**{name: value for name, value in options.items() if value is not None})

    def autocast(self, precision: str) -> ContextManager[object]:
        """The context a forward pass runs in: in mixed precision, it multiplies in 16 bits."""
        if not precision.endswith("-mixed"):
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, self.product_dtype(precision))

    def product_dtype(self, precision: str) -> torch.dtype:
        """The dtype in which matrices are multiplied under `autocast(precision)`."""
        return _PRODUCTS.get(precision, torch.float32)

    def send(self, tensor: Tensor) -> Tensor:
        """A tensor of the host on the device, without waiting for what the device has to do."""
        if self.is_gpu:  # only from page-locked memory does the host not wait
            tensor = tensor.pin_memory()
        return tensor.to(self.torch_device, non_blocking=True)

    @property
    def loss_format(self) -> str:
        """How a loss is printed: MoAI computes it in bfloat16, which has three digits."""
        return "%.3g" if self.kind == "moai" else "%.4f"

    def free_memory(self) -> Optional[int]:
        """Bytes that a run may take now. None where nothing tells, as on MoAI: to ask allocates."""
        if self.is_gpu:
            return int(_USABLE * torch.cuda.mem_get_info()[0])
        if self.kind == "moai":
            return None
        total, free = host_memory()
        return total if free is None else free

    def peak_memory(self) -> Optional[int]:
        """The most bytes that tensors have taken so far; None where PyTorch does not count them."""
        return int(torch.cuda.max_memory_allocated()) if self.is_gpu else None

    def gpus(self) -> int:
        return int(torch.cuda.device_count()) if self.is_gpu else 0

    def gpu_name(self) -> str:
        """What the maker calls it; empty where PyTorch cannot say."""
        return str(torch.cuda.get_device_name()) if self.is_gpu else ""

    @property
    def generator_device(self) -> torch.device:
        """Where a generator of one's own draws: on the host where the device has none."""
        own = self.is_gpu or self.kind == "cpu"
        return self.torch_device if own else torch.device("cpu")

    def be_deterministic(self) -> None:
        """From the first matrix product on, only kernels that repeat themselves to the last bit."""
        if self.is_gpu:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

    def rng_state(self) -> Dict[str, Tensor]:
        """The states of the random generators that training draws from (dropout)."""
        states = {"cpu": torch.get_rng_state()}
        if self.is_gpu:
            states["cuda"] = torch.cuda.get_rng_state()
        return states

    def set_rng_state(self, states: Dict[str, Tensor]) -> None:
        """Puts back what `rng_state` gave; a device that was not there then keeps its own."""
        torch.set_rng_state(states["cpu"])
        if self.is_gpu and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])


def is_moai() -> bool:
    """Whether this PyTorch is MoAI's. Asked before any call of torch.cuda: those allocate it."""
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
        raise UsageError(f"unknown device {name!r}", f"use one of: auto, {', '.join(available)}")
    if not available[name]:
        what = f"PyTorch {torch.__version__} finds no {name} device here"
        raise DeviceError(what, f"use --device {'moai' if is_moai() else 'cpu'}")
    if name == "moai":
        return Device("moai", torch.device(_MOAI))
    place = torch.device(name)
    if name == "cuda" and hasattr(torch.backends.cuda, "enable_cudnn_sdp"):
        # This attention plans anew for every length, and texts have many; it is not deterministic.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun's processes have a GPU each
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    return device_of(place)


def device_of(place: torch.device) -> Device:
    """The device that tensors on `place` are on."""
    kind = "moai" if is_moai() else "cuda" if torch.version.hip is None else "rocm"
    return Device(kind if place.type == "cuda" else place.type, place)


def host_memory() -> Tuple[Optional[int], Optional[int]]:
    """Bytes in all (in a container: its limit), and bytes still free; None where nothing tells."""
    try:
        found = dict(re.findall(r"(\w+): +(\d+) kB", Path("/proc/meminfo").read_text()))
        total, free = int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024
    except (OSError, KeyError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
        except (AttributeError, ValueError, OSError):
            return None, None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        cache = dict(re.findall(r"(\w+) (\d+)", (group / "memory.stat").read_text()))
        left = limit - used + int(cache["inactive_file"])
    except (OSError, ValueError, KeyError):  # no such limit, or "max"
        return total, free
    return min(total, limit), max(min(free, left), 0)


def weight_dtype(precision: str) -> torch.dtype:
    """The dtype in which weights are kept: bfloat16 for bf16, float32 for all others."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, of whatever kind, says that it has no memory left."""
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))
