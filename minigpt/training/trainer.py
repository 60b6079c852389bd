"""The training loop: pre-training, fine-tuning and resuming are the same forty lines.

    repeat:  batch -> loss -> gradients -> clip -> AdamW
    every so often: log, validate, sample, save

Nothing in a step waits for the device. Loss and gradient norm stay there as tensors, and leave it
together when a line is logged; a step whose gradient is no number moves nothing (watch.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from minigpt.base.errors import DeviceError, TrainingError, storage_error
from minigpt.base.files import write_text
from minigpt.checkpoint import run_files
from minigpt.checkpoint.model_files import Adapter
from minigpt.checkpoint.resume import RunState, help_to_save, save_checkpoint
from minigpt.data.loader import Dataset, Loader
from minigpt.data.template import Template
from minigpt.data.tokenizer import Tokenizer
from minigpt.decoding.generate import decode_step, generate
from minigpt.devices.device import Device, is_out_of_memory
from minigpt.model.gpt import GPT
from minigpt.optim.adamw import AdamW
from minigpt.optim.schedule import learning_rate
from minigpt.optim.update import Update
from minigpt.training.config import Settings
from minigpt.training.interrupt import Interrupt
from minigpt.training.metrics import Clock, Reporter, Silent
from minigpt.training.objective import Objective
from minigpt.training.parallel import World
from minigpt.training.validation import Validation, validate
from minigpt.training.watch import PATIENCE, Watch, no_number


@dataclass
class Trainer:
    """A run: what it is made of, and the loop."""

    settings: Settings
    run: Path
    device: Device
    model: GPT
    objective: Objective  # of the model, with all that is put on from outside
    world: World  # the processes that train it together
    tokenizer: Tokenizer
    optimizer: AdamW
    update: Update  # how gradients become a step of the optimizer
    loader: Loader
    validation: Dataset
    state: RunState
    prompt: List[int]  # what samples continue
    template: Optional[Template] = None  # kept in every checkpoint
    peak: Optional[float] = None  # tokens/s at all FLOP/s of the device, where those are known
    out_of_memory: str = ""  # what to do when that happens
    answers: bool = False  # whether the data are instructions and answers
    adapter: Optional[Adapter] = None  # what is trained, where it is not the weights
    latest: Optional[Validation] = None
    saved: Optional[int] = None  # the step of the newest checkpoint

    def train(self) -> int:
        """Runs to the last step, or to the end of the step in which a signal comes that ends it;
        saves in either case. Returns the exit code: 0, or 128 and the signal (interrupt.py).
        """
        self.reporter = Reporter(
            self.run, self.settings.steps, self.state.step, self.settings.asked.tensorboard,
            self.device.loss_format,
        ) if self.world.first else Silent()  # fmt: skip
        self.clock = Clock()
        self.watch = Watch(self.settings.asked.log_every, self.device.torch_device)
        self.forward = self.world.wrap(self.objective)
        first = self.state.step + 1
        self._point_at_best()
        try:
            with Interrupt() as interrupt:
                stopping = self._stops(interrupt)
                while not (self.finished() or stopping):
                    self.step()
                    stopping = self._stops(interrupt)
                    self._every_so_often(first, stopping)
            return interrupt.exit_code
        except OSError as error:
            raise storage_error(error, self.run) from error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            what = f"the {self.device} has no memory left at step {self.state.step + 1}"
            raise DeviceError(what, self.out_of_memory) from error
        finally:
            self.loader.close()
            self.reporter.close()

    def finished(self) -> bool:
        """Whether all steps are done, or validation has not improved for too long."""
        patience = self.settings.asked.patience
        return self.state.step >= self.settings.steps or 0 < patience <= self.state.worse

    def _stops(self, interrupt: Interrupt) -> bool:
        """Whether a signal has come to any process: all stop after the same step."""
        interrupt.signal = self.world.largest(interrupt.signal or 0) or None
        return interrupt.signal is not None

    def step(self) -> None:
        """One optimizer step on one global batch."""
        batch = next(self.loader)
        if batch.supervised == 0:
            raise TrainingError("a batch has no token to learn from", "check the data's answers")
        self.optimizer.set_lr(self.lr())
        seed, step = self.settings.asked.seed, self.state.step
        self.world.draw_apart(seed, step)
        total = torch.zeros((), device=self.device.torch_device)
        parts = list(batch.micro_batches(self.settings.micro_batch_size))
        for part in parts:
            with self.world.adding(self.forward, last=part is parts[-1]):
                loss = self.forward(part) / batch.supervised
                self.update.backward(loss)
            total += loss.detach()
        self.world.draw_alike(seed, step)
        self.watch.add(total, self.update.finish())
        self.state.step += 1
        self.state.samples_seen = self.loader.samples_seen
        tokens = batch.tokens.numel() * self.world.size
        self.state.tokens_seen += tokens - batch.padding
        self.clock.count(tokens, batch)
        self.reporter.step()

    def lr(self) -> float:
        """The rate of the step that comes next."""
        settings = self.settings
        return learning_rate(
            self.state.step, settings.steps, settings.lr, settings.min_lr, settings.warmup_steps,
            settings.schedule,
        )  # fmt: skip

    def _every_so_often(self, first: int, stopping: bool) -> None:
        """What is due after a step. Before a pause there is always a log line: so the clock
        measures steps alone, and a model whose loss is no number is never saved: if that of the
        last step is none, it is validated before the run ends.
        """
        settings, step = self.settings, self.state.step
        last = step >= settings.steps
        validating = last or _due(step, settings.eval_every)
        # A text that grows is a new shape with every token.
        sampling = not self.device.static_shapes and settings.sample_every > 0
        sampling = sampling and (last or _due(step, settings.sample_every))
        saving = last or stopping or _due(step, settings.save_every)
        pausing = validating or sampling or saving
        if pausing or step == first or _due(step, settings.asked.log_every):
            self._log(warmup=step == first)
        doubtful, ending = self.watch.in_a_row > 0, last or stopping
        if validating or (doubtful and ending):
            self._validate()
        if sampling and not doubtful:
            self._sample()
        if (saving and (ending or not doubtful)) or self.finished():
            self.save()
        if pausing:
            self.clock.restart()

    def _log(self, warmup: bool) -> None:
        seen = self.watch.read(self.state.step, self.loader, self.world)
        speeds = self.clock.read()
        if warmup:
            speeds = {"warmup_seconds": speeds["step_seconds"]}
        state, lr = self.state, self.optimizer.param_groups[0]["lr"]
        record: Dict[str, Any] = {"step": state.step, **seen, "lr": lr}
        record.update(tokens=state.tokens_seen, **speeds)
        if self.peak and "tokens_per_second" in speeds:
            record["mfu"] = speeds["tokens_per_second"] / self.peak
        if self.world.size > 1 and "tokens_per_second" in speeds:
            each = speeds["tokens_per_second"] / self.world.size
            record["tokens_per_second_per_device"] = each
        record["data_wait_seconds"] = round(self.loader.waited, 4)
        if self.device.peak_memory() is not None:
            record["peak_memory"] = self.device.peak_memory()
        self.reporter.log(record)
        if self.watch.in_a_row >= PATIENCE:
            raise no_number(self.run, state.step)

    def validate(self) -> Validation:
        """The model's loss on the validation set."""
        return validate(
            self.objective, self.validation, self.tokenizer.byte_lengths(),
            self.settings.micro_batch_size, self.settings.eval_tokens, self.world,
        )  # fmt: skip

    def _validate(self) -> None:
        step, state = self.state.step, self.state
        result = self.latest = self.validate()
        if not math.isfinite(result.loss):
            raise no_number(self.run, step)
        text = f"step {step}  validation: {result.text(self.device.loss_format)}"
        self.reporter.note(text, {"step": step, **result.record()})
        if state.best_loss is None or result.loss < state.best_loss:
            state.best_loss, state.best_step, state.worse = result.loss, step, 0
            self.save()
            self._point_at_best()
        else:
            state.worse += 1
        if 0 < self.settings.asked.patience <= state.worse:
            text = f"step {step}: no better for {state.worse} validations, stopping;"
            self.reporter.note(f"{text} the best was step {state.best_step}")

    def _point_at_best(self) -> None:
        """Also when a run goes on that was killed after saving its best and before saying so."""
        if self.state.best_step is not None and self.world.first:
            best = run_files.step_directory(self.run, self.state.best_step)
            if best.is_dir():
                run_files.point(self.run, run_files.BEST, best)

    def _sample(self) -> None:
        """Appends a sample to samples.md, in place of what an interrupted run had from here on."""
        text, path = self.sample(200, 0.8), self.run / "samples.md"
        heading = f"## step {self.state.step}\n\n```\n"
        if not self.world.first:
            return
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        write_text(path, f"{before.partition(heading)[0]}{heading}{text}\n```\n\n")

    def sample(self, count: int, temperature: float) -> str:
        """The prompt continued, from a generator of its own: training does not notice."""
        if not (self.world.first or self.world.divided):
            return ""
        stop = self.tokenizer.eos_id if self.answers else None
        step = decode_step if self.world.divided else None
        with self.world.gathered(self.objective):
            ids = generate(
                self.model, self.prompt, count, temperature, 50, stop_id=stop,
                seed=self.settings.asked.seed, step=step,
            )  # fmt: skip
        return self.tokenizer.decode(self.prompt + ids)

    def save(self) -> Path:
        """Writes a checkpoint of this step, unless there is one, and points `latest` at it."""
        directory = run_files.step_directory(self.run, self.state.step)
        if self.saved == self.state.step:
            return directory
        self.world.settle(self.objective)
        if self.world.first:
            self.state.keep_rng(self.device.rng_state())
            vars(self.state).update(self.update.saved())
            save_checkpoint(
                directory, self.model, self.tokenizer, self.optimizer, self.state,
                self.template, self.adapter, self.world.each,
            )  # fmt: skip
            run_files.point(self.run, run_files.LATEST, directory)
            run_files.prune(self.run, self.settings.asked.keep)
        elif self.world.divided:
            help_to_save(directory, self.model, self.optimizer, self.adapter, self.world.each)
        self.world.wait()
        self.saved = self.state.step
        return directory


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
