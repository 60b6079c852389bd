"""The one reader of JSON, which believes nothing of what it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Type, Union

from minigpt.base.errors import DataError, MinigptError
from minigpt.base.text import size

_BYTES, _DIGITS = 1 << 24, 40  # more than any file of ours, or of Hugging Face's, has


def read_object(path: Path, error: Type[MinigptError] = DataError, fix: str = "") -> Dict[str, Any]:
    """The JSON object in a file; an `error`, and `fix` is what mends it, when there is none or
    reading it would take for ever.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")  # opening a pipe would wait for ever
        with path.open("rb") as file:
            return parse_object(file.read(_BYTES + 1))
    except FileNotFoundError:
        raise error(f"{path} is missing", fix) from None
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", None) or problem
        raise error(f"{path} cannot be read: {why}", fix) from None


def parse_object(text: Union[str, bytes]) -> Dict[str, Any]:
    """The JSON object in a text; ValueError when there is none."""
    if len(text) > _BYTES:
        raise ValueError(f"it has more than {size(_BYTES)}")
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"it has a number of {len(digits):,} digits")
    return int(digits)
