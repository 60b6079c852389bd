"""What a finished run says of itself.

A model that predicts text with n bits per byte could compress it to n bits per byte (Shannon
1948), so gzip and xz on the very same files are an honest yardstick that anyone can check.
"""

from __future__ import annotations

import gzip
import logging
import lzma
import textwrap
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

from minigpt.base.text import visible, word
from minigpt.data.corpus import validation_documents
from minigpt.data.sources import HELD_OUT
from minigpt.training.history import History
from minigpt.training.trainer import Trainer

_YARDSTICK_BYTES = 20_000_000  # compressing more says nothing new and takes long
_COMPRESSORS: Dict[str, Callable[[bytes], bytes]] = {
    "gzip -9": gzip.compress, "xz -9": partial(lzma.compress, preset=9),
}  # fmt: skip


def closing_report(trainer: Trainer) -> str:
    """The last lines of a run: quality, sample, where everything is, and what to try next."""
    text = trainer.tokenizer.decode(trainer.prompt).split("\n")[0].strip("\ufffd") or "..."
    prompting = '--instruct --prompt "..."' if trainer.answers else f"--prompt {word(text)}"
    saved = trainer.save()
    lines = ["", *_quality(trainer), *shown("gzip, xz", lambda: _yardsticks(trainer))]
    lines += ["", *shown("sample", lambda: _sample(trainer)), f"saved    {saved}"]
    lines += shown("plot", lambda: plot([History(trainer.run)]))
    lines += [f"next     python -m minigpt generate --checkpoint {word(trainer.run)} {prompting}"]
    return "\n".join(lines)


def shown(what: str, lines: Callable[[], List[str]]) -> List[str]:
    """The lines, or one that says why not: what is done is done, and does not fail any more."""
    try:
        return lines()
    except Exception as error:
        reason = str(error).splitlines() or [repr(error)]
        return [f"{what:<8} not shown: {reason[0]}"]


def _quality(trainer: Trainer) -> List[str]:
    result, state = trainer.latest or trainer.validate(), trainer.state
    digits, what = trainer.device.loss_format, "tokens"
    if trainer.answers and trainer.template is not None:
        what += " of prompt and answer" if trainer.template.whole else " of answers"
    lines = [f"held out {result.text(digits)} ({result.tokens:,} {what})"]
    if state.best_loss is not None and state.best_step != state.step:
        best = f"best     step {state.best_step}, loss {digits % state.best_loss}"
        lines.append(f"{best}: what --checkpoint {word(trainer.run)} means")
    return lines


def _yardsticks(trainer: Trainer) -> List[str]:
    """Bits per byte of what is held out, compressed document by document, and as one."""
    if trainer.answers:
        return []  # an answer to a question is not a text to compress
    asked = trainer.settings.asked
    how = {"validation": asked.validation or HELD_OUT, "text_key": asked.text_key}
    documents = validation_documents(trainer.settings.data, _YARDSTICK_BYTES, **how)
    lines, total = [], max(1, sum(map(len, documents)))
    for name, compress in _COMPRESSORS.items() if documents else ():
        each = 8 * sum(len(compress(document)) for document in documents) / total
        whole = 8 * len(compress(b"".join(documents))) / total
        lines.append(f"{name:<8} {each:.3f} bits per byte file by file, {whole:.3f} all at once")
    return lines


def _sample(trainer: Trainer) -> List[str]:
    if trainer.device.static_shapes:
        return ["sample   none here: it would be a new graph for every token", ""]
    if not trainer.settings.sample_every:
        return []
    lines = trainer.sample(300, 0.7).splitlines()
    cut = [textwrap.wrap(visible(line), 92, drop_whitespace=False) or [""] for line in lines]
    return ["sample", *("    " + part for parts in cut for part in parts), ""]


def plot(histories: Sequence[History]) -> List[str]:
    """Draws the losses into one picture in the first run's directory; returns what to say of it."""
    runs = [history.run for history in histories]
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its caches and fonts are its own
    try:
        import matplotlib
    except ImportError:
        names = " ".join(map(word, runs))
        return [f"plot     pip install matplotlib, then: python -m minigpt report {names}"]
    matplotlib.use("Agg")
    from matplotlib import pyplot

    several = len(runs) > 1
    figure, axes = pyplot.subplots(figsize=(7, 4), constrained_layout=True)
    for number, (run, history) in enumerate(zip(runs, histories)):
        for key, label, style in (("loss", "training", "-"), ("val_loss", "validation", "o-")):
            points = history.points[key]
            name, color = (f"{run}, {label}", f"C{number}") if several else (label, None)
            if points:
                axes.plot(*zip(*points), style, label=name, color=color, markersize=4)
    title = "" if several else runs[0].name
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    file = runs[0] / ("compared.png" if several else "loss.png")
    _save(figure, [axes.title, *axes.legend().get_texts()], file)
    pyplot.close(figure)
    return [f"plot     {file}"]


def _save(figure: Any, texts: List[Any], file: Path) -> None:
    """Names are no formulas, and one that no font here has letters for is spelled out."""
    for text in texts:
        text.set_parse_math(False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        figure.savefig(str(file), dpi=150)
    if any("Glyph" in str(one.message) for one in said):
        for text in texts:
            text.set_text(text.get_text().encode("ascii", "backslashreplace").decode())
        figure.savefig(str(file), dpi=150)
