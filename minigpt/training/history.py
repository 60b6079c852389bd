"""The course of a run, from its metrics.jsonl, in bounded memory however many lines that has."""

from __future__ import annotations

import math
from array import array
from pathlib import Path
from typing import Any, Dict, List, Tuple

from minigpt.training.metrics import METRICS, each_record, numbers

_KEYS = (
    "loss", "val_loss", "val_bits_per_byte", "lr", "grad_norm", "tokens_per_second", "mfu",
    "peak_memory", "warmup_seconds",
)  # fmt: skip
MOST = 2000  # parts of a curve: as many as a screen has points
_WRONG = 100  # values that are no numbers


class History:
    """What a run has written so far. Of steps that were done again the later lines count, and of
    many lines the least and the greatest value in every `width` of them, `most` times or so.
    """

    def __init__(self, run: Path, most: int = MOST) -> None:
        with (run / METRICS).open("rb") as lines:
            self.run, self.width = run, 1 + sum(1 for _ in lines) // most
        self.points: Dict[str, List[Tuple[int, float]]] = {key: [] for key in _KEYS}
        self.wrong: List[Tuple[int, str, str]] = []  # step, key and value where it is no number
        self.steps: List[Dict[str, Any]] = []  # the first line of a step, and the last
        self.speeds, self.seconds = array("d"), 0.0  # tokens/s line by line; of all steps
        begun: Dict[str, int] = {}
        for number, record in enumerate(each_record(run / METRICS)):
            if number % self.width == 0:
                begun = {key: len(points) for key, points in self.points.items()}
            for key, points in self.points.items():
                self._take(record, key, points, begun[key])
            if "loss" in record and all(map(math.isfinite, numbers(record))):
                self._count(record)

    def _take(
        self, record: Dict[str, Any], key: str, points: List[Tuple[int, float]], begun: int
    ) -> None:
        step, kept = record["step"], record["step"] + (key not in record)
        while points and points[-1][0] >= kept:
            points.pop()
        if key in record and not math.isfinite(record[key]):
            self.wrong = [*self.wrong[1 - _WRONG :], (step, key, str(record[key]))]
        elif key in record:
            ranked = sorted([*points[begun:], (step, record[key])], key=lambda point: point[1])
            points[begun:] = sorted({ranked[0], ranked[-1]})

    def _count(self, record: Dict[str, Any]) -> None:
        before = self.steps[-1]["step"] if self.steps else 0
        spent = record.get("step_seconds", 0.0) * max(0, record["step"] - before)
        self.seconds += spent + record.get("warmup_seconds", 0.0)
        self.speeds.extend(record[key] for key in ("tokens_per_second",) if key in record)
        self.steps = [*self.steps[:1], record]
