"""What runs did: in a few lines, in a table, and in a picture."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

from minigpt.base.text import duration
from minigpt.training.metrics import METRICS, read_metrics

Records = List[Dict[str, Any]]


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
    steps = [0, *(record["step"] for record in losses)]
    seconds = sum(
        record.get("warmup_seconds", 0.0) + record.get("step_seconds", 0.0) * (step - before)
        for record, step, before in zip(losses, steps[1:], steps)
    )
    return {**found, "time": duration(seconds)}


def plot(runs: Sequence[Path]) -> List[str]:
    """Draws the losses of `runs` into one picture, in the first one's directory; returns the line
    that says so, or how to get it.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its caches and fonts are its own
    try:
        import matplotlib
    except ImportError:
        names = " ".join(map(str, runs))
        return [f"plot     pip install matplotlib, then: python -m minigpt report {names}"]
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), constrained_layout=True)
    several, styles = len(runs) > 1, {"loss": ("training", "-"), "val_loss": ("validation", "o-")}
    for number, run in enumerate(runs):
        records = read_metrics(run / METRICS)
        for place, (key, (label, style)) in enumerate(styles.items()):
            points = [(record["step"], record[key]) for record in records if key in record]
            color = f"C{number if several else place}"
            alpha, label = (0.4 + 0.6 * place, f"{run}, {label}") if several else (1.0, label)
            if points:
                axes.plot(*zip(*points), style, label=label, markersize=4, color=color, alpha=alpha)
    title = "" if several else runs[0].name
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    file = runs[0] / ("compared.png" if several else "loss.png")
    _save(figure, axes, file)
    pyplot.close(figure)
    return [f"plot     {file}"]


def _save(figure: Any, axes: Any, file: Path) -> None:
    """Names are no formulas, and one that no font here has letters for is spelled out."""
    texts = [axes.title, *axes.legend().get_texts()]
    for text in texts:
        text.set_parse_math(False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        figure.savefig(str(file), dpi=150)
    if any("Glyph" in str(one.message) for one in said):
        for text in texts:
            text.set_text(text.get_text().encode("ascii", "backslashreplace").decode())
        figure.savefig(str(file), dpi=150)


def shown(what: str, lines: Callable[[], List[str]]) -> List[str]:
    """The lines, or one that says why not: what is done is done, and does not fail any more."""
    try:
        return lines()
    except Exception as error:
        reason = str(error).splitlines() or [repr(error)]
        return [f"{what:<8} not shown: {reason[0]}"]
