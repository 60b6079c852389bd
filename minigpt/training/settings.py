"""The settings of a run: those of a file or of the run to go on with, and the flags on top."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import List, Tuple, Type, TypeVar

from minigpt.base.errors import UsageError
from minigpt.commands.cli import parse
from minigpt.training.config import TrainConfig, flag, read_config

Config = TypeVar("Config", bound=TrainConfig)


def parse_settings(kind: Type[Config], prog: str, arguments: List[str]) -> Config:
    """`arguments` as a `kind`, starting from the file that --config names, or from the settings of
    the run that --resume names.
    """
    source, resume = _files(arguments)
    default = kind()
    if resume:
        path = Path(resume) / "config.toml"
        if not path.is_file():
            raise UsageError("%s is no run: it has no config.toml" % resume, "name a run directory")
        default = kind(**asdict(read_config(path)))
    elif source:
        default = kind(**asdict(read_config(Path(source))))
    for name, other in (("epochs", "steps"), ("steps", "epochs")):
        if any(word.split("=")[0] == flag(name) for word in arguments):
            setattr(default, other, None)  # what is said here wins over what the file says
    return parse(kind, prog, arguments, default)


def _files(arguments: List[str]) -> Tuple[str, str]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default="", nargs="?")
    parser.add_argument("--resume", default="", nargs="?")
    known, _ = parser.parse_known_args(arguments)
    return known.config or "", known.resume or ""
