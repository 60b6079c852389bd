"""`python -m minigpt COMMAND`: everything but the training script itself."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import List, Optional

from minigpt import __version__
from minigpt.base.errors import UsageError
from minigpt.base.text import nearest
from minigpt.commands.cli import parse, run

# What commands/NAME.py does, which is imported only when asked for: NAME_command(NameConfig).
_COMMANDS = {
    "train": "train a GPT; the same as python train.py",
    "generate": "continue a prompt",
    "chat": "talk with a model tuned on instructions",
    "evaluate": "loss, perplexity and bits per byte of a checkpoint, or HumanEval",
    "prepare": "turn text or records into token shards",
    "inspect": "print a batch in colour: what is prompt, what is learned, what is padding",
    "merge": "make a whole checkpoint of a LoRA adapter and its base",
    "plan": "memory, what fits, and time of a step, before anything is loaded",
    "devices": "what this machine computes on, and why not on something else",
    "report": "summary and plot of a run, several compared, or a list of all",
}
_PARSE_THEMSELVES = ("train", "plan")  # since --config and --resume name more flags


def command(arguments: List[str]) -> Optional[int]:
    """Runs the command named by the first of `arguments` with the rest."""
    if not arguments or arguments[0] in ("-h", "--help"):
        rows = "\n".join(f"  {name:<10} {what}" for name, what in _COMMANDS.items())
        print(f"usage: minigpt [--version] COMMAND [-h] ...\n\n{rows}")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"minigpt {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in _COMMANDS:
        raise UsageError(f"there is no command {name!r}", nearest(name, _COMMANDS))
    module = import_module(f"minigpt.commands.{name}")
    if name not in _PARSE_THEMSELVES:
        rest = parse(getattr(module, f"{name.capitalize()}Config"), f"minigpt {name}", rest)
    code: Optional[int] = getattr(module, f"{name}_command")(rest)
    return code


def main() -> int:
    """The entry point of the `minigpt` command."""
    return run(command, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
