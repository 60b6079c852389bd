"""What a run reports: a line on the terminal, a JSON object in metrics.jsonl, perhaps TensorBoard.

Speed is measured between two moments at which the loss has left the device, because only then is
the work known to be done, without the first step, and without validation and saving.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, TextIO

from tqdm import tqdm

from minigpt.base.errors import UsageError, storage_error
from minigpt.base.files import parse_object, write_text
from minigpt.base.text import duration
from minigpt.data.batch import Batch

METRICS = "metrics.jsonl"
LISTS = ("skipped_steps", "skipped_samples", "loss_spikes")  # in it, beside numbers (watch.py)
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # without tqdm's own ETA
_KEPT = 0.9  # of what is known of the pace, from line to line
_SLOW = 10  # times the fastest steps: then others must be using the device


class Clock:
    """Tokens per second since the last `read`, not counting what came before the last `restart`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.began = time.perf_counter()
        self.tokens = self.padding = self.supervised = self.steps = 0

    def count(self, tokens: int, batch: Batch) -> None:
        """One step's `tokens` over all processes; `batch` knows which of them are which."""
        self.tokens += tokens - batch.padding
        self.padding += batch.padding
        self.supervised += batch.supervised
        self.steps += 1

    def read(self) -> Dict[str, float]:
        """The speeds since the last restart; restarts."""
        seconds = max(time.perf_counter() - self.began, 1e-9)
        speeds = {
            "tokens_per_second": self.tokens / seconds,
            "padded_tokens_per_second": (self.tokens + self.padding) / seconds,
            "supervised_per_second": self.supervised / seconds,
            "step_seconds": seconds / max(1, self.steps),
        }
        self.restart()
        return speeds


class Silent:
    """The reporter of a process that another one reports for."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *what: None


class Reporter:
    """Takes records (a dictionary with "step") and shows them: file, terminal, TensorBoard."""

    def __init__(
        self, run: Path, steps: int, done: int, tensorboard: bool = False, loss: str = "%.4f"
    ) -> None:
        path = run / METRICS
        if path.exists():  # drop what an interrupted run wrote after the checkpoint it resumes from
            kept = [json.dumps(r) + "\n" for r in read_metrics(path) if r["step"] <= done]
            write_text(path, "".join(kept))
        self.file = _appended(path)
        self.events: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                what = "--tensorboard needs the tensorboard package"
                raise UsageError(what, "pip install tensorboard") from None
            self.events = SummaryWriter(str(run / "tensorboard"), purge_step=done + 1)
        self.live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.lines = not (self.live and sys.stdout.isatty())  # a log has all of them
        shown = {"disable": not self.live, "bar_format": _BAR, "dynamic_ncols": True}
        self.bar = tqdm(total=steps, initial=done, **shown)
        self.steps, self.loss_format = steps, loss
        self.fastest = math.inf  # seconds of a step
        self.pace, self.printed = (0.0, 0.0), (done, time.perf_counter())  # steps, and seconds

    def step(self) -> None:
        """One step is done; moves the bar and nothing else."""
        self.bar.update()

    def log(self, record: Dict[str, Any]) -> None:
        """Writes a training record and refreshes the line on the terminal."""
        self._write(record)
        text = "loss " + self.loss_format % record["loss"] if "loss" in record else "no loss"
        before, self.printed = self.printed, (record["step"], time.perf_counter())
        if "tokens_per_second" in record:
            # Over the last lines, the newest counting most, and pauses as much as steps.
            steps, seconds = (new - old for new, old in zip(self.printed, before))
            self.pace = _KEPT * self.pace[0] + steps, _KEPT * self.pace[1] + seconds
            left = (self.steps - record["step"]) * self.pace[1] / self.pace[0]
            text += f"  {_speed(record)}  ETA {duration(left)}"
        else:
            text += f"  warm-up {record['warmup_seconds']:.1f} s"
        self.bar.set_postfix_str(text)
        if self.lines:
            print(f"step {record['step']}/{self.steps}  {text}", flush=True)
        self._notice(record.get("step_seconds", 0.0))

    def _notice(self, seconds: float) -> None:
        """Says that steps have become slow, and what to do about it."""
        if seconds > _SLOW * self.fastest:
            self.fastest = math.inf
            text = "something else wants the cores; on a CPU, stop (Ctrl-C) and go on with"
            text += " OMP_WAIT_POLICY=PASSIVE python train.py --resume ..."
            self.note(f"a step takes over {_SLOW} times as long as before: {text}")
        elif seconds:
            self.fastest = min(self.fastest, seconds)

    def note(self, text: str, record: Optional[Dict[str, Any]] = None) -> None:
        """A line that stays on the terminal, with its record for the file."""
        if record is not None:
            self._write(record)
        if self.live:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        self.bar.close()
        self.file.close()
        if self.events is not None:
            self.events.close()

    def _write(self, record: Dict[str, Any]) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        if self.events is not None:
            for name, value in record.items():
                if name != "step" and not isinstance(value, list):
                    self.events.add_scalar(name, value, record["step"])


def _appended(path: Path) -> TextIO:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise storage_error(error, path) from error


def _speed(record: Dict[str, Any]) -> str:
    """Padding is no work done, so it is named apart."""
    useful, padded = record["tokens_per_second"], record["padded_tokens_per_second"]
    text = f"{int(useful):,} tokens/s"
    if useful != padded:
        text += f" ({int(padded):,} with padding)"
    return text + f"  {100 * record['mfu']:.1f}% MFU" if "mfu" in record else text


def read_metrics(path: Path) -> List[Dict[str, Any]]:
    """The records of a metrics.jsonl, without those in which something is infinite or no number."""
    return [r for r in each_record(path) if all(map(math.isfinite, numbers(r)))]


def each_record(path: Path) -> Iterator[Dict[str, Any]]:
    """One after the other; a line that is none, as when a crash cut it, is left out."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                record = parse_object(line)
                list(map(math.isfinite, numbers(record)))  # TypeError for what is no number
                if isinstance(record.get("step"), int):
                    yield record


def numbers(record: Dict[str, Any]) -> List[Any]:
    """All but the lists of a record, of steps and of samples."""
    return [value for name, value in record.items() if name not in LISTS]
