"""`python -m minigpt report`: what a run did, how several differ, or which there are."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import tyro

from minigpt.base.errors import DataError, UsageError
from minigpt.training.config import TrainConfig
from minigpt.training.config_file import CONFIG, read_values
from minigpt.training.metrics import METRICS, read_metrics
from minigpt.training.report import Records, facts, plot, shown, summary


@dataclass
class ReportConfig:
    """Summarises a run, compares several, or lists those in a directory; draws the losses."""

    runs: tyro.conf.Positional[Tuple[str, ...]] = ("runs",)
    """A run, several runs, or a directory of runs."""


def report_command(config: ReportConfig) -> None:
    """Prints the summary, the table of what differs, or the list; the first two with a picture."""
    runs = [Path(name) for name in config.runs]
    listed = [] if os.path.isfile(runs[0] / METRICS) or len(runs) > 1 else _runs_in(runs[0])
    if listed:
        known = _rows([facts(read_metrics(run / METRICS)) for run in listed])
        written = [time.localtime((run / METRICS).stat().st_mtime) for run in listed]
        last = ["last line", *(time.strftime("%Y-%m-%d %H:%M", moment) for moment in written)]
        print_table([*zip(["run", *(run.name for run in listed)], *known, last)])
        return
    records = [_records(run) for run in runs]
    if len(runs) > 1:
        differing = [row for row in _rows([*map(_settings, runs)]) if len({*row[1:]}) > 1]
        print_table([["", *map(str, runs)], *differing, *_rows([*map(facts, records)])])
    else:
        print("\n".join(summary(records[0])))
    print("\n".join(shown("plot", lambda: plot(runs))))


def _records(run: Path) -> Records:
    if not os.path.isfile(run / METRICS):
        raise DataError(f"{run} has no {METRICS}", "name a run directory, such as runs/NAME")
    records = read_metrics(run / METRICS)
    if not any("loss" in record for record in records):
        raise DataError(f"{run / METRICS} has no logged step yet", "let the run go on")
    return records


def _settings(run: Path) -> Dict[str, str]:
    with suppress(UsageError):  # written by another version
        return {name: str(v) for name, v in read_values(run / CONFIG, TrainConfig).items()}
    return {}


def _runs_in(directory: Path) -> List[Path]:
    """Its runs, the one that wrote last at the end."""
    with suppress(OSError, ValueError):  # ValueError: what no directory can be called
        logs = [run / METRICS for run in directory.iterdir() if (run / METRICS).is_file()]
        return [log.parent for log in sorted(logs, key=lambda log: log.stat().st_mtime)]
    return []


def _rows(columns: Sequence[Dict[str, str]]) -> List[List[str]]:
    """What each name is in each of the columns, - where it is not."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *(column.get(name, "-") for column in columns)] for name in names]


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints the rows with their columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
