"""What a run did, in a few lines and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

from minigpt.training.metrics import METRICS, read_metrics

Records = List[Dict[str, Any]]


def summary(records: Records) -> List[str]:
    """The run in a few lines."""
    losses = [record for record in records if "loss" in record]
    speeds = sorted(r["tokens_per_second"] for r in losses if "tokens_per_second" in r)
    lines = [f"steps    {losses[-1]['step']}, {losses[-1]['tokens']:,} tokens"]
    lines.append(f"loss     {losses[0]['loss']:.4f} at first, {losses[-1]['loss']:.4f} at last")
    if speeds:
        lines.append(f"speed    {int(speeds[len(speeds) // 2]):,} tokens/s (median)")
    validations = [record for record in records if "val_loss" in record]
    if validations:
        best = min(validations, key=lambda record: float(record["val_loss"]))
        text = f"validation loss {best['val_loss']:.4f}, {best['val_bits_per_byte']:.3f}"
        lines.append(f"best     {text} bits per byte, at step {best['step']}")
    return lines


def plot(run: Path) -> str:
    """Draws both losses into loss.png; returns the line that says so, or how to get it."""
    try:
        import matplotlib
    except ImportError:
        return f"plot     pip install matplotlib, then: python -m minigpt report {run}"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_metrics(run / METRICS)
    figure, axes = pyplot.subplots(figsize=(7, 4), constrained_layout=True)
    for key, label, style in (("loss", "training", "-"), ("val_loss", "validation", "o-")):
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points), style, label=label, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=run.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(str(run / "loss.png"), dpi=150)
    pyplot.close(figure)
    return f"plot     {run / 'loss.png'}"
