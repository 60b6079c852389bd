"""An optimizer step as the trainer takes it:

    for each micro-batch:  update.backward(loss)
    grad_norm = update.finish()

It comes in three kinds. `Clipped` adds up the gradients, clips them and moves the weights. `Scaled`
does the same for float16, whose gradients may overflow. `InBackward` moves every weight inside the
backward pass, as soon as its gradient is there.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Dict, Iterable, List

import torch
from torch import Tensor

from minigpt.base.divided import local
from minigpt.optim.adamw import AdamW
from minigpt.optim.clipping import Across, alone, clip_scale, global_norm, next_loss_scale


class Update:
    """What the trainer relies on. All tensors are 0-d and on the device."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of one micro-batch's `loss`."""
        raise NotImplementedError

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

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def finish(self) -> Tensor:
        norm, scale = clip_scale(self.parameters, self.grad_clip, across=self.across)
        self.optimizer.step(scale)
        self.optimizer.zero_grad(set_to_none=True)
        return norm


class Scaled(Clipped):
    """With the dynamic loss scale of fp16-mixed (clipping.py). A step in which a gradient
    overflowed is skipped, and `finish` returns the norm of the last step that was not.
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
        (loss * self.loss_scale).backward()  # type: ignore[no-untyped-call]

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
        return self.grad_norm

    def saved(self) -> Dict[str, float]:
        names = ("loss_scale", "clean_steps", "skipped_steps")
        return {name: getattr(self, name) for name in names}


class InBackward(Update):
    """Each gradient is freed once its weight has moved (PyTorch 2.1 and later), so that they are
    never all in memory. Hence no clipping, which needs all first, and one micro-batch a step.
    """

    def __init__(self, optimizer: AdamW, across: Across = alone) -> None:
        self.optimizer, self.across = optimizer, across
        self.norms: List[Tensor] = []  # of this step's gradients so far
        for number, group in enumerate(optimizer.param_groups):
            for weight in group["params"]:
                weight.register_post_accumulate_grad_hook(partial(self._step_weight, number))

    def backward(self, loss: Tensor) -> None:
        assert not self.norms, "a step inside the backward pass has one micro-batch"
        self.scalars = self.optimizer.begin_step()
        loss.backward()  # type: ignore[no-untyped-call]

    def finish(self) -> Tensor:
        norm = self.across(global_norm(self.norms))
        self.norms.clear()
        return norm

    @torch.no_grad()
    def _step_weight(self, group: int, weight: Tensor) -> None:
        assert weight.grad is not None
        self.norms.append(torch.linalg.vector_norm(local(weight.grad)))
        self.optimizer.step_weight(weight, self.scalars[group])
        weight.grad = None
