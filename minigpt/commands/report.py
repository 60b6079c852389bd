"""`python -m minigpt report`: what a run did, how several differ, or which there are."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import tyro

from minigpt.base.errors import DataError, UsageError
from minigpt.training.config import TrainConfig
from minigpt.training.config_file import CONFIG, read_values
from minigpt.training.metrics import METRICS, read_metrics
from minigpt.training.report import facts, plot, shown, summary, table

_FACTS = ("last step", "best loss", "speed", "time")


@dataclass
class ReportConfig:
    """Summarises a run, compares several, or lists those in a directory; draws the losses."""

    runs: tyro.conf.Positional[Tuple[str, ...]] = ("runs",)
    """A run, several runs, or a directory of runs."""


def report_command(config: ReportConfig) -> None:
    """Prints the summary, the table of what differs, or the list; the first two with a picture."""
    runs = [Path(name) for name in config.runs]
    listed = _runs_in(runs[0])
    if len(runs) == 1 and listed and not (runs[0] / METRICS).is_file():
        print("\n".join(table(_list(listed))))
        return
    records = [_records(run) for run in runs]
    print("\n".join(summary(records[0]) if len(runs) == 1 else table(_compared(runs, records))))
    print("\n".join(shown("plot", lambda: plot(runs))))


def _records(run: Path) -> List[Dict[str, Any]]:
    if not os.path.isfile(run / METRICS):
        raise DataError(f"{run} has no {METRICS}", "name a run directory, such as runs/NAME")
    records = read_metrics(run / METRICS)
    if not any("loss" in record for record in records):
        raise DataError(f"{run / METRICS} has no logged step yet", "let the run go on")
    return records


def _runs_in(directory: Path) -> List[Path]:
    """Its runs, the one that wrote last at the end."""
    with suppress(OSError, ValueError):  # ValueError: what no directory can be called
        logs = [run / METRICS for run in directory.iterdir() if (run / METRICS).is_file()]
        return [log.parent for log in sorted(logs, key=lambda log: log.stat().st_mtime)]
    return []


def _list(runs: Sequence[Path]) -> List[List[str]]:
    rows = [["run", *_FACTS, "last line"]]
    for run in runs:
        known, last = facts(read_metrics(run / METRICS)), (run / METRICS).stat().st_mtime
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(last))
        rows.append([run.name, *(known.get(fact, "-") for fact in _FACTS), written])
    return rows


def _compared(runs: Sequence[Path], records: Sequence[List[Dict[str, Any]]]) -> List[List[str]]:
    """A column for each run; a row for each setting that differs, and for each fact."""
    columns: List[Dict[str, str]] = []
    for run, history in zip(runs, records):
        settings: Dict[str, Any] = {}
        with suppress(UsageError):  # written by another version
            settings = read_values(run / CONFIG, TrainConfig)
        columns.append({**{name: str(v) for name, v in settings.items()}, **facts(history)})
    names = dict.fromkeys(name for column in columns for name in column if name not in _FACTS)
    rows = [["", *map(str, runs)]]
    for name in [*names, *_FACTS]:
        values = [column.get(name, "-") for column in columns]
        if name in _FACTS or len({*values}) > 1:
            rows.append([name, *values])
    return rows
