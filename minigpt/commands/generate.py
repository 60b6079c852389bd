"""`python -m minigpt generate`: continues a prompt on the terminal, as the text is made."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Optional, Tuple

from typing_extensions import Annotated

from minigpt.base.errors import UsageError, at_least
from minigpt.checkpoint.model_files import load_model
from minigpt.checkpoint.run_files import resolve
from minigpt.data.template import Template, load_template
from minigpt.data.tokenizer import load_tokenizer
from minigpt.decoding.generate import Sampling, notes, step_for, stream
from minigpt.decoding.text_stream import pieces
from minigpt.devices.device import find_device
from minigpt.training.config import left_open

_NONE = left_open("NUMBER", "no limit")


@dataclass
class GenerateConfig:
    """Continues a prompt with a checkpoint's model."""

    checkpoint: str
    """A checkpoint, or a run (its best checkpoint)."""
    prompt: str = ""
    """The text to continue; empty: the beginning of a document."""
    instruct: bool = False
    """The prompt is an instruction to a tuned model: put it as in training, print the answer."""
    max_new_tokens: int = 256
    """Tokens to add at most, in each sample."""
    temperature: float = 0.8
    """Randomness: 0 always takes the likeliest token, 1 draws from the model's distribution."""
    top_k: Annotated[Optional[int], _NONE] = None
    """Draw from the K likeliest tokens only."""
    top_p: Annotated[Optional[float], _NONE] = None
    """Draw from the likeliest tokens that together have probability P."""
    samples: int = 1
    """How many continuations to make, from one reading of the prompt."""
    seed: Annotated[Optional[int], left_open("INT", "another each time")] = None
    """The same seed gives the same text."""
    stop: Tuple[str, ...] = ()
    """Texts at which a sample ends; they are not printed."""
    compile: bool = False
    """Compile first, for half a minute, then decode faster: how much depends on the processor."""
    device: str = "auto"
    """auto, cpu, cuda, mps or moai."""

    def __post_init__(self) -> None:
        at_least(1, max_new_tokens=self.max_new_tokens, samples=self.samples)
        self.sampling = Sampling(self.temperature, self.top_k, self.top_p)


def generate_command(config: GenerateConfig) -> None:
    """Prints the prompt and its continuation, as it comes; several samples one below the other."""
    directory = resolve(config.checkpoint)
    tokenizer = load_tokenizer(directory)
    device = find_device(config.device)
    model = load_model(directory, device.torch_device)
    if config.compile and device.compiler_missing():
        raise UsageError(device.compiler_missing(), "leave out --compile")
    shown, text, stop = config.prompt, config.prompt, config.stop
    if config.instruct:
        template = tuned_template(directory)
        shown, text, stop = "", template.prompt(config.prompt), config.stop + template.stop
    prompt = tokenizer.encode(text) or [tokenizer.eos_id]
    for line in notes(len(prompt), config.max_new_tokens, model.config.n_positions):
        print(f"note: {line}", file=sys.stderr)
    ended, step = [False] * config.samples, step_for(model, config.compile)
    steps = stream(
        model, [prompt], config.max_new_tokens, ended, config.sampling, tokenizer.eos_id,
        config.seed, step,
    )  # fmt: skip
    rows = pieces(steps, ended, stop, tokenizer)
    if config.samples > 1:
        for number, row in enumerate(zip(*rows), 1):
            print(f"--- sample {number} of {config.samples}\n{shown}{''.join(row)}")
        return
    try:  # each piece of the one text at once; the line ends however that ends
        for piece in chain([shown], chain.from_iterable(rows)):
            print(piece, end="", flush=True)
    finally:
        print(flush=True)


def tuned_template(directory: Path) -> Template:
    """The template that a checkpoint was tuned with, for --instruct; UsageError if it was not."""
    template = load_template(directory)
    if template is None:
        what = f"{directory} was not tuned on instructions"
        raise UsageError(what, "leave out --instruct, or tune it")
    return template
