"""The one family of errors that a user can cause. Each says what went wrong and what to do next.

The command lines print such an error as one sentence and exit with its `exit_code`; every other
exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
from typing import Iterable, Optional

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


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def storage_error(error: OSError, path: object) -> MinigptError:
    """What the operating system said while writing `path`, as a sentence with a way out."""
    where = f"{path}: {error.strerror or error}"
    if error.errno in _NO_ROOM:
        fix = "free some space or name another folder with --out; what was saved before is whole"
        return StorageError(f"no room left to write {where}", fix)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"may not write {where}", "name a folder of yours with --out")
    return StorageError(f"cannot write {where}", "name another folder with --out")
