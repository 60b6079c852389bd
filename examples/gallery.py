"""What a run wrote as it learned: its samples at some steps, side by side, as a table in Markdown.

    python train.py --sample-every 100 --out runs/gallery
    python -m examples.gallery runs/gallery --steps 0 100 1000 6000

A run keeps its samples in samples.md. That of step 0 is not there: it is made here, by the weights
that the seed gives, before any step. Beside each stands the loss of that step in nats a token.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

from minigpt.base.errors import MinigptError
from minigpt.commands.flags import parse_settings
from minigpt.data.tokenizer import load_tokenizer
from minigpt.devices.device import find_device
from minigpt.training.build import build, open_data
from minigpt.training.config import TrainConfig
from minigpt.training.config_file import CONFIG
from minigpt.training.metrics import METRICS, read_metrics
from minigpt.training.resolve import resolve


def before_the_first_step(run):
    """What the run's model wrote before it had learned anything."""
    with tempfile.TemporaryDirectory() as elsewhere:
        words = ["--config", str(run / CONFIG), "--out", str(Path(elsewhere) / "run")]
        config = parse_settings(TrainConfig, "gallery.py", words)
        device = find_device(config.device)
        settings = resolve(config, device)
        tokenizer = load_tokenizer(settings.vocabulary)
        data = open_data(settings, tokenizer)
        trainer = build(resolve(config, device, data), device, tokenizer, data)
        text = trainer.sample(200, 0.8)
        trainer.loader.close()
    return text


def samples(run):
    """{step: text} of the run's samples.md."""
    text = (run / "samples.md").read_text(encoding="utf-8")
    found = re.findall(r"^## step (\d+)\n\n```\n(.*?)\n```\n\n", text, re.M | re.S)
    return {int(step): sample for step, sample in found}


def cell(text, lines=6, width=72):
    """The first lines of a sample, in one cell of a table: nothing in it is Markdown or HTML."""
    shown = [line.rstrip()[:width] for line in text.splitlines() if line.strip()][:lines]
    shown = ["".join(c if c.isprintable() else "\ufffd" for c in line) for line in shown]
    shown = [
        re.sub(r"[\\`*_<>&|~\[\]]", lambda sign: f"&#{ord(sign.group())};", line) for line in shown
    ]
    return "<pre>" + "<br>".join(shown) + "</pre>"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="a run's directory, with its samples.md")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 100, 1000, 6000])
    asked = parser.parse_args()
    if not (asked.run / "samples.md").is_file():
        return f"{asked.run} has no samples.md: make a run with --sample-every 100"
    found = samples(asked.run)
    if 0 in asked.steps:
        found[0] = before_the_first_step(asked.run)
    missing = [step for step in asked.steps if step not in found]
    if missing:
        return f"{asked.run} has no sample of step {missing[0]}, but of: {sorted(found)}"
    losses = {
        one["step"]: one["loss"] for one in read_metrics(asked.run / METRICS) if "loss" in one
    }
    losses[0] = losses[1]  # measured before the first step changes anything
    print("| step | loss | sample |\n|---|---|---|")
    for step in asked.steps:
        print(f"| {step:,} | {losses[step]:.2f} | {cell(found[step])} |")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MinigptError as error:
        sys.exit(str(error))
