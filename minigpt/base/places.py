"""Whether a place may be taken: nothing of a person's is there, and there is room on the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Optional

from minigpt.base.errors import StorageError, UsageError, storage_error
from minigpt.base.text import size

ANOTHER_OUT = "name another with --out, or remove it"


def require_free(out: Path, fix: str = ANOTHER_OUT, source: Optional[Path] = None) -> None:
    """UsageError unless a command may make the directory `out`: nothing is there yet, or an empty
    directory; and it is not in `source`, which is being read. `fix` is for a place that is taken.
    """
    try:
        unfit = _unfit(out, source)
        taken = os.path.lexists(str(out)) and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise storage_error(error, out) from error
    if unfit:
        raise UsageError(f"{out} {unfit}", "name another directory with --out")
    if taken:
        raise UsageError(f"{out} exists and is not an empty directory", fix)


def _unfit(out: Path, source: Optional[Path]) -> str:
    """Why no directory should be made there, whether one is there or not."""
    place, here = Path(os.path.realpath(str(out))), Path(os.path.realpath(os.getcwd()))
    if source is not None and source.is_dir():
        read = Path(os.path.realpath(str(source)))
        if read in (place, *place.parents):
            return "is what is to be read" if read == place else f"lies in the source, {source}"
    if out.name in ("", "..") or place in (here, *here.parents):
        return "is the directory you are in, or one above it"
    if out.is_symlink():
        return "is a link"
    above = next(parent for parent in place.parents if parent.exists())
    return "" if above.is_dir() else f"lies in {above}, which is a file"


def require_space(directory: Path, needed: int) -> None:
    """StorageError when fewer than `needed` bytes are free where `directory` is or will be."""
    place = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(str(place)).free
    if free < needed:
        raise StorageError(
            f"{place} has {size(free)} free and {size(needed)} are needed",
            "free some space or name another folder with --out",
        )
