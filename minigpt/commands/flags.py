"""The flags of train and plan, on top of those that a file stands for: the one that --config
names, or config.toml of the run that --resume names.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Set, Type, TypeVar

from minigpt.base.errors import UsageError, flag
from minigpt.base.text import word
from minigpt.commands.cli import parse
from minigpt.training.config import TrainConfig
from minigpt.training.config_file import CONFIG, flag_words, left_open, read_values

# What follows other settings as long as it is left open, also in a run that goes on.
_FOLLOWED = {
    "eval_every": {"steps"}, "sample_every": {"steps"}, "save_every": {"steps"},
    "micro_batch_size": {"batch_size", "fused_backward"}, "grad_clip": {"fused_backward"},
}  # fmt: skip
_LENGTHS = {"steps", "epochs"}  # the same in other words
Config = TypeVar("Config", bound=TrainConfig)


def parse_settings(kind: Type[Config], prog: str, arguments: List[str]) -> Config:
    """`arguments` as a `kind`, after the words of the file they name, which they overrule."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", nargs="?")
    files.add_argument("--resume", nargs="?")
    source, _ = files.parse_known_args(arguments)
    if not source.resume and not source.config:
        return parse(kind, prog, arguments)
    path = Path(source.resume) / CONFIG if source.resume else Path(source.config)
    if source.resume and not path.is_file():
        above = path.parent.parent.parent  # of a run's checkpoint
        again = f"say --resume {word(above)}"
        fix = again if (above / CONFIG).is_file() else "name a run directory"
        raise UsageError(f"{source.resume} is no run: it has no {CONFIG}", fix)
    values, said = read_values(path, kind), _said(arguments)
    open_there = left_open(path)
    if source.resume:  # what the run has settled stays, but for what follows the flags
        counted = {"steps"} if "epochs" in values else set()
        open_there &= counted | {name for name, causes in _FOLLOWED.items() if causes & said}
    in_file = {n: value for n, value in values.items() if n not in open_there | said}
    try:
        config = parse(kind, prog, [*flag_words(in_file), *arguments])
    except UsageError as error:
        raise _of_file(error, path, in_file) from None
    if source.resume:
        config.check_goes_on(values)
    rates: List[Any] = [values.get("lr"), in_file.get("min_lr")]
    known = all(isinstance(rate, (int, float)) and rate > 0 for rate in rates)
    if "lr" in said and config.lr and known:
        return replace(config, min_lr=config.lr * rates[1] / rates[0])  # in the file's ratio
    return config


def _said(arguments: List[str]) -> Set[str]:
    """The settings that are named by flags."""
    flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    said = {name.replace("--no-", "--", 1)[2:].replace("-", "_") for name in flags}
    return said | _LENGTHS if said & _LENGTHS else said


def _of_file(error: UsageError, path: Path, in_file: Dict[str, Any]) -> UsageError:
    """The error, with the file's name and the key where what is wrong stands in the file."""
    for name in in_file:
        if error.what.startswith(flag(name) + " "):
            return UsageError(f"{path}: {name}{error.what[len(flag(name)) :]}", error.fix)
    return error
