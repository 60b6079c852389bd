"""A model that no process holds whole: FSDP2 (Zhao et al. 2023), put on the objective from outside.

Every parameter, gradient and optimizer state is divided by rows. A block's rows are gathered from
all processes just before it is computed, forward and backward, and its gradients go back to whom
they belong, added up in float32. Embeddings, last norm and head are one more such group.

    fsdp    divided among all processes
    hsdp    divided among those of one machine; each machine holds all, and gradients are added up
            over machines
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any, Dict, Optional, Tuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.base.divided import keep_rows
from minigpt.base.errors import DeviceError
from minigpt.checkpoint import manifest
from minigpt.checkpoint.model_files import Adapter, open_adapter, open_weights, read_adapter
from minigpt.checkpoint.safetensors import LazyTensor
from minigpt.devices.device import Device, weight_dtype
from minigpt.model.gpt import GPT
from minigpt.model.lora import adapter_tensors, add_lora, draw
from minigpt.training.config import Settings
from minigpt.training.objective import Objective
from minigpt.training.parallel import local_processes, patience


def require_fsdp() -> Any:
    """PyTorch's module; DeviceError where it is too old."""
    try:
        import torch.distributed.fsdp as fsdp

        fsdp.FSDPModule.set_force_sum_reduction_for_comms  # noqa: B018 - the newest of what we need
    except (ImportError, AttributeError):
        what = f"PyTorch {torch.__version__} has no FSDP2 that adds gradients up"
        raise DeviceError(what, "use PyTorch 2.9 or later, or --parallel ddp") from None
    return fsdp


def mesh_of(parallel: str, device: Device, size: int) -> Any:
    """How the processes are arranged: in a row, or, for hsdp, a row for each machine."""
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

    require_fsdp()
    kind = device.torch_device.type
    if parallel != "hsdp":
        return init_device_mesh(kind, (size,))
    rows = torch.arange(size).view(-1, local_processes())
    # Made by init_device_mesh, they would wait half an hour for a machine that is gone.
    make: Any = dist.new_subgroups_by_enumeration
    groups = [make(ranks.tolist(), patience(device))[0] for ranks in (rows.t(), rows)]
    return DeviceMesh.from_group(groups, kind, rows, mesh_dim_names=("machines", "processes"))


def shard(objective: Objective, mesh: Any, precision: str) -> None:
    """Divides the parameters of the objective's model, which are on the meta device, by rows."""
    fsdp = require_fsdp()
    narrow = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}.get(precision)
    # The residual stream stays float32, so embeddings and last norm do, as under autocast.
    policy = fsdp.MixedPrecisionPolicy(
        param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in objective.model.blocks:
        for norm in block.modules() if narrow is not None else ():
            if isinstance(norm, nn.LayerNorm):
                vars(norm)["forward"] = partial(_exact_norm, norm)
        fsdp.fully_shard(block, mesh=mesh, mp_policy=policy)
    policy = fsdp.MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    fsdp.fully_shard(objective, mesh=mesh, mp_policy=policy)
    for module in objective.modules():
        if isinstance(module, fsdp.FSDPModule):
            # Sums, not means: not every process has equally many tokens. Gloo averages wrongly.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _exact_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """In the dtype of the residual stream, though FSDP gathers the weights in a narrower one."""
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def on_meta(settings: Settings) -> GPT:
    """The model without weights, with its adapter if there is to be one."""
    torch.set_default_dtype(weight_dtype(settings.asked.precision))
    try:
        model = GPT(settings.shape, torch.device("meta"))
        return model if settings.lora is None else add_lora(model, settings.lora)
    finally:
        torch.set_default_dtype(torch.float32)


@torch.no_grad()
def fill(model: GPT, settings: Settings, device: Device) -> Optional[Adapter]:
    """Gives every parameter its weights, those that `settings` start from or what one process would
    draw, with no more than one whole tensor in memory at a time. Returns the adapter, if any.
    """
    if settings.start is None:
        _draw_as_modules_do(model, device)
    with ExitStack() as stack:
        there, adapter = _weights(model, settings, stack)
        for name, parameter in model.named_parameters():
            found = there.get(name.replace(".base.", "."))
            values = _drawn(model, name, parameter, device) if found is None else found.read()
            keep_rows(parameter, values)
    return adapter


def _weights(
    model: GPT, settings: Settings, stack: ExitStack
) -> Tuple[Dict[str, LazyTensor], Optional[Adapter]]:
    start, lora, dtype = settings.start, settings.lora, weight_dtype(settings.asked.precision)
    if start is None:
        return {}, None
    if lora is None or settings.resumes is None:
        adapter = None if lora is None else Adapter.on(start, lora)
        return open_weights(start, stack, dtype), adapter
    adapter = read_adapter(start)
    assert adapter is not None
    manifest.check(start)
    thin = open_adapter(start, adapter_tensors(model), stack)
    return {**open_weights(adapter.base, stack, dtype), **thin}, adapter


def _draw_as_modules_do(model: GPT, device: Device) -> None:
    """PyTorch's modules draw weights as they are made, and ours are drawn over them. Made on the
    meta device they did not: so that the same seed gives the same weights, each is made again.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, (nn.Linear, nn.Embedding)) and weight is not None:
            rows, columns = weight.shape
            like: Dict[str, Any] = {"device": device.generator_device, "dtype": weight.dtype}
            if isinstance(module, nn.Embedding):
                nn.Embedding(rows, columns, **like)
            else:
                nn.Linear(columns, rows, module.bias is not None, **like)


def _drawn(model: GPT, name: str, parameter: Tensor, device: Device) -> Tensor:
    values = torch.zeros(parameter.shape, dtype=parameter.dtype, device=device.generator_device)
    if name.endswith(".a"):
        draw(values)
    elif not name.endswith(".b"):  # B of an adapter starts at zero
        model.draw(name, values)
    return values
