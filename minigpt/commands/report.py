"""`python -m minigpt report`: what a run did, how several differ, or which there are."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Sequence

from minigpt.base.errors import DataError, UsageError
from minigpt.base.text import duration
from minigpt.commands.options import ReportConfig
from minigpt.training.closing import plot, shown
from minigpt.training.config import TrainConfig
from minigpt.training.config_file import CONFIG, read_values
from minigpt.training.metrics import METRICS, read_metrics

Records = List[Dict[str, Any]]


def report_command(config: ReportConfig) -> None:
    """Prints the summary, the table of what differs, or the list; the first two with a picture."""
    runs = [Path(name) for name in config.runs]
    listed = _runs_in(runs[0]) if len(runs) == 1 else []
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


def summary(records: Records) -> List[str]:
    """The run in a few lines."""
    losses, known = [record for record in records if "loss" in record], facts(records)
    lines = [f"steps    {losses[-1]['step']}, {losses[-1].get('tokens', 0):,} tokens"]
    lines.append(f"loss     {losses[0]['loss']:.4f} at first, {losses[-1]['loss']:.4f} at last")
    if "speed" in known:
        lines.append(f"speed    {known['speed']} (median)")
    if "best loss" in known:
        lines.append(f"best     validation loss {known['best loss']}")
    return [*lines, f"time     {known['time']}, validation and saving left out"]


def facts(records: Records) -> Dict[str, str]:
    """The numbers by which runs are compared, as far as they are known; in words."""
    losses = [record for record in records if "loss" in record]
    if not losses:
        return {}
    found = {"last step": str(losses[-1]["step"])}
    validations = [record for record in records if "val_loss" in record]
    if validations:
        best = min(validations, key=lambda record: float(record["val_loss"]))
        bits = best.get("val_bits_per_byte", 0.0)
        found["best loss"] = f"{best['val_loss']:.4f}, {bits:.3f} bits per byte, at {best['step']}"
    speeds = sorted(r["tokens_per_second"] for r in losses if "tokens_per_second" in r)
    if speeds:
        found["speed"] = f"{int(speeds[len(speeds) // 2]):,} tokens/s"
    seconds, before = 0.0, 0
    for record in losses:
        seconds += record.get("warmup_seconds", 0.0)
        seconds += record.get("step_seconds", 0.0) * (record["step"] - before)
        before = record["step"]
    return {**found, "time": duration(seconds)}


def _records(run: Path) -> Records:
    try:
        records = read_metrics(run / METRICS)
    except (OSError, ValueError):  # ValueError: what no file can be called
        fix = "name a run directory, such as runs/NAME"
        raise DataError(f"{run} has no {METRICS}", fix) from None
    if not any("loss" in record for record in records):
        raise DataError(f"{run / METRICS} has no logged step yet", "let the run go on")
    return records


def _settings(run: Path) -> Dict[str, str]:
    with suppress(UsageError):  # written by another version
        return {name: str(v) for name, v in read_values(run / CONFIG, TrainConfig).items()}
    return {}


def _runs_in(directory: Path) -> List[Path]:
    """The runs in what is no run itself, the one that wrote last at the end."""
    with suppress(OSError, ValueError):
        if not (directory / METRICS).is_file():
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
