"""`python -m minigpt report`: what a run did, how several differ, or which there are."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Sequence

from minigpt.base.errors import DataError, UsageError
from minigpt.base.text import duration, size, word
from minigpt.commands.options import ReportConfig
from minigpt.commands.page import replace_page
from minigpt.training.claim import in_use
from minigpt.training.closing import plot, shown
from minigpt.training.config import TrainConfig
from minigpt.training.config_file import CONFIG, read_values
from minigpt.training.history import MOST, History
from minigpt.training.metrics import METRICS

_PAUSE = 5  # seconds between two pages of a run that goes on
# What all runs of a page have together, so that it stays below 3 MB.
_POINTS, _SAMPLES = 4 * MOST, 60_000  # of each curve, and bytes


def report_command(config: ReportConfig) -> None:
    """Prints the summary, the table of what differs, or the list; the first two with pictures."""
    runs = [Path(name) for name in config.runs]
    listed = _runs_in(runs[0]) if len(runs) == 1 else []
    if listed and config.watch:
        raise UsageError(f"{runs[0]} is a directory of runs", "name those to watch")
    if listed:
        known = _rows([facts(History(run)) for run in listed])
        written = [time.localtime((run / METRICS).stat().st_mtime) for run in listed]
        last = ["last line", *(time.strftime("%Y-%m-%d %H:%M", moment) for moment in written)]
        print_table([*zip(["run", *(run.name for run in listed)], *known, last)])
        return
    if config.watch:
        _watch(runs)
    histories = _histories(runs)
    for history in histories:
        if not history.steps:
            raise DataError(f"{history.run / METRICS} has no logged step yet", "let the run go on")
    if len(runs) > 1:
        differing = [row for row in _rows([*map(_settings, runs)]) if len({*row[1:]}) > 1]
        print_table([["", *map(str, runs)], *differing, *_rows([*map(facts, histories)])])
    else:
        print("\n".join(summary(histories[0])))
    print("\n".join(shown("page", lambda: _page(histories))))
    print("\n".join(shown("plot", lambda: plot(histories))))


def summary(history: History) -> List[str]:
    """The run in a few lines."""
    known, (first, last) = facts(history), (history.steps[0], history.steps[-1])
    lines = [f"steps    {last['step']}, {last.get('tokens', 0):,} tokens"]
    lines.append(f"loss     {first['loss']:.4f} at first, {last['loss']:.4f} at last")
    if "speed" in known:
        lines.append(f"speed    {known['speed']} (median)")
    if "best loss" in known:
        lines.append(f"best     validation loss {known['best loss']}")
    return [*lines, f"time     {known['time']}, validation and saving left out"]


def facts(history: History) -> Dict[str, str]:
    """The numbers by which runs are compared, as far as they are known; in words."""
    if not history.steps:
        return {}
    found = {"last step": str(history.steps[-1]["step"])}
    validations, bits = history.points["val_loss"], dict(history.points["val_bits_per_byte"])
    if validations:
        step, best = min(validations, key=lambda point: point[1])
        in_bits = f", {bits[step]:.3f} bits per byte" if step in bits else ""
        found["best loss"] = f"{best:.4f}{in_bits}, at {step}"
    speeds = sorted(history.speeds)
    if speeds:
        found["speed"] = f"{int(speeds[len(speeds) // 2]):,} tokens/s"
    return {**found, "time": duration(history.seconds)}


def _watch(runs: List[Path]) -> None:
    """Draws the page again and again, until no process has any of the runs."""
    said = f"page     {word(_place(runs))}: open it in a browser, it follows; Ctrl-C ends this"
    going_on = True
    try:
        while going_on:
            going_on = any(map(in_use, runs))  # asked first, so that what is written last is drawn
            began = time.monotonic()
            _page(_histories(runs), _PAUSE)
            if said:
                print(said, flush=True)
                said = ""
            time.sleep(max(_PAUSE, 10 * (time.monotonic() - began)) if going_on else 0)
    except KeyboardInterrupt:
        _page(_histories(runs))  # which does not open itself anew any more
        raise


def _place(runs: Sequence[Path]) -> Path:
    return runs[0] / ("compared.html" if len(runs) > 1 else "report.html")


def _page(histories: Sequence[History], again: int = 0) -> List[str]:
    """Writes the page, which opens itself anew every `again` seconds; returns what to say of it."""
    runs = [history.run for history in histories]
    drawn = [_drawn(history, _SAMPLES // len(runs)) for history in histories]
    table, settings = _rows([*map(facts, histories)]), _rows([*map(_settings, runs)])
    values = {"again": again, "written": time.strftime("%Y-%m-%d %H:%M:%S"), "runs": drawn}
    values.update(table=table, settings=settings)
    length = replace_page(_place(runs), "report", "Training runs", values)
    return [f"page     {word(_place(runs))} ({size(length)}): open it in a browser"]


def _drawn(history: History, most: int) -> Dict[str, Any]:
    """What report.js draws of a run: points of six digits, and the last `most` bytes of samples."""
    file, samples, series = history.run / "samples.md", b"", {}
    with suppress(OSError), file.open("rb") as text:
        text.seek(max(0, file.stat().st_size - most))
        samples = text.read(most)
    for key, points in history.points.items():
        series[key] = [(step, float(f"{value:.6g}")) for step, value in points]
    about = {"name": str(history.run), "width": history.width, "wrong": history.wrong}
    return {**about, "series": series, "samples": samples.decode("utf-8", "replace")}


def _histories(runs: Sequence[Path]) -> List[History]:
    most, found = max(20, min(MOST, _POINTS // len(runs))), []
    for run in runs:
        try:
            found.append(History(run, most))
        except (OSError, ValueError):  # ValueError: what no file can be called
            fix = "name a run directory, such as runs/NAME"
            raise DataError(f"{run} has no {METRICS}", fix) from None
    return found


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
