"""Temporary."""

from __future__ import annotations

import math
from typing import Dict, Iterable, List, Union

import torch
from torch import Tensor

from minigpt.optim.adamw import AdamW
from minigpt.optim.clipping import clip_scale, next_loss_scale


class Update:
    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def finish(self) -> Tensor:
        raise NotImplementedError

    def saved(self) -> Dict[str, Union[int, float]]:
        return {}


class Clipped(Update):
    def __init__(self, optimizer: AdamW, parameters: Iterable[Tensor], grad_clip: float) -> None:
        self.optimizer, self.parameters, self.grad_clip = optimizer, list(parameters), grad_clip

    def finish(self) -> Tensor:
        norm, scale = clip_scale(self.parameters, self.grad_clip, 1.0)
        self.optimizer.step(scale)
        self.optimizer.zero_grad(set_to_none=True)
        return norm


class Scaled(Clipped):
    def __init__(
        self,
        optimizer: AdamW,
        parameters: List[Tensor],
        grad_clip: float,
        loss_scale: float,
        clean_steps: int,
        skipped_steps: int,
    ) -> None:
        super().__init__(optimizer, parameters, grad_clip)
        self.loss_scale, self.clean_steps, self.skipped_steps = (
            loss_scale,
            clean_steps,
            skipped_steps,
        )
        self.norm = torch.zeros(())

    def backward(self, loss: Tensor) -> None:
        super().backward(loss * self.loss_scale)

    def finish(self) -> Tensor:
        norm, scale = clip_scale(self.parameters, self.grad_clip, self.loss_scale)
        finite = math.isfinite(norm.item())
        if finite:
            self.norm = norm
            self.optimizer.step(scale)
        self.loss_scale, self.clean_steps = next_loss_scale(
            self.loss_scale, self.clean_steps, finite
        )
        self.skipped_steps += not finite
        self.optimizer.zero_grad(set_to_none=True)
        return self.norm

    def saved(self):  # type: ignore
        return {k: getattr(self, k) for k in ("loss_scale", "clean_steps", "skipped_steps")}


class InBackward(Update):
    def __init__(self, optimizer: AdamW) -> None:
        self.optimizer = optimizer
        self.norms = optimizer.fuse_into_backward()
        self.begun = False

    def backward(self, loss: Tensor) -> None:
        self.optimizer.begin_step()
        super().backward(loss)

    def finish(self) -> Tensor:
        norm = torch.linalg.vector_norm(torch.stack(self.norms).float())
        self.norms.clear()
        return norm
