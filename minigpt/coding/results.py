"""What an evaluation has found so far, on disk, so that it can be stopped and go on.

FILE.jsonl                  a completion a line, the samples of a problem together
FILE.jsonl.settings.json    how they were made
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from minigpt.base.errors import DataError, UsageError, storage_error
from minigpt.base.files import fsync, parse_object, read_object, write_json

_ELSEWHERE = "name another file with --out"


@dataclass(frozen=True)
class Completion:
    """A line of the results."""

    task_id: str
    sample: int
    completion: str
    passed: bool
    reason: str


class Results:
    """Both files. Problems are appended whole and in order; other settings' results are refused."""

    def __init__(self, path: Path, settings: Dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.completions: List[Completion] = []

    def open(self, tasks: Sequence[str], samples: int) -> None:
        """Reads the finished problems of `tasks`, and removes what a crash has left behind them."""
        beside = self.path.with_name(self.path.name + ".settings.json")
        try:
            if not self.path.exists():
                self._may_replace(beside)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(beside, self.settings)
                self.path.touch()
            self._check(beside)
            self._keep(tasks, samples)
        except OSError as error:
            raise storage_error(error, self.path) from error

    def append(self, completions: Sequence[Completion]) -> None:
        """Writes a problem's completions, and waits until they are on the disk."""
        lines = "".join(json.dumps(asdict(completion)) + "\n" for completion in completions)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(lines)
            fsync(self.path)
        except OSError as error:
            raise storage_error(error, self.path) from error
        self.completions += completions

    def _may_replace(self, beside: Path) -> None:
        """Settings of ours, whose results were removed, give way; another's file does not."""
        try:
            ours = not beside.exists() or {*self.settings} <= {*read_object(beside)}
        except DataError:
            ours = False
        if not ours:
            raise UsageError(f"{beside} is in the way", _ELSEWHERE)

    def _check(self, beside: Path) -> None:
        try:
            found = read_object(beside)
        except DataError:
            what = f"{self.path} has no {beside.name} beside it"
            raise UsageError(what, _ELSEWHERE) from None
        found.pop("limit", None)  # in older files; it changes no completion
        for name in {**found, **self.settings}:
            was, wanted = found.get(name), self.settings.get(name)
            if was != wanted:
                what = f"{self.path} holds another evaluation: its {name} is {was} and not {wanted}"
                raise UsageError(what, _ELSEWHERE)

    def _keep(self, tasks: Sequence[str], samples: int) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        for place, task in enumerate(tasks):
            first = place * samples
            found = [_completion(line) for line in lines[first : first + samples]]
            whole = [one for one in found if one is not None and one.task_id == task]
            if [one.sample for one in whole] != list(range(samples)):
                os.truncate(str(self.path), sum(map(len, lines[:first])))
                return
            self.completions += whole


def _completion(line: bytes) -> Optional[Completion]:
    try:
        return Completion(**parse_object(line)) if line.endswith(b"\n") else None
    except (TypeError, ValueError):
        return None
