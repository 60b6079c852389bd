"""AdamW (Loshchilov & Hutter 2019): Adam with weight decay taken out of the gradient.

    m = beta1 m + (1 - beta1) g                 a running mean of the gradient
    v = beta2 v + (1 - beta2) g^2               and of its square
    w = w - lr weight_decay w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

`adamw_step` is that, as one function over tensors. The step is bound by memory, not by
arithmetic. So the optimizer either compiles the function, which then reads and writes each number
once, or, where there is no compiler, hands it slices that stay in the processor's cache.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from minigpt.optim.rounding import round_by_chance, split

# Slices of 1 MB: small enough for the cache, large enough that the call is not what one waits for.
_SLICE = 256 * 1024
# On other devices only bfloat16 needs slices: of the float32 copies that a step computes with.
_WIDE_SLICE = 16 * 1024 * 1024
_STATES = ("mean", "square", "carry")  # in the order of the functions' arguments
# Below this size, checking whether a compiled function fits its arguments costs more than it saves.
_WORTH_COMPILING = 64 * 1024
# PyTorch 2.1 compiles `adamw_step_bf16` to something else; 2.13 was seen to do it right.
_RIGHT_IN_BF16 = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)

Scalar = Union[float, Tensor]  # a number, or a 0-d tensor


def adamw_step(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    mean_share: Scalar,
    square_share: Scalar,
    floor: Scalar,
    slowness: Scalar,
    kept: Optional[Scalar],
    scale: Optional[Tensor] = None,
) -> None:
    """One step on `weight`, `mean` and `square` in place; these and `gradient` are of one shape.

    With c = sqrt(1 - beta2^t), all of the formula that is the same for every element is in

        mean_share   = 1 - beta1     floor    = eps c
        square_share = 1 - beta2     slowness = (1 - beta1^t) / (lr c)
                                     kept     = 1 - lr weight_decay (None: 1)

    `scale` multiplies the gradient first: clipping, without a pass over memory of its own.
    """
    if scale is not None:
        gradient = gradient * scale
    mean.lerp_(gradient, mean_share)
    square.lerp_(gradient * gradient, square_share)
    if kept is not None:
        weight.mul_(kept)
    weight.addcdiv_(mean, square.sqrt().add_(floor).mul_(slowness), value=-1.0)


def adamw_step_bf16(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, carry: Tensor, *rest: Any
) -> None:
    """`adamw_step` on tensors that are all bfloat16, computed in float32. `rest` as there."""
    wide = weight.float().add_(carry.float())
    wide_mean, wide_square = mean.float(), square.float()
    adamw_step(wide, gradient.float(), wide_mean, wide_square, *rest)
    mean.copy_(round_by_chance(wide_mean))
    square.copy_(round_by_chance(wide_square))
    upper, lower = split(wide)
    weight.copy_(upper)
    carry.copy_(lower)


class AdamW(torch.optim.Optimizer):
    """`adamw_step` over all parameters. State: `step` of each group; `mean` and `square` of each
    weight, and of a bfloat16 one also `carry` (rounding.py).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: Tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        sliced: Optional[bool] = None,
        compiled: bool = False,
        plain: bool = False,
    ) -> None:
        """`sliced`: in cache-sized slices (None: on the CPU). `compiled`: by torch.compile
        instead (2.0 and later). `plain`: in whole tensors and with numbers of Python's own, for
        devices that record what they are asked to do.
        """
        self.sliced, self.compiled, self.plain = sliced, compiled, plain
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "lr_scale": 1.0, "step": 0})

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch passes a closure first; nobody here has one
        self, scale: Optional[Tensor] = None
    ) -> None:
        """Moves every parameter that has a gradient; `scale` as in `adamw_step`."""
        self.begin_step()
        for number, group in enumerate(self.param_groups):
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, number, scale)

    def begin_step(self) -> None:
        """Counts a step and works out what all its updates share."""
        for group in self.param_groups:
            group["step"] += 1
        self._constants = [_constants(group, self.plain) for group in self.param_groups]

    def fuse_into_backward(self) -> List[Tensor]:
        """From now on (PyTorch 2.1 and later) each parameter moves in the backward pass that
        follows `begin_step`, as soon as its gradient is there, and the gradient is freed. Returns
        the list to which the norms of these gradients are added.
        """
        norms: List[Tensor] = []

        @torch.no_grad()
        def move(number: int, weight: Tensor) -> None:
            assert weight.grad is not None
            norms.append(torch.linalg.vector_norm(weight.grad))
            self._move(weight, number)
            weight.grad = None

        for number, group in enumerate(self.param_groups):
            for weight in group["params"]:
                weight.register_post_accumulate_grad_hook(partial(move, number))
        return norms

    def _move(self, weight: Tensor, group: int, scale: Optional[Tensor] = None) -> None:
        compiled = self._compiles(weight)
        update = _update(weight.dtype, compiled)
        for pieces in self._pieces(weight, compiled):
            update(*pieces, *self._constants[group][compiled], scale)

    def set_lr(self, lr: float) -> None:
        """The rate of the next step, for all groups."""
        for group in self.param_groups:
            group["lr"] = lr

    def _state(self, weight: Tensor) -> Dict[str, Any]:
        state: Dict[str, Any] = self.state[weight]
        if not state:
            state["mean"] = torch.zeros_like(weight)
            state["square"] = torch.zeros_like(weight)
            if weight.dtype == torch.bfloat16:
                state["carry"] = torch.zeros_like(weight)
        return state

    def _compiles(self, weight: Tensor) -> bool:
        right = _RIGHT_IN_BF16 or weight.dtype != torch.bfloat16
        return self.compiled and right and weight.numel() >= _WORTH_COMPILING

    def _pieces(self, weight: Tensor, compiled: bool) -> Iterable[Sequence[Tensor]]:
        state, gradient = self._state(weight), weight.grad
        assert gradient is not None
        kept = [state[name] for name in _STATES if name in state]
        tensors = [weight, gradient, *kept]
        if not all(tensor.is_contiguous() for tensor in tensors):
            return [tensors]
        # One dimension for all, so that one compiled function serves matrices of every shape.
        flat = [tensor.view(-1) for tensor in tensors]
        size = self._slice(weight)
        if compiled or size is None or weight.numel() <= size:
            return [flat]
        return zip(*(torch.split(tensor, size) for tensor in flat))

    def _slice(self, weight: Tensor) -> Optional[int]:
        on_host = weight.device.type == "cpu" and not self.plain
        if on_host if self.sliced is None else self.sliced:
            return _SLICE
        return _WIDE_SLICE if weight.dtype == torch.bfloat16 else None


