"""AdamW: Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019).

    m = beta1 m + (1 - beta1) g                    running mean of the gradient g
    v = beta2 v + (1 - beta2) g^2                  running mean of its square
    m_hat = m / (1 - beta1^t)                      bias corrections: m and v start at zero,
    v_hat = v / (1 - beta2^t)                      and t counts the steps
    w = w - lr weight_decay w - lr m_hat / (sqrt(v_hat) + eps)

`adamw_step` is this formula for one weight. `AdamW` keeps m and v, and calls it for every weight.
How the call is run (in slices, compiled) changes nothing here: execution.py.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Iterable, List, Optional, Tuple

import torch
from torch import Tensor, nn

from minigpt.base.divided import local
from minigpt.optim.execution import Execution, Scalar, Scalars, in_slices
from minigpt.optim.rounding import round_stochastically, split


def adamw_step(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor,
    one_minus_beta1: Scalar, one_minus_beta2: Scalar, eps_hat: Scalar, inverse_step_size: Scalar,
    decay_factor: Optional[Scalar], gradient_scale: Optional[Tensor] = None,
) -> None:  # fmt: skip
    """One step, in place, on tensors of one shape. `step_scalars` explains the scalars;
    `gradient_scale` (0-d) multiplies the gradient first, which is how it is clipped, or left out
    (`guarded`).
    """
    if gradient_scale is not None:
        gradient = (gradient * gradient_scale).nan_to_num_(0.0, 0.0, 0.0)  # 0 times nan is nan
    mean.lerp_(gradient, one_minus_beta1)  # lerp_: mean + (1 - beta1) (gradient - mean)
    square.lerp_(gradient * gradient, one_minus_beta2)
    if decay_factor is not None:
        weight.mul_(decay_factor)
    # The denominator holds the step size, since `value` below cannot be a tensor.
    denominator = square.sqrt().add_(eps_hat).mul_(inverse_step_size)
    weight.addcdiv_(mean, denominator, value=-1.0)


def step_scalars(group: Dict[str, Any]) -> Scalars:
    """What step t has in common for all elements, with the bias corrections moved out of m and v
    (Kingma & Ba, end of section 2):

    step_size = lr sqrt(1 - beta2^t) / (1 - beta1^t),  eps_hat = eps sqrt(1 - beta2^t)
    w = (1 - lr weight_decay) w - step_size m / (sqrt(v) + eps_hat)
    """
    (beta1, beta2), t = group["betas"], group["step"]
    lr = group["lr"] * group["lr_scale"]
    correction1, correction2_sqrt = 1.0 - beta1**t, math.sqrt(1.0 - beta2**t)
    eps_hat = group["eps"] * correction2_sqrt
    inverse_step_size = correction1 / (lr * correction2_sqrt) if lr else math.inf
    decay_factor = 1.0 - lr * group["weight_decay"] if group["weight_decay"] else None
    constant = 1.0 - beta1, 1.0 - beta2
    return Scalars(constant, (eps_hat, inverse_step_size, decay_factor))


def guarded(scalars: Scalars, gradient_scale: Optional[Tensor]) -> Scalars:
    """The scalars of a step that leaves weight, m and v as they are where `gradient_scale` is 0:
    so the gradient was no number, and nobody has to wait for the device to know it.
    """
    if gradient_scale is None:
        return scalars
    taken = gradient_scale > 0
    eps_hat, inverse_step_size, decay_factor = scalars.changing
    assert inverse_step_size is not None
    if decay_factor is not None:
        decay_factor = torch.where(taken, decay_factor, 1.0)
    constant = tuple(number * taken for number in scalars.constant)
    return Scalars(constant, (eps_hat, inverse_step_size / taken, decay_factor))


def adamw_step_bf16(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, carry: Tensor, *rest: Any
) -> None:
    """`adamw_step` on bfloat16 tensors, computed in float32. weight + carry is the exact weight;
    how the results get back into 16 bits is explained in rounding.py.
    """
    weight32, mean32, square32 = weight.float().add_(carry.float()), mean.float(), square.float()
    adamw_step(weight32, gradient.float(), mean32, square32, *rest)
    mean.copy_(round_stochastically(mean32))
    square.copy_(round_stochastically(square32))
    upper, lower = split(weight32)
    weight.copy_(upper)
    carry.copy_(lower)


class AdamW(torch.optim.Optimizer):
    """State of a weight: `mean`, `square`, and in bfloat16 `carry`. Of a group: `step`."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: Tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8, weight_decay: float = 0.1, execution: Execution = in_slices,
    ) -> None:  # fmt: skip
        self.execution = execution
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "lr_scale": 1.0, "step": 0})

    def set_lr(self, lr: float) -> None:
        """The rate of the next step, for all groups; each multiplies it by its `lr_scale`."""
        for group in self.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def step(self, gradient_scale: Optional[Tensor] = None) -> None:  # type: ignore[override]
        """Steps every weight that has a gradient; takes no closure, unlike torch's."""
        for group, scalars in zip(self.param_groups, self.begin_step()):
            safe = guarded(scalars, gradient_scale)
            for weight in group["params"]:
                if weight.grad is not None:
                    self.step_weight(weight, safe, gradient_scale)

    def begin_step(self) -> List[Scalars]:
        """Counts the step that `step_weight` takes next, and returns the scalars of each group."""
        for group in self.param_groups:
            group["step"] += 1
        return [step_scalars(group) for group in self.param_groups]

    def step_weight(
        self, weight: Tensor, scalars: Scalars, gradient_scale: Optional[Tensor] = None
    ) -> None:
        """Steps one weight in place; call it without autograd."""
        in_16_bits = weight.dtype == torch.bfloat16
        step = adamw_step_bf16 if in_16_bits else adamw_step
        state = self.prepare(weight)
        tensors = [local(t) for t in (weight, weight.grad, *state.values())]
        self.execution(step, tensors, scalars, gradient_scale)

    def prepare(self, weight: Tensor) -> Dict[str, Tensor]:
        """The state of a weight, which begins at zero."""
        state: Dict[str, Tensor] = self.state[weight]
        if not state:
            names = ("mean", "square", "carry")[: 3 if weight.dtype == torch.bfloat16 else 2]
            state.update((name, torch.zeros_like(weight.detach())) for name in names)
        return state


def decay_groups(
    model: nn.Module, weight_decay: float, hidden_lr_scale: float = 1.0
) -> List[Dict[str, Any]]:
    """Parameter groups for AdamW, without the frozen parameters. Matrices and embeddings decay,
    biases and LayerNorms do not.

    A group's `lr_scale` multiplies the scheduled learning rate. It is `hidden_lr_scale` for the
    matrices inside the blocks, which muP sets below 1 (Yang et al. 2022), and else 1.
    """
    groups: Dict[Tuple[float, float], Dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.dim() >= 2
            decay = weight_decay if is_matrix else 0.0
            lr_scale = hidden_lr_scale if is_matrix and "blocks." in name else 1.0
            group = {"params": [], "weight_decay": decay, "lr_scale": lr_scale}
            groups.setdefault((decay, lr_scale), group)["params"].append(parameter)
    return list(groups.values())
