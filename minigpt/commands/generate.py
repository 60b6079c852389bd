"""`python -m minigpt generate`: continues prompts on the terminal, as the text is made."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

import torch

from minigpt.base.errors import DataError, DeviceError, UsageError
from minigpt.base.text import size
from minigpt.checkpoint.model_files import load_model, read_adapter, read_config
from minigpt.checkpoint.run_files import resolve
from minigpt.commands.options import DecodingConfig, GenerateConfig
from minigpt.data.template import Template, load_template
from minigpt.data.tokenizer import END_MARK, load_tokenizer, reading_marks
from minigpt.decoding.generate import Sampling, pieces, step_for, stream
from minigpt.devices.device import Device, find_device

_BYTES = 1 << 24  # more than any prompt has
_USUAL = 256  # tokens of a text, where nothing says how many


class Writer:
    """A checkpoint's model, which continues texts as the flags say."""

    def __init__(self, config: DecodingConfig) -> None:
        penalty = config.repetition_penalty
        self.sampling = Sampling(config.temperature, config.top_k, config.top_p, penalty)
        device, self.config = find_device(config.device), config
        if config.compile and device.compiler_missing():
            raise UsageError(device.compiler_missing(), "leave out --compile")
        self.directory = resolve(config.checkpoint)
        self.tokenizer = load_tokenizer(self.directory)
        int8 = config.quantize is not None
        require_room(self.directory, device, int8=int8)
        self.model = load_model(self.directory, device.torch_device, int8=int8)
        self.positions = self.model.config.n_positions
        # On a GPU products with weights of 8 bits are five times as slow as others, or compiled.
        needed = int8 and device.has_graphs and not device.compiler_missing()
        self.step = step_for(self.model, config.compile or needed)
        if config.compile or needed:
            note("compiling: the first token takes half a minute")

    def write(
        self, prompts: Sequence[List[int]], stop: Tuple[str, ...], samples: int = 1, turn: int = 0
    ) -> Iterator[List[str]]:
        """The text of each continuation as it becomes certain, a piece of each at a time."""
        config, eos = self.config, self.tokenizer.eos_id
        seed = None if config.seed is None else config.seed + turn
        longest = max(map(len, prompts))
        new = config.max_new_tokens
        if new is None:
            new = min(_USUAL, max(self.positions - longest + 1, self.positions // 2))
        for line in notes(longest, new, self.positions):
            note(line)
        ended = [False] * len(prompts) * samples
        steps = stream(self.model, prompts, new, ended, self.sampling, eos, seed, self.step)
        return pieces(steps, ended, config.stops + stop, self.tokenizer)


def generate_command(config: GenerateConfig) -> None:
    """Prints each prompt and its continuation; several one below the other, when all are done."""
    prompts = [read_prompt("-") if text == "-" else text for text in config.prompt]
    prompts = [*prompts, *map(read_prompt, config.prompt_file)] or [""]
    writer = Writer(config)
    shown, texts, stop = prompts, prompts, ()  # type: Sequence[str], Sequence[str], Tuple[str, ...]
    if config.instruct:
        template = tuned_template(writer.directory)
        shown, texts, stop = [""] * len(prompts), [*map(template.prompt, prompts)], template.stop
    tokenizer = reading_marks(writer.tokenizer) if config.special_tokens else writer.tokenizer
    if not config.special_tokens and any(map(END_MARK.search, texts)):
        note("<|endoftext|> is read as text; --special-tokens reads it as the end of a document")
    ids = [tokenizer.prompt(text) for text in texts]
    rows = writer.write(ids, stop, config.samples)
    if len(ids) * config.samples > 1:
        _print_all(rows, shown, config.samples)
        return
    try:  # each piece of the one text at once; the line ends however that ends
        for piece in chain(shown, chain.from_iterable(rows)):
            print(piece, end="", flush=True)
    finally:
        print(flush=True)


def require_room(
    directory: Path, device: Device, dtype: Optional[torch.dtype] = None, int8: bool = False
) -> None:
    """DeviceError, before anything is read, when the weights of the checkpoint alone are more than
    is free on the device. `dtype` None: they stay in the files'.
    """
    shape, adapter, free = read_config(directory), read_adapter(directory), device.free_memory()
    weights = (directory if adapter is None else adapter.base).glob("model*.safetensors")
    count, matrices = shape.parameter_count(), shape.matrix_count()
    width = sum(path.stat().st_size for path in weights) / count
    if dtype is not None:
        width = torch.empty(0, dtype=dtype).element_size()
    whole, small = count * width, (count - matrices) * width + matrices
    needed = small if int8 else whole
    if free is None or needed <= free:
        return
    fix = f"--quantize int8 takes {size(small)}" if small <= free and not int8 else "use another"
    what = f"the weights of {directory} take {size(needed)}, and {size(free)} are free on {device}"
    raise DeviceError(what, fix)


def _print_all(rows: Iterator[List[str]], shown: Sequence[str], samples: int) -> None:
    """Prints all texts under headings, as far as they are there when Ctrl-C comes."""
    texts = [text for text in shown for _ in range(samples)]
    try:
        for row in rows:
            texts = [text + piece for text, piece in zip(texts, row)]
    finally:
        for number, text in enumerate(texts):
            place = [f"prompt {number // samples + 1} of {len(shown)}"] * (len(shown) > 1)
            place += [f"sample {number % samples + 1} of {samples}"] * (samples > 1)
            print(f"--- {', '.join(place)}\n{text}", flush=True)


def read_prompt(name: str) -> str:
    """The text in a file, or standard input for -, without the end of its last line."""
    try:
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
            data = file.read(_BYTES + 1)
        if len(data) > _BYTES:
            raise ValueError(f"it has more than {size(_BYTES)}")
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        what = f"no prompt can be read from {name}: {getattr(error, 'strerror', None) or error}"
        raise DataError(what, "name a file of UTF-8 text, or - for standard input") from None
    return text[:-1] if text.endswith("\n") else text


def notes(tokens: int, new: int, positions: int) -> List[str]:
    """What is unusual about a prompt of `tokens` continued by `new`, given the positions."""
    lines = []
    if tokens > positions:
        long = f"the prompt has {tokens} tokens and the model {positions} positions"
        lines.append(f"{long}: its last {positions} are used")
    if min(tokens, positions) + new - 1 > positions:
        long = f"the text will outgrow the model's {positions} positions: each time it does,"
        lines.append(f"{long} only its last {positions // 2} tokens are remembered")
    return lines


def note(text: str) -> None:
    """A line for the person, apart from the text."""
    print(f"note: {text}", file=sys.stderr, flush=True)


def tuned_template(directory: Path, fix: str = "leave out --instruct, or tune it") -> Template:
    """The template that a checkpoint was tuned with; UsageError if it was not."""
    template = load_template(directory)
    if template is None:
        raise UsageError(f"{directory} was not tuned on instructions", fix)
    return template