def _constants(group: Dict[str, Any], plain: bool) -> Tuple[Tuple[Any, ...], Tuple[Any, ...]]:
    """What `adamw_step` is given of a group: as it is, and when compiled.

    What changes from step to step is a 0-d tensor, so that a graph stays valid. When compiled, all
    is: what the compiler keeps of a graph that was given a number, it uses again for another number
    (seen in PyTorch 2.13).
    """
    (beta1, beta2), step = group["betas"], group["step"]
    lr, root = group["lr"] * group["lr_scale"], math.sqrt(1.0 - beta2**step)
    slowness = (1.0 - beta1**step) / (lr * root) if lr else math.inf
    kept = 1.0 - lr * group["weight_decay"] if group["weight_decay"] else None
    shares = 1.0 - beta1, 1.0 - beta2
    if plain:
        return (*shares, group["eps"] * root, slowness, kept), ()
    changing = (
        torch.tensor(group["eps"] * root),
        torch.tensor(slowness),
        None if kept is None else torch.tensor(kept),
    )
    return (*shares, *changing), (*map(torch.tensor, shares), *changing)


@lru_cache(maxsize=None)
def _update(dtype: torch.dtype, compiled: bool) -> Callable[..., None]:
    update: Callable[..., None] = adamw_step_bf16 if dtype == torch.bfloat16 else adamw_step
    return torch.compile(update, dynamic=True, fullgraph=True) if compiled else update
