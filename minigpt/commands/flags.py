"""The flags of train and plan, on top of those that a file stands for: the one that --config
names, or config.toml of the run that --resume names.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Set, Type, TypeVar

from minigpt.base.errors import UsageError, flag
from minigpt.commands.cli import parse
from minigpt.training.config import TrainConfig
from minigpt.training.config_file import CONFIG, flag_words, left_open, read_values

# What follows other settings as long as it is left open, also in a run that goes on.
_FOLLOWED = {
    **dict.fromkeys(("eval_every", "sample_every", "save_every"), ("steps", "epochs")),
    "micro_batch_size": ("batch_size", "fused_backward"), "grad_clip": ("fused_backward",),
}  # fmt: skip
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
        fix = f"say --resume {above}" if (above / CONFIG).is_file() else "name a run directory"
        raise UsageError(f"{source.resume} is no run: it has no {CONFIG}", fix)
    values = read_values(path, kind)
    config = _parse_both(kind, prog, path, values, arguments, bool(source.resume))
    if source.resume:
        config.check_goes_on(values)
    return config


def _parse_both(
    kind: Type[Config], prog: str, path: Path, values: Dict[str, Any], arguments: List[str],
    resumes: bool,
) -> Config:  # fmt: skip
    said = {word.partition("=")[0].replace("_", "-") for word in arguments}
    reopened = {n for n, causes in _FOLLOWED.items() if _is_said(said, *causes)}
    if "epochs" in values:  # from which the steps were counted
        reopened.add("steps")
    leaves_open = left_open(path) & reopened if resumes else left_open(path)
    others = {"steps": "epochs", "epochs": "steps"}  # the same in other words
    in_file = {
        name: value
        for name, value in values.items()
        if name not in leaves_open and not _is_said(said, name, others.get(name, name))
    }
    try:
        config = parse(kind, prog, [*flag_words(in_file, kind), *arguments])
    except UsageError as error:
        raise _of_file(error, path, in_file) from None
    rates: List[Any] = [values.get("lr"), in_file.get("min_lr")]
    known = all(isinstance(rate, (int, float)) and rate > 0 for rate in rates)
    if flag("lr") in said and config.lr and known:
        return replace(config, min_lr=config.lr * rates[1] / rates[0])  # in the file's ratio
    return config


def _is_said(said: Set[str], *names: str) -> bool:
    return any(flag(word) in said for name in names for word in (name, "no_" + name))


def _of_file(error: UsageError, path: Path, in_file: Dict[str, Any]) -> UsageError:
    """The error, with the file's name and the key where what is wrong stands in the file."""
    for name in in_file:
        if error.what.startswith(flag(name) + " "):
            return UsageError(f"{path}: {name}{error.what[len(flag(name)) :]}", error.fix)
    return error
