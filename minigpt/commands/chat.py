"""`python -m minigpt chat`: a conversation with a tuned model, an answer to each line."""

from __future__ import annotations

import contextlib
import sys
from typing import Iterator, List, Tuple

from minigpt.commands.generate import Writer, note, tuned_template
from minigpt.commands.options import ChatConfig
from minigpt.data.template import Template
from minigpt.data.tokenizer import Tokenizer


def chat_command(config: ChatConfig) -> None:
    """Answers each line of standard input. Ctrl-C ends the answer, or forgets the line."""
    writer = Writer(config)
    fix = "use generate, or tune it: python train.py --init CHECKPOINT --data RECORDS.jsonl"
    template = tuned_template(writer.directory, fix)
    turns: List[Tuple[str, str]] = []
    for number, text in enumerate(_lines()):
        ids, before = conversation(writer.tokenizer, template, turns, text), len(turns)
        room = min(config.max_new_tokens or writer.positions, writer.positions // 2)
        while turns and len(ids) + room > writer.positions:
            del turns[0]
            ids = conversation(writer.tokenizer, template, turns, text)
        if len(turns) < before:
            long = f"the conversation is longer than the model's {writer.positions} positions"
            note(f"{long}: before this line, it sees the last {len(turns)} turns")
        answer = ""
        with contextlib.suppress(KeyboardInterrupt):
            for (piece,) in writer.write([ids], template.stop, turn=number):
                answer += piece
                print(piece, end="", flush=True)
        print(flush=True)
        turns.append((text, answer))


def conversation(
    tokenizer: Tokenizer, template: Template, turns: List[Tuple[str, str]], text: str
) -> List[int]:
    """The ids of what has been said and of `text`, as in training: an answer is to follow."""
    if template.whole:
        said = (template.prompt(one) + answer + template.after for one, answer in turns)
        return tokenizer.prompt("".join(said) + template.prompt(text))
    asked = tokenizer.encode_array(template.prompt(text)).tolist()
    return template.render(tokenizer, turns)[0] + asked


def _lines() -> Iterator[str]:
    """What is typed, or comes through a pipe, line by line; blank lines are left out."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (from here on, input() knows the arrow keys)
        note("Ctrl-C ends an answer, Ctrl-D the conversation")
    while True:
        try:
            line = input("> " if terminal else "")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            print()
            continue
        if line.strip():
            yield line
