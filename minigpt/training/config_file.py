"""config.toml: the settings of a run as `key = value`, and such a file as the flags it stands for:
words of a command line, which the parser of the flags reads and checks.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Dict, List, Mapping, Set, Type

from minigpt.base.errors import UsageError, flag
from minigpt.base.files import write_text
from minigpt.base.text import nearest
from minigpt.training.config import Settings, TrainConfig

if sys.version_info >= (3, 11):
    import tomllib as toml
else:
    import tomli as toml

CONFIG = "config.toml"
_OPEN = "left_open"
_OF_ONE_START = ("dry_run", "debug", "force", "out", "resume", "config")
_LISTS = ("data", "validation")  # may hold several names
_ON_THE_LINE = ("config", "resume")  # they say which file is read


def write_settings(path: Path, settings: Settings) -> None:
    """Writes the settings that have a value, and which of them were left open, to be so again."""
    values = _values(settings)
    listed = _load(path).get(_OPEN, {}) if settings.resumes and path.exists() else {}
    listed.update((n, v) for n, v in values.items() if getattr(settings.asked, n) is None)
    left = ", ".join(f"{n} = {_toml(v)}" for n, v in listed.items() if values.get(n) == v)
    lines = [f"{name} = {_toml(value)}\n" for name, value in values.items()]
    lines.append("# With --config, a setting that is still what stands here is left open.\n")
    write_text(path, "".join([*lines, f"{_OPEN} = {{ {left} }}\n"]))


def differ(path: Path, settings: Settings) -> bool:
    """Whether `settings` are others than those in the file, but for the device."""
    now, then = _values(settings), read_values(path, TrainConfig)
    return any(now.get(name) != then[name] for name in set(then) - {"device"})


def _values(settings: Settings) -> Dict[str, Any]:
    names = [field.name for field in fields(TrainConfig) if field.name not in _OF_ONE_START]
    values = {name: getattr(settings, name, getattr(settings.asked, name)) for name in names}
    if not values["special_tokens"]:  # which earlier versions do not know
        del values["special_tokens"]
    return {name: value for name, value in values.items() if value is not None}


def _toml(value: Any) -> str:
    # JSON's strings, numbers and booleans are TOML's, but for DEL. What is no UTF-8, as a file's
    # name may be, cannot be written.
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return text.encode("utf-8", "replace").decode("utf-8")


def left_open(path: Path) -> Set[str]:
    """The settings in a run's file that nobody has chosen, there or since."""
    values = _load(path)
    return {name for name, value in values.get(_OPEN, {}).items() if values.get(name) == value}


def _load(path: Path) -> Dict[str, Any]:
    try:
        values: Dict[str, Any] = toml.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "name a TOML file") from None
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}", "write lines such as lr = 3e-5") from None
    if not isinstance(values.get(_OPEN, {}), dict):
        raise UsageError(f"{path}: {_OPEN} is {values[_OPEN]!r}", "leave it out")
    return values


def read_values(path: Path, kind: Type[TrainConfig]) -> Dict[str, Any]:
    """The settings in a TOML file by name; UsageError for what no flag of `kind` can be."""
    values = _load(path)
    values.pop(_OPEN, None)
    known = [field.name for field in fields(kind) if field.name not in _ON_THE_LINE]
    for name, value in values.items():
        if name in _ON_THE_LINE:
            raise UsageError(f"{path}: {name} says what to read", f"give {flag(name)} beside it")
        if name not in known:
            raise UsageError(f"{path}: unknown setting {name}", nearest(name, known))
        if name in _LISTS and isinstance(value, list) and all(type(v) is str for v in value):
            values[name] = tuple(value)
        elif not isinstance(value, (str, int, float)):
            raise UsageError(f"{path}: {name} is {value!r}", "write one number or one text")
    return values


def flag_words(values: Mapping[str, Any]) -> List[str]:
    """The words of a command line that say the same; a value of None says nothing."""
    words: List[str] = []
    for name, value in values.items():
        if isinstance(value, tuple):
            words += [flag(name), *value]
        elif value is not None:
            words.append(f"{flag(name)}={value}")
    return words
