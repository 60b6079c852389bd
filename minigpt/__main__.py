"""`python -m minigpt COMMAND`: everything but the training script itself."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import List, Optional

from minigpt.base.errors import UsageError
from minigpt.base.text import nearest
from minigpt.commands.cli import parse, run

# command: (module, its function), which looks for --config and --resume before it parses
_READ_SETTINGS = {
    "train": ("minigpt.commands.train", "train_command"),
    "plan": ("minigpt.commands.plan", "plan_command"),
}
# command: (module, its config dataclass, its function); all are imported only when asked for
_COMMANDS = {
    "generate": ("minigpt.commands.generate", "GenerateConfig", "generate_command"),
    "evaluate": ("minigpt.commands.evaluate", "EvaluateConfig", "evaluate_command"),
    "prepare": ("minigpt.commands.prepare", "PrepareConfig", "prepare_command"),
    "inspect": ("minigpt.commands.inspect", "InspectConfig", "inspect_command"),
    "merge": ("minigpt.commands.merge", "MergeConfig", "merge_command"),
    "devices": ("minigpt.commands.devices", "DevicesConfig", "devices_command"),
    "report": ("minigpt.commands.report", "ReportConfig", "report_command"),
}

_USAGE = """usage: minigpt COMMAND [-h] ...

  train      train a GPT; the same as python train.py
  generate   continue a prompt
  evaluate   loss, perplexity and bits per byte of a checkpoint, or HumanEval
  prepare    turn text or records into token shards
  inspect    print a batch in colour: what is prompt, what is learned, what is padding
  merge      make a whole checkpoint of a LoRA adapter and its base
  plan       memory, what fits, and time of a step, before anything is loaded
  devices    what this machine computes on, and why not on something else
  report     summary and plot of a run"""


def command(arguments: List[str]) -> Optional[int]:
    """Runs the command named by the first of `arguments` with the rest."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name in _READ_SETTINGS:
        module_name, function = _READ_SETTINGS[name]
        settled: Optional[int] = getattr(import_module(module_name), function)(rest)
        return settled
    if name not in _COMMANDS:
        known = [*_READ_SETTINGS, *_COMMANDS]
        raise UsageError(f"there is no command {name!r}", nearest(name, known))
    module_name, config, function = _COMMANDS[name]
    module = import_module(module_name)
    result: Optional[int] = getattr(module, function)(
        parse(getattr(module, config), "minigpt " + name, rest)
    )
    return result


def main() -> int:
    """The entry point of the `minigpt` command."""
    return run(command, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
