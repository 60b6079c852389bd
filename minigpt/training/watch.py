"""Watches the losses for steps that went wrong.

A step whose gradient is no number moves no weight (optim/adamw.py), and nobody notices until the
next log line. There it is found, with the samples it was made of; five in a row end the run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List

import torch

from minigpt.base.errors import TrainingError
from minigpt.base.text import word
from minigpt.checkpoint import run_files
from minigpt.data.loader import Loader
from minigpt.training.parallel import World

PATIENCE = 5  # steps in a row
MOST = 10_000  # steps that a line can tell of, however rarely one is logged
_KEPT, _LEARNED, _LEAP = 0.95, 20, 6.0  # of the means; steps that make them; spreads of a spike


class Watch:
    """The loss and gradient norm of each step since the last log line, on the device."""

    def __init__(self, log_every: int, device: torch.device) -> None:
        self.rows = torch.zeros(min(log_every, MOST), 2, device=device)  # always one shape
        self.count = self.in_a_row = self.seen = 0
        self.mean = self.spread = 0.0

    def add(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Notes a step; waits for nothing."""
        row = torch.stack([loss.float(), norm.float()])
        self.rows = torch.cat([self.rows[1:], row[None]])
        self.count += 1

    def read(self, step: int, loader: Loader, world: World) -> Dict[str, Any]:
        """What a log line says of the steps up to `step`, pulled in one transfer: the mean `loss`
        and last `grad_norm`, `skipped_steps` with `skipped_samples`, and `loss_spikes`.
        """
        losses = world.sum(self.rows[:, 0].clone())
        rows = torch.stack([losses, self.rows[:, 1]], 1).tolist()[-self.count :]
        first, self.count, good = step - len(rows) + 1, 0, []
        skipped, spikes = [], []
        for number, row in enumerate(rows, first):
            if all(map(math.isfinite, row)):
                good.append(row)
                spikes += [number] * self._leaps(row[0])
            else:
                skipped.append(number)
            self.in_a_row = 0 if good and good[-1] is row else self.in_a_row + 1
        record: Dict[str, Any] = {}
        if good:
            record["loss"] = sum(loss for loss, _ in good) / len(good)
            record["grad_norm"] = good[-1][1]
        if skipped:
            record["skipped_steps"] = skipped
            record["skipped_samples"] = [_samples(step - n, loader) for n in skipped]
        return {**record, "loss_spikes": spikes} if spikes else record

    def _leaps(self, loss: float) -> bool:
        """Whether it is far above the losses before, which it then belongs to."""
        above, self.seen = loss - self.mean, self.seen + 1
        leaps = self.seen > _LEARNED and above > _LEAP * self.spread
        kept = min(_KEPT, 1.0 - 1.0 / self.seen)
        self.spread = kept * self.spread + (1.0 - kept) * abs(above) * (self.seen > 1)
        self.mean = kept * self.mean + (1.0 - kept) * loss
        return leaps


def _samples(ago: int, loader: Loader) -> List[int]:
    """The whole batch of the step so many steps ago."""
    ids: List[int] = loader.indices(loader.samples_seen - (ago + 1) * loader.batch_size).tolist()
    return ids


def no_number(run: Path, step: int) -> TrainingError:
    """What ends a run, and which checkpoint was the last good one."""
    what = f"the loss or its gradient stopped being a number by step {step}"
    kept = run_files.find(run, (run_files.LATEST,))
    if kept is None:
        return TrainingError(f"{what}, and no weight moved since", "start again with a lower --lr")
    resume = f"python train.py --resume {word(run)} --lr ..."
    return TrainingError(
        what, f"the last good checkpoint is {kept}: try a lower rate with {resume}"
    )
