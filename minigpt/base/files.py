"""Writing so that a crash at any moment leaves the old state or the new one, never a half.

Everything goes to a temporary sibling first, is pushed to the disk (fsync), and takes its name by
one rename.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator

from minigpt.base.errors import StorageError, storage_error
from minigpt.base.text import size


def fsync(path: Path) -> None:
    """Waits until the file or directory at `path` is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handle to a directory, and no need of one
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replaces the file at `path` as a whole."""
    temporary = path.with_name(".%s.partial" % path.name)
    try:
        temporary.write_text(text, encoding="utf-8")
        fsync(temporary)
        os.replace(str(temporary), str(path))
        fsync(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error


def read_object(path: Path) -> Dict[str, Any]:
    """The JSON object in a file; OSError or ValueError when there is none."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def write_json(path: Path, value: Any) -> None:
    """`write_text` of `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Gives a temporary directory to fill, which becomes `target` when the block ends without an
    error.

    An older `target` is replaced. After an error, or Ctrl-C, nothing of the new one is left.
    """
    partial = target.with_name(".%s.partial" % target.name)
    try:
        shutil.rmtree(str(partial), ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            fsync(path)
        _take_place(partial, target)
    except OSError as error:
        raise storage_error(error, target) from error
    finally:
        shutil.rmtree(str(partial), ignore_errors=True)


def _take_place(partial: Path, target: Path) -> None:
    replaced = target.with_name(".%s.replaced" % target.name)
    if target.exists():  # else a crash came between these two, and `replaced` is all there is
        shutil.rmtree(str(replaced), ignore_errors=True)
        os.rename(str(target), str(replaced))
    os.rename(str(partial), str(target))
    fsync(target.parent)
    shutil.rmtree(str(replaced), ignore_errors=True)


def require_space(directory: Path, needed: int) -> None:
    """StorageError when fewer than `needed` bytes are free where `directory` is or will be."""
    place = directory
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(str(place)).free
    if free < needed:
        raise StorageError(
            "%s has %s free and %s are needed" % (place, size(free), size(needed)),
            "free some space or name another folder with --out",
        )
