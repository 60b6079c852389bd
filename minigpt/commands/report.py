"""`python -m minigpt report runs/NAME`: what a run did, in a few lines and a plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from minigpt.base.errors import DataError
from minigpt.training.metrics import METRICS, read_metrics
from minigpt.training.report import plot, summary


@dataclass
class ReportConfig:
    """Summarises a run and plots its losses."""

    run: tyro.conf.Positional[str]
    """The run directory."""


def report_command(config: ReportConfig) -> None:
    """Prints the summary of `config.run` and writes its loss.png."""
    run = Path(config.run)
    if not (run / METRICS).is_file():
        raise DataError(f"{run} has no {METRICS}", "name a run directory, such as runs/NAME")
    records = read_metrics(run / METRICS)
    if not any("loss" in record for record in records):
        raise DataError(f"{run / METRICS} has no logged step yet", "let the run go on")
    print("\n".join(summary(records)))
    print(plot(run))
