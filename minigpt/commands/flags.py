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
from minigpt.training.config_file import CONFIG, flag_words, read_values

Config = TypeVar("Config", bound=TrainConfig)


def parse_settings(kind: Type[Config], prog: str, arguments: List[str]) -> Config:
    """`arguments` as a `kind`, after the words of the file they name, which they overrule."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", nargs="?")
    files.add_argument("--resume", nargs="?")
    source, _ = files.parse_known_args(arguments)
    if source.resume:
        path = Path(source.resume) / CONFIG
        if not path.is_file():
            what = f"{source.resume} is no run: it has no {CONFIG}"
            raise UsageError(what, "name a run directory")
    elif source.config:
        path = Path(source.config)
    else:
        return parse(kind, prog, arguments)
    values = read_values(path, kind)
    config = _parse_both(kind, prog, path, values, arguments)
    if source.resume:
        config.check_goes_on(values)
    return config


def _parse_both(
    kind: Type[Config], prog: str, path: Path, values: Dict[str, Any], arguments: List[str]
) -> Config:
    said = {word.partition("=")[0].replace("_", "-") for word in arguments}
    in_file = {name: value for name, value in values.items() if not _overruled(name, said)}
    try:
        config = parse(kind, prog, [*flag_words(in_file, kind), *arguments])
    except UsageError as error:
        raise _of_file(error, path, in_file) from None
    peak: Any = values.get("lr")
    last: Any = in_file.get("min_lr")
    if flag("lr") in said and config.lr and _above_0(peak) and _above_0(last):
        return replace(config, min_lr=config.lr * last / peak)  # in the file's ratio
    return config


def _above_0(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


def _overruled(name: str, said: Set[str]) -> bool:
    """Whether a setting of the file is said anew, be it in other words."""
    others = {"steps": "epochs", "epochs": "steps"}
    names = (name, "no_" + name, others.get(name, name))
    return any(flag(one) in said for one in names)


def _of_file(error: UsageError, path: Path, in_file: Dict[str, Any]) -> UsageError:
    """The error, with the file's name and the key where what is wrong stands in the file."""
    for name in in_file:
        if error.what.startswith(flag(name) + " "):
            return UsageError(f"{path}: {name}{error.what[len(flag(name)) :]}", error.fix)
    return error
