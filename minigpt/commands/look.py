"""`python -m minigpt look`: what happens inside a model while it reads a prompt, as one HTML file
that needs nothing else. What it shows is computed in look_taps.py, and drawn by look.js.
"""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any, Dict, List, Union

import numpy as np

from minigpt.base.errors import as_ids, storage_error
from minigpt.base.files import require_free, write_text
from minigpt.base.text import size, visible, word
from minigpt.checkpoint.model_files import load_model
from minigpt.checkpoint.run_files import resolve
from minigpt.commands.generate import note, notes, read_prompt, require_room, tuned_template
from minigpt.commands.look_taps import Guess, Inside, Layer, look_inside
from minigpt.commands.options import LookConfig
from minigpt.commands.page import page_of
from minigpt.data.tokenizer import Tokenizer, load_tokenizer, reading_marks
from minigpt.devices.device import find_device
from minigpt.model.config import GPTConfig

_WEIGHTS = 1 << 22  # of attention in a page; 13B has so many for 72 tokens
_PRECISE = 1 << 20  # up to here each has two bytes, of which people see four digits
_SIGNS = str.maketrans(" \n\t\r", "·↵⇥␍")


def look_command(config: LookConfig) -> None:
    """Writes the page, and says where it is and what is not in it."""
    out, directory = Path(config.out), resolve(config.checkpoint)
    require_free(out, source=directory, kind="file")
    device, tokenizer = find_device(config.device), load_tokenizer(directory)
    text = read_prompt("-") if config.prompt == "-" else config.prompt
    if config.instruct:
        text = tuned_template(directory).prompt(text)
    require_room(directory, device)
    model = load_model(directory, device.torch_device)
    reader = reading_marks(tokenizer) if config.special_tokens else tokenizer
    ids = as_ids(reader.prompt(text), "prompt", model.config.vocab_size)
    read = ids[-model.config.n_positions :]
    shown = shown_tokens(model.config, len(read), config.last)
    inside = look_inside(model, read, shown)
    cut = [*notes(len(ids), 1, model.config.n_positions), *left_out(inside, config.last)]
    about = {"checkpoint": str(directory), "dtype": str(model.head_weight.dtype).split(".")[-1]}
    values = {**about, "notes": cut, **contents(inside, model.config, tokenizer)}
    page = page_of("look", "Inside a GPT", values)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, out) from error
    require_free(out, source=directory, kind="file")  # something may have appeared meanwhile
    write_text(out, page)
    for line in cut:
        note(line)
    print(f"{shown} tokens in {word(out)} ({size(len(page.encode()))}): open it in a browser")


def shown_tokens(config: GPTConfig, tokens: int, last: int) -> int:
    """How many of the `tokens` to show when the last `last` are asked for: the weights of attention
    grow with the square of that, and a browser has to hold them.
    """
    most = math.isqrt(2 * _WEIGHTS // (config.n_layer * config.n_head))
    return max(1, min(tokens, last, most))


def left_out(inside: Inside, last: int) -> List[str]:
    """What is not in the page, in sentences."""
    shown, lines = len(inside.tokens), []
    if inside.earlier:
        why = "--last shows more" if shown == last else "more would be too large for a browser"
        tokens = inside.earlier + shown
        lines.append(f"the model read {tokens} tokens, of which the last {shown} are shown: {why}")
    if _width(inside) == 1:
        lines.append("so many attention weights are kept in 8 bits each, to 1/255")
    return lines


def contents(inside: Inside, config: GPTConfig, tokenizer: Tokenizer) -> Dict[str, Any]:
    """What look.js reads: numbers of four digits, and a text for every token that is named."""
    named = {*inside.tokens}.union(*(guess.tokens.ravel().tolist() for guess in inside.lens))
    model = {"layers": config.n_layer, "heads": config.n_head, "embd": config.n_embd}
    width = _width(inside)
    return {
        "model": {**model, "inner": config.inner, "parameters": config.parameter_count()},
        "vocabulary": {token: label(tokenizer, token) for token in sorted(named)},
        "tokens": inside.tokens,
        "earlier": inside.earlier,
        "lens": [*map(_rounded, inside.lens)],
        "norms": [*map(digits, inside.norms)],
        "layers": [*map(_rounded, inside.layers)],
        "attention": [packed(one.attention, width, inside.earlier > 0) for one in inside.layers],
        "steps": 256**width - 1,
    }


def _rounded(record: Union[Guess, Layer]) -> Dict[str, Any]:
    return {name: digits(value) for name, value in vars(record).items() if name != "attention"}


def _width(inside: Inside) -> int:
    """Bytes a weight of attention has in the page."""
    return 2 if sum(layer.attention.size for layer in inside.layers) <= 2 * _PRECISE else 1


def digits(values: Any) -> Any:
    """An array as nested lists, of numbers of four digits or whole ones; None for infinity."""
    if np.ndim(values):
        return [*map(digits, values)]
    if isinstance(values, np.integer):
        return int(values)
    return float(f"{float(values):.4g}") if math.isfinite(values) else None


def packed(weights: np.ndarray, width: int, earlier: bool) -> str:
    """weights (H, N, 1 + N) as unsigned integers of `width` bytes in base64: of each head and query
    the weight of all that is `earlier` than what is shown, if anything is, and those up to itself.
    """
    there = np.tri(weights.shape[1], weights.shape[2], 1, dtype=bool)  # (N, 1 + N)
    there[:, 0] = earlier
    whole = np.rint(weights[:, there] * (256**width - 1)).astype(f"<u{width}")
    return base64.b64encode(whole.tobytes()).decode()


def label(tokenizer: Tokenizer, token: int) -> List[str]:
    """A token as it is shown, and its bytes as Python writes them. Blanks, and all that is not
    printed, have signs of their own; so has a part of a character.
    """
    data = tokenizer.token_bytes(token)
    if not data:
        return ["⟨end⟩" if token == tokenizer.eos_id else f"⟨{token}⟩", "no bytes"]
    try:
        return [visible(data.decode().translate(_SIGNS)), repr(data)]
    except UnicodeDecodeError:
        return [repr(data)[2:-1], repr(data)]
