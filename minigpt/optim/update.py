"""An optimizer step as the trainer takes it, clipped by the global norm (Pascanu et al. 2013):

    for each micro-batch:  update.backward(loss)
    grad_norm = update.finish()

    norm = sqrt(sum over all gradients of g^2),   scale = min(1, limit / norm)

It comes in three kinds. `Clipped` adds up the gradients, clips them and moves the weights. `Scaled`
does the same for float16, whose gradients may overflow. `InBackward` moves every weight inside the
backward pass, as soon as its gradient is there.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Callable, Dict, Iterable, List, Tuple, Union

import torch
from torch import Tensor

from minigpt.base.divided import local
from minigpt.optim.adamw import AdamW, guarded

Across = Callable[[Tensor], Tensor]


def alone(norm: Tensor) -> Tensor:
    """`Across` where this process holds all gradients."""
    return norm


def clip_scale(
    parameters: Iterable[Tensor], limit: float, loss_scale: float = 1.0, across: Across = alone
) -> Tuple[Tensor, Tensor]:
    """The global gradient norm, and what to multiply the gradients with: 0 where the norm is no
    number, which leaves the step out.

    Both are 0-d and stay on the device, so that nothing waits for it; `AdamW.step` multiplies.
    `limit` 0 does not clip. Gradients of a loss times `loss_scale` are divided by it, norm and all.
    `across` makes of the norm of what is here that of what all processes hold.
    """
    norms = [torch.linalg.vector_norm(local(p.grad)) for p in parameters if p.grad is not None]
    norm = across(_global_norm(norms)) / loss_scale
    scale = torch.clamp(limit / (norm + 1e-6), max=1.0) if limit else torch.ones_like(norm)
    return norm, torch.where(norm.isfinite(), scale, torch.zeros_like(norm)) / loss_scale


def _global_norm(norms: List[Tensor]) -> Tensor:
    """The norm (0-d, fp32) of all gradients, from the norm of each."""
    return torch.linalg.vector_norm(torch.stack(norms).float())


def next_loss_scale(scale: float, clean_steps: int, finite: bool) -> Tuple[float, int]:
    """The loss scale after a step, and how many steps in a row did not overflow with it.

    float16 loses gradients below 6e-8, so the loss, and with it every gradient, is multiplied by
    a scale (Micikevicius et al. 2018): halved when a gradient overflowed (`finite` is false),
    doubled after 2,000 steps in which none did.
    """
    if not finite:
        return scale / 2, 0
    return (scale * 2, 0) if clean_steps + 1 >= 2000 else (scale, clean_steps + 1)


class Update:
    """What the trainer relies on. All tensors are 0-d and on the device."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of one micro-batch's `loss`."""
        loss.backward()  # type: ignore[no-untyped-call]

    def finish(self) -> Tensor:
        """Ends the step, and frees the gradients. Returns their global norm before clipping."""
        raise NotImplementedError

    def saved(self) -> Dict[str, float]:
        """What a checkpoint has to keep, by the names in state.json."""
        return {}


class Clipped(Update):
    """Never waits for the device. `grad_clip` is the largest norm that passes; 0: no clipping."""

    def __init__(
        self, optimizer: AdamW, parameters: Iterable[Tensor], grad_clip: float,
        across: Across = alone,
    ) -> None:  # fmt: skip
        self.optimizer, self.parameters, self.grad_clip = optimizer, list(parameters), grad_clip
        self.across = across

    def finish(self) -> Tensor:
        norm, scale = clip_scale(self.parameters, self.grad_clip, across=self.across)
        self.optimizer.step(scale)
        self.optimizer.zero_grad(set_to_none=True)
        return norm


class Scaled(Clipped):
    """With the dynamic loss scale of fp16-mixed. A step in which a gradient overflowed is skipped,
    and `finish` returns the norm of the last step that was not.
    """

    def __init__(
        self, optimizer: AdamW, parameters: Iterable[Tensor], grad_clip: float,
        loss_scale: float, clean_steps: int = 0, skipped_steps: int = 0, across: Across = alone,
    ) -> None:  # fmt: skip
        super().__init__(optimizer, parameters, grad_clip, across)
        self.loss_scale, self.clean_steps = loss_scale, clean_steps
        self.skipped_steps = skipped_steps
        self.grad_norm = torch.zeros((), device=self.parameters[0].device)

    def backward(self, loss: Tensor) -> None:
        super().backward(loss * self.loss_scale)

    def finish(self) -> Tensor:
        norm, scale = clip_scale(self.parameters, self.grad_clip, self.loss_scale, self.across)
        finite = math.isfinite(norm.item())  # only float16 has to wait for the device here
        if finite:
            self.grad_norm = norm
            self.optimizer.step(scale)
        self.skipped_steps += not finite
        scales = next_loss_scale(self.loss_scale, self.clean_steps, finite)
        self.loss_scale, self.clean_steps = scales
        self.optimizer.zero_grad(set_to_none=True)
        # No scale helps where the loss of float32 has gradients that are no numbers at 1 and below.
        return self.grad_norm if finite or self.loss_scale >= 1.0 else norm

    def saved(self) -> Dict[str, float]:
        names = ("loss_scale", "clean_steps", "skipped_steps")
        return {name: getattr(self, name) for name in names}


class InBackward(Update):
    """Each gradient is freed once its weight has moved (PyTorch 2.1 and later), so that they are
    never all in memory. Hence no clipping, which needs all first, and one micro-batch a step; from
    the first gradient on that is no number, no weight moves in this step any more.
    """

    def __init__(self, optimizer: AdamW, across: Across = alone) -> None:
        self.optimizer, self.across = optimizer, across
        self.norms: List[Tensor] = []  # of this step's gradients so far
        self.sound: Union[float, Tensor] = 0.0  # and nan, once one of them is no number
        for number, group in enumerate(optimizer.param_groups):
            for weight in group["params"]:
                weight.register_post_accumulate_grad_hook(partial(self._step_weight, number))

    def backward(self, loss: Tensor) -> None:
        assert not self.norms, "a step inside the backward pass has one micro-batch"
        self.scalars = self.optimizer.begin_step()
        super().backward(loss)

    def finish(self) -> Tensor:
        norm = self.across(_global_norm(self.norms))
        self.norms.clear()
        self.sound = 0.0
        return norm

    @torch.no_grad()
    def _step_weight(self, group: int, weight: Tensor) -> None:
        assert weight.grad is not None
        self.norms.append(torch.linalg.vector_norm(local(weight.grad)))
        self.sound = self.sound + 0.0 * self.norms[-1].float()
        scale = (self.sound == 0.0).float()
        self.optimizer.step_weight(weight, guarded(self.scalars[group], scale), scale)
        weight.grad = None
