"""`python -m minigpt COMMAND`: reads the flags, then loads what the command needs, and runs it."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, List, Optional

from minigpt import __version__
from minigpt.base import cores
from minigpt.base.errors import UsageError
from minigpt.base.text import nearest
from minigpt.commands import options
from minigpt.commands.cli import parse, run
from minigpt.commands.flags import parse_settings
from minigpt.training.config import TrainConfig

# What commands/NAME.py does, which is imported only when asked for: NAME_command(NameConfig).
_COMMANDS = {
    "train": "train a GPT; the same as python train.py",
    "convert": "from Hugging Face's layout or nanoGPT's, and back; the same as convert_hf.py",
    "generate": "continue a prompt",
    "chat": "talk with a model tuned on instructions",
    "look": "see inside a model while it reads a prompt: attention, guesses, and more, in a page",
    "evaluate": "loss, perplexity and bits per byte of a checkpoint, or HumanEval",
    "prepare": "turn text or records into token shards",
    "inspect": "print a batch in colour: what is prompt, what is learned, what is padding",
    "merge": "make a whole checkpoint of a LoRA adapter and its base",
    "plan": "memory, what fits, and time of a step, before anything is loaded",
    "devices": "what this machine computes on, and why not on something else",
    "report": "a run, or several compared, in a few lines and in a page; or a list of all",
}
_COMPUTE = ("train", "generate", "chat", "look", "evaluate")
_SCRIPTS = {"train": "train.py", "convert": "convert_hf.py"}


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
    began = cores.now()
    prog = _SCRIPTS.get(name, f"minigpt {name}")
    kind = TrainConfig if name == "train" else getattr(options, f"{name.capitalize()}Config")
    # A run's flags may name a file of more.
    read: Any = parse_settings if issubclass(kind, TrainConfig) else parse
    config = read(kind, prog, rest)
    if name in _COMPUTE:
        cores.share_cores(began)
    module = import_module(f"minigpt.commands.{name}")  # only now, as PyTorch takes two seconds
    code: Optional[int] = getattr(module, f"{name}_command")(config)
    return code


def train(arguments: List[str]) -> Optional[int]:
    """What train.py does."""
    return command(["train", *arguments])


def convert(arguments: List[str]) -> Optional[int]:
    """What convert_hf.py does."""
    return command(["convert", *arguments])


def main() -> int:
    """The entry point of the `minigpt` command."""
    return run(command, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
