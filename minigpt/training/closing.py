"""What a finished run says of itself: how well it predicts unseen text, beside what compressors
make of it.

A model that predicts text with n bits per byte could compress it to n bits per byte (Shannon
1948), so gzip and xz on the very same files are an honest yardstick that anyone can check.
"""

from __future__ import annotations

import gzip
import lzma
import shlex
import textwrap
from functools import partial
from typing import Callable, List, Tuple

from minigpt.base.text import visible
from minigpt.data.corpus import validation_documents
from minigpt.data.sources import HELD_OUT
from minigpt.training.report import plot, shown
from minigpt.training.trainer import Trainer

Compress = Callable[[bytes], bytes]

_YARDSTICK_BYTES = 20_000_000  # compressing more says nothing new and takes long


def closing_report(trainer: Trainer) -> str:
    """The last lines of a run: quality, sample, where everything is, and what to try next."""
    text = trainer.tokenizer.decode(trainer.prompt).split("\n")[0].strip("\ufffd") or "..."
    prompting = '--instruct --prompt "..."' if trainer.answers else f"--prompt {shlex.quote(text)}"
    saved = trainer.save()
    lines = ["", *_quality(trainer), *shown("gzip, xz", lambda: _yardsticks(trainer))]
    lines += ["", *shown("sample", lambda: _sample(trainer)), f"saved    {saved}"]
    lines += shown("plot", lambda: plot([trainer.run]))
    lines += [f"next     python -m minigpt generate --checkpoint {trainer.run} {prompting}"]
    return "\n".join(lines)


def _quality(trainer: Trainer) -> List[str]:
    result, state = trainer.latest or trainer.validate(), trainer.state
    digits, what = trainer.device.loss_format, "tokens"
    if trainer.answers and trainer.template is not None:
        what += " of prompt and answer" if trainer.template.whole else " of answers"
    lines = [f"held out {result.text(digits)} ({result.tokens:,} {what})"]
    if state.best_step != state.step:
        assert state.best_loss is not None and state.best_step is not None
        text = "best     step %d, loss " + digits + ": what --checkpoint %s means"
        lines.append(text % (state.best_step, state.best_loss, trainer.run))
    return lines


def _yardsticks(trainer: Trainer) -> List[str]:
    if trainer.answers:
        return []  # an answer to a question is not a text to compress
    s = trainer.settings
    how = {"validation": s.validation or HELD_OUT, "text_key": s.text_key}
    documents = validation_documents(s.data, _YARDSTICK_BYTES, **how)
    if not documents:
        return []
    lines = []
    for name, compress in (("gzip -9", gzip.compress), ("xz -9", partial(lzma.compress, preset=9))):
        each, whole = bits_per_byte(documents, compress)
        lines.append(f"{name:<8} {each:.3f} bits per byte file by file, {whole:.3f} all at once")
    return lines


def bits_per_byte(documents: List[bytes], compress: Compress) -> Tuple[float, float]:
    """Bits per byte of `documents` compressed one by one, and as one."""
    total = max(1, sum(map(len, documents)))
    each = sum(len(compress(document)) for document in documents)
    return 8 * each / total, 8 * len(compress(b"".join(documents))) / total


def _sample(trainer: Trainer) -> List[str]:
    if trainer.device.static_shapes:
        return ["sample   none here: it would be a new graph for every token", ""]
    if not trainer.settings.sample_every:
        return []
    lines = trainer.sample(300, 0.7).splitlines()
    cut = [textwrap.wrap(visible(line), 92, drop_whitespace=False) or [""] for line in lines]
    return ["sample", *("    " + part for parts in cut for part in parts), ""]
