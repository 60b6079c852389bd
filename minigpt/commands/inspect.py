"""`python -m minigpt inspect`: what the model will see, and what it will learn, in colour.

Most faults of fine-tuning show here at a glance: a prompt that is learned, an answer that is not,
an end that is missing, a row that is mostly padding. What is printed is taken from the very
batches that training takes, in the same order, and not rendered a second time.
"""

from __future__ import annotations

import os
import sys
from itertools import chain, groupby
from typing import Iterator, List, NamedTuple, Tuple

import numpy as np

from minigpt.base.text import visible
from minigpt.checkpoint.model_files import read_config
from minigpt.checkpoint.run_files import load_tokenizer, resolve
from minigpt.commands.options import InspectConfig
from minigpt.data.batch import IGNORE, Batch
from minigpt.data.datasets import Opened, open_datasets
from minigpt.data.shuffle import shuffled
from minigpt.data.template import Template, find_template, load_template
from minigpt.data.tokenizer import Tokenizer
from minigpt.training.config import check_block

# Each kind of token and how a terminal shows it (ECMA-48 SGR): cyan, green, bold magenta, faint.
_COLOURS = {"prompt": "36", "learned": "32", "end": "1;35", "padding": "2"}
_END = b"<|endoftext|>"  # what stands for the EOS, which has no text
_BLOCK = 1024  # that of fine-tuning


def inspect_command(config: InspectConfig) -> None:
    """Prints the rows, each document of them apart, and the counts over all of them."""
    tokenizer, template, block = _settings(config)
    how = {**config.reading(), "packing": config.packing, "origin": config.checkpoint}
    found = open_datasets(config.data, tokenizer, block, template, **how)
    count = len(found.train)
    numbers = np.arange(config.skip, config.skip + min(config.batch_size, count))
    batch = found.train.batch(shuffled(numbers, count, config.seed))
    rows = [list(_documents(batch, row, tokenizer.eos_id)) for row in range(len(numbers))]
    terminal = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    colour = config.colour == "always" or (config.colour == "auto" and terminal)
    for line in chain(_lines(rows, tokenizer, colour), _summary(rows, batch, found, count)):
        print(line)


def _settings(config: InspectConfig) -> Tuple[Tokenizer, Template, int]:
    template = find_template(config.template or "instruct")
    if config.checkpoint is None:
        return load_tokenizer(config.tokenizer or "gpt2"), template, config.block_size or _BLOCK
    directory = resolve(config.checkpoint)
    longest = read_config(directory).n_positions
    block = config.block_size or min(_BLOCK, longest)
    check_block(block, longest)
    if config.template is None:
        template = load_template(directory) or template
    return load_tokenizer(directory), template, block


class Document(NamedTuple):
    """Part of a row: tokens and what each is, one more than positions if it is only a target."""

    tokens: List[int]
    kinds: List[str]
    positions: List[int]


def _documents(batch: Batch, row: int, eos_id: int) -> Iterator[Document]:
    """The documents of a row, each with the targets it ends in, then its padding."""
    tokens, targets = batch.tokens[row].tolist(), batch.targets[row].tolist()
    end = len(tokens)
    while end and tokens[end - 1] == eos_id and targets[end - 1] == IGNORE:
        end -= 1
    at, numbers = batch.positions, batch.document_numbers()
    positions = list(range(len(tokens))) if at is None else at[row].tolist()
    owners = [0] * len(tokens) if numbers is None else numbers[row].tolist()
    for _, group in groupby(range(end), owners.__getitem__):
        own = list(group)
        learned = [targets[i] for i in own]
        given = [tokens[i] for i in own] + [t for t in learned[-1:] if t != IGNORE]
        # A token is learned where it is the target of the one before it.
        kinds = ["prompt"] + ["prompt" if t == IGNORE else "learned" for t in learned]
        kinds = ["end" if (t, k) == (eos_id, "learned") else k for t, k in zip(given, kinds)]
        yield Document(given, kinds, [positions[i] for i in own])
    if end < len(tokens):
        yield Document(tokens[end:], ["padding"] * (len(tokens) - end), positions[end:])


def _lines(rows: List[List[Document]], tokenizer: Tokenizer, colour: bool) -> Iterator[str]:
    for number, documents in enumerate(rows, 1):
        yield f"row {number} of {len(rows)}"
        for place, (_, kinds, positions) in enumerate(documents, 1):
            if kinds[0] == "padding":
                yield f"  padding: {len(positions)} tokens"
                continue
            where = f"{len(positions)} tokens, positions {positions[0]}..{positions[-1]}"
            supervised = sum(kind != "prompt" for kind in kinds)
            yield f"  document {place}: {where}, {supervised} supervised"
            for kind, line in _text(documents[place - 1], tokenizer):
                line = f"\033[{_COLOURS[kind]}m{line}\033[0m" if colour else line
                yield f"    {kind:<8}| {line}"


def _text(document: Document, tokenizer: Tokenizer) -> Iterator[Tuple[str, str]]:
    """(kind, line): a line break at which a kind ends is spelled out, as who owns it matters."""
    for kind, group in groupby(zip(document.tokens, document.kinds), lambda pair: pair[1]):
        data = b"".join(tokenizer.token_bytes(token) or _END for token, _ in group)
        text = data.decode("utf-8", "replace")
        lines = text.rstrip("\n").split("\n")
        lines[-1] += "\\n" * (1 + text.count("\n") - len(lines))
        yield from ((kind, visible(line)) for line in lines)


def _summary(rows: List[List[Document]], batch: Batch, found: Opened, count: int) -> Iterator[str]:
    """The counts. A position counts as what it is to predict, so that they add up."""
    total = batch.tokens.numel()
    documents = sum(document.kinds[0] != "padding" for row in rows for document in row)
    yield f"in all: {len(rows)} rows of {count:,}, {documents} documents, {total:,} tokens"
    counts = {"supervised": batch.supervised, "padding": batch.padding}
    for name, part in (("prompt", total - sum(counts.values())), *counts.items()):
        yield f"  {name:<11}{part:>8,}  {100 * part / total:5.1f}%"
    yield from ("  " + note for note in found.notes)
