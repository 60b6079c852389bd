"""The training loop: pre-training, fine-tuning and resuming are the same forty lines.

    repeat:  batch -> logits -> loss -> gradients -> clip -> AdamW
    at times: log, validate, sample, save

Nothing in a step waits for the device. Loss and gradient norm stay there as tensors, and leave it
together when a line is logged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import torch
from torch import Tensor

from minigpt.base.errors import DeviceError, TrainingError, storage_error
from minigpt.checkpoint import run_files
from minigpt.checkpoint.adapter import Adapter
from minigpt.checkpoint.resume import RunState, save_checkpoint
from minigpt.data.loader import Batch, Dataset, Loader
from minigpt.data.template import Template
from minigpt.data.tokenizer import Tokenizer
from minigpt.decoding.generate import generate
from minigpt.devices.device import Device, is_out_of_memory
from minigpt.model.gpt import GPT
from minigpt.optim.adamw import AdamW
from minigpt.optim.clipping import clip_scale, next_loss_scale
from minigpt.optim.schedule import learning_rate
from minigpt.training.interrupt import Interrupt
from minigpt.training.metrics import Clock, Reporter
from minigpt.training.objective import batch_loss
from minigpt.training.settings import Settings
from minigpt.training.validation import Validation, validate


@dataclass
class Trainer:
    """A run. `features` is the model's, compiled or not."""

    settings: Settings
    run: Path
    device: Device
    model: GPT
    features: Callable[..., Tensor]
    tokenizer: Tokenizer
    optimizer: AdamW
    loader: Loader
    validation: Dataset
    state: RunState
    prompt: List[int]  # what samples continue
    template: Optional[Template] = None  # kept in every checkpoint
    peak: Optional[float] = None  # tokens/s at all FLOP/s of the device, where those are known
    answers: bool = False  # whether the data are instructions and answers
    adapter: Optional[Adapter] = None  # what is trained, where it is not the weights
    notes: List[str] = field(default_factory=list)  # about the data
    latest: Optional[Validation] = None

    def train(self) -> int:
        """Runs to the last step, or to the end of the step in which Ctrl-C or SIGTERM comes;
        saves in either case. Returns the exit code: 0, 130 or 143.
        """
        self.reporter = Reporter(
            self.run, self.settings.steps, self.state.step, self.settings.tensorboard,
            self.device.loss_format,
        )  # fmt: skip
        self.clock, self.unlogged = Clock(), 0
        self.loss_total = torch.zeros((), device=self.device.torch_device)
        self.grad_norm = torch.zeros((), device=self.device.torch_device)
        if self.settings.fused_backward:
            self.norms = self.optimizer.fuse_into_backward()
        first = self.state.step + 1
        self._point_at_best()
        try:
            with Interrupt() as interrupt:
                while not self.finished() and interrupt.signal is None:
                    self.step()
                    self._after_step(first, interrupt.signal is not None)
            return interrupt.exit_code
        except OSError as error:
            raise storage_error(error, self.run) from error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceError(
                "the %s has no memory left at step %d" % (self.device, self.state.step + 1),
                self.device.more_memory(),
            ) from error
        finally:
            self.loader.close()
            self.reporter.close()

    def finished(self) -> bool:
        """Whether all steps are done, or validation has not improved for too long."""
        c, state = self.settings, self.state
        return state.step >= c.steps or 0 < c.patience <= state.worse

    def step(self) -> None:
        """One optimizer step on one global batch."""
        batch = next(self.loader)
        if batch.supervised == 0:
            raise TrainingError("a batch has no token to learn from", "check the data's answers")
        self.optimizer.set_lr(self.lr())
        if self.settings.fused_backward:
            self._step_in_backward(batch)
        else:
            for micro in batch.micro_batches(self.settings.micro_batch_size):
                self._accumulate(micro)
            self._step_optimizer()
        self.state.step += 1
        self.state.samples_seen = self.loader.samples_seen
        self.state.tokens_seen += batch.tokens.numel() - batch.padding
        self.unlogged += 1
        self.clock.count(batch)
        self.reporter.step()

    def lr(self) -> float:
        """The rate of the step that comes next."""
        c = self.settings
        return learning_rate(self.state.step, c.steps, c.lr, c.min_lr, c.warmup_steps, c.schedule)

    def _accumulate(self, micro: Batch) -> None:
        loss = self._loss(micro) / micro.supervised
        scaled = loss * self.state.loss_scale if self.state.loss_scale else loss
        scaled.backward()  # type: ignore[no-untyped-call]
        self.loss_total += loss.detach()

    def _step_in_backward(self, batch: Batch) -> None:
        self.optimizer.begin_step()
        self._accumulate(batch)
        self.grad_norm = torch.linalg.vector_norm(torch.stack(self.norms).float())
        self.norms.clear()

    def _step_optimizer(self) -> None:
        state, parameters = self.state, self.model.parameters()
        norm, scale = clip_scale(parameters, self.settings.grad_clip, state.loss_scale or 1.0)
        # Only float16 overflows in a sound run, so only there is the device asked.
        finite = not state.loss_scale or math.isfinite(norm.item())
        if finite:
            self.grad_norm = norm
            self.optimizer.step(scale)
        if state.loss_scale:
            scales = next_loss_scale(state.loss_scale, state.clean_steps, finite)
            state.loss_scale, state.clean_steps = scales
            state.skipped_steps += not finite
        self.optimizer.zero_grad(set_to_none=True)

    def _loss(self, batch: Batch) -> Tensor:
        head, precision = self.model.head_weight, self.settings.precision
        return batch_loss(self.features, head, batch, self.device, precision)

    def _after_step(self, first: int, stopping: bool) -> None:
        c, step = self.settings, self.state.step
        last = step >= c.steps
        validating = last or _due(step, c.eval_every)
        # A text that grows is a new shape with every token.
        sampling = not self.device.static_shapes and (last or _due(step, c.sample_every))
        saving = last or stopping or _due(step, c.save_every)
        pausing = validating or sampling or saving
        # Always before a pause: so the clock measures steps alone, and no ruined model is ever
        # saved.
        if pausing or step == first or _due(step, c.log_every):
            self._log(warmup=step == first)
        if validating:
            self._validate()
        if sampling:
            self._sample()
        if saving or self.finished():
            self.save()
        if pausing:
            self.clock.restart()

    def _log(self, warmup: bool) -> None:
        loss, norm = self._pull()
        speeds = self.clock.read()
        if warmup:
            speeds = {"warmup_seconds": speeds["step_seconds"]}
        record: Dict[str, Any] = {"step": self.state.step, "loss": loss, "grad_norm": norm}
        record.update(
            lr=self.optimizer.param_groups[0]["lr"], tokens=self.state.tokens_seen, **speeds
        )
        if self.peak and "tokens_per_second" in speeds:
            record["mfu"] = speeds["tokens_per_second"] / self.peak
        record["data_wait_seconds"] = round(self.loader.waited, 4)
        if self.device.peak_memory() is not None:
            record["peak_memory"] = self.device.peak_memory()
        self.reporter.log(record)

    def _pull(self) -> tuple[float, float]:
        """The mean loss since the last pull and the last gradient norm: the one transfer from the
        device.
        """
        loss, norm = torch.stack([self.loss_total, self.grad_norm]).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                "the loss or its gradient stopped being a number by step %d" % self.state.step,
                "resume from the last checkpoint with a lower --lr",
            )
        mean = loss / max(1, self.unlogged)
        self.loss_total.zero_()
        self.unlogged = 0
        return mean, norm

    def validate(self) -> Validation:
        """The model's loss on the validation set."""
        return validate(
            self.model, self._loss, self.validation, self.tokenizer.byte_lengths(),
            self.settings.micro_batch_size, self.settings.eval_tokens, self.device.static_shapes,
        )  # fmt: skip

    def _validate(self) -> None:
        result = self.latest = self.validate()
        text = "step %d  validation: " % self.state.step + result.text(self.device.loss_format)
        self.reporter.note(text, {"step": self.state.step, **result.record()})
        if self.state.best_loss is None or result.loss < self.state.best_loss:
            self.state.best_loss, self.state.best_step = result.loss, self.state.step
            self.state.worse = 0
            self.save()
            self._point_at_best()
        else:
            self.state.worse += 1
        if 0 < self.settings.patience <= self.state.worse:
            text = "step %d: no better for %d validations, stopping; the best was step %d"
            steps = self.state.step, self.state.worse, self.state.best_step
            self.reporter.note(text % steps)

    def _point_at_best(self) -> None:
        """Also when a run goes on that was killed after saving its best and before saying so."""
        if self.state.best_step is not None:
            best = run_files.step_directory(self.run, self.state.best_step)
            if best.is_dir():
                run_files.point(self.run, run_files.BEST, best)

    def _sample(self) -> None:
        """Appends a sample to samples.md."""
        text = self.sample(200, 0.8)
        with (self.run / "samples.md").open("a", encoding="utf-8") as file:
            file.write("## step %d\n\n```\n%s\n```\n\n" % (self.state.step, text))

    def sample(self, count: int, temperature: float) -> str:
        """The prompt continued, from a generator of its own: training does not notice."""
        ids = generate(
            self.model, self.prompt, count, temperature, 50,
            stop_id=self.tokenizer.eos_id if self.answers else None, seed=self.settings.seed,
        )  # fmt: skip
        return self.tokenizer.decode(self.prompt + ids)

    def save(self) -> Path:
        """Writes a checkpoint of this step, unless there is one, and points `latest` at it."""
        directory = run_files.step_directory(self.run, self.state.step)
        if run_files.pointed(self.run, run_files.LATEST) != directory:
            self.state.keep_rng(self.device.rng_state())
            save_checkpoint(
                directory, self.model, self.tokenizer, self.optimizer, self.state,
                self.template, self.adapter,
            )  # fmt: skip
            run_files.point(self.run, run_files.LATEST, directory)
            run_files.prune(self.run, self.settings.keep)
        return directory


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
