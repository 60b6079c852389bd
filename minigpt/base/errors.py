"""The one family of errors that a user can cause. Each says what went wrong and what to do next.

The command lines print such an error as one sentence and exit with its `exit_code`; every other
exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import math
import operator
from numbers import Integral, Real
from typing import Any, Iterable, List, Optional

from minigpt.base.text import nearest


class MinigptError(Exception):
    """Base of the family: `what` happened (with file, line or tensor) and the `fix` for it."""

    exit_code = 1

    def __init__(self, what: str, fix: str = "") -> None:
        self.what, self.fix = what, fix
        super().__init__(f"{what}; {fix}" if fix else what)


class UsageError(MinigptError):
    """A flag, or a combination of flags, that means nothing. Exit code 2, as Unix tools have it."""

    exit_code = 2


def flag(name: str) -> str:
    """batch_size -> --batch-size"""
    return "--" + name.replace("_", "-")


def at_least(least: int, **flags: int) -> None:
    """UsageError for the first of the `flags` whose value is less."""
    for name, value in flags.items():
        if value < least:
            raise UsageError(f"{flag(name)} is {value}", f"it must be at least {least}")


def require_number(
    name: str, value: object, least: float = -math.inf, above: float = -math.inf,
    most: float = math.inf, whole: bool = False, optional: bool = False,
) -> None:  # fmt: skip
    """UsageError unless `value` is a finite number in these limits, `whole` if it must be, or None
    if it may.
    """
    if value is None and optional:
        return
    right = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if right and least <= value <= most and above < value < math.inf:  # type: ignore[operator]
        return
    limits = [("at least", least), ("above", above), ("at most", most)]
    said = " and ".join(f"{word} {limit}" for word, limit in limits if abs(limit) < math.inf)
    shown = f"{value!a:.40}" if isinstance(value, str) else f"{value!s:.40}"
    raise UsageError(f"the {name} is {shown}", f"it must be a {'whole ' * whole}number, {said}")


def as_ids(ids: Any, name: str, vocab_size: float = math.inf) -> List[int]:
    """`ids`, any sequence or tensor of integers, as a list; UsageError for what is none."""
    try:
        found = [*map(operator.index, ids.tolist() if hasattr(ids, "tolist") else ids)]
    except TypeError:
        what = f"the {name} is no list of ids but a {type(ids).__name__}"
        what += f" of shape {tuple(ids.shape)}" if hasattr(ids, "shape") else ""
        raise UsageError(what, "give whole numbers, such as tokenizer.encode(text)") from None
    for token in found:
        if not 0 <= token < vocab_size:
            what = f"the {name} has the id {token}, and the model's are 0 to {vocab_size - 1}"
            raise UsageError(what, "use the tokenizer of its own checkpoint")
    return found


def require_known(name: str, value: Optional[str], known: Iterable[str]) -> None:
    """UsageError when the flag `name` has a value that is none of `known`."""
    if value is not None and value not in known:
        raise UsageError(f"{flag(name)} is {value!r}", nearest(value, known))


class DataError(MinigptError):
    """Training or validation data that cannot be read, or is not what its name says."""


class CheckpointError(MinigptError):
    """A checkpoint that is missing, incomplete, damaged, or of another shape than asked for."""


class DeviceError(MinigptError):
    """A device, or something asked of a device, that is not to be had on this machine."""


class TrainingError(MinigptError):
    """A run that cannot go on: a loss that is no longer finite, a batch with nothing to learn."""


class StorageError(MinigptError):
    """A file system that refuses to take what has to be written."""


def storage_error(error: OSError, path: object) -> MinigptError:
    """What the operating system said while writing `path`, as a sentence with a way out."""
    where = f"{path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        fix = "free some space or name another folder with --out; what was saved before is whole"
        return StorageError(f"no room left to write {where}", fix)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"may not write {where}", "name a folder of yours with --out")
    return StorageError(f"cannot write {where}", "name another folder with --out")
