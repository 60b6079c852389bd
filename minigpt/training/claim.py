"""A run's directory belongs to one process at a time: the one that holds the lock on its file
`lock`, which the system lets go of when the process ends, killed or not.
"""

from __future__ import annotations

import os
import platform
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator

from minigpt.base.errors import TrainingError, storage_error
from minigpt.base.files import hold, require_free
from minigpt.base.text import word
from minigpt.checkpoint import run_files

LOCK, _SIGN = "lock", "minigpt, process"
_OURS = {
    LOCK, "config.toml", "metrics.jsonl", "samples.md", "checkpoints", "base", "tensorboard",
    "loss.png", "report.html", "compared.png", "compared.html", run_files.LATEST, run_files.BEST,
}  # fmt: skip


def require_startable(run: Path) -> None:
    """UsageError unless `run` is free, or is what is left of a run without a checkpoint."""
    if run_files.find(run) is not None:
        require_free(run, f"go on with it by --resume {word(run)}, or name another")
    with suppress(OSError):  # nothing there
        if sign_of(run).startswith(_SIGN) and _OURS.issuperset(os.listdir(str(run))):
            return
    require_free(run)


def sign_of(run: Path) -> str:
    """What its owner has left in a run's directory; empty where it cannot be seen."""
    with suppress(OSError, ValueError):
        return (run / LOCK).read_text(encoding="utf-8")
    return ""


def in_use(run: Path) -> bool:
    """Whether a process has the run, or might: nobody can tell where there are no locks."""
    try:
        held = hold(run / LOCK)
    except BlockingIOError:
        return True
    except OSError:
        return False  # it has no lock: it is a copy, or was made by something else
    if held is not None:
        os.close(held)
    return held is None


@contextmanager
def claimed(run: Path, named: bool) -> Iterator[Path]:
    """The directory of a run, made and held while the block lasts, and removed if nothing came of
    it. One that nobody `named` gets a name that nobody has. TrainingError when it is in use.
    """
    try:
        if not named and run.exists():  # made in this very second by another
            run = run.with_name(f"{run.name}-{os.getpid()}")
        run.mkdir(parents=True, exist_ok=True)
        (run / LOCK).touch()
        held = hold(run / LOCK)
        sign = f"{_SIGN} {os.getpid()} on {platform.node()}, since {time.strftime('%F %T')}\n"
        (run / LOCK).write_text(sign, encoding="utf-8")
    except BlockingIOError:
        owner = sign_of(run).strip() or "another process"
        fix = "wait until that has ended, or stop it"
        raise TrainingError(f"{run} is in use by {owner}", fix) from None
    except OSError as error:
        raise storage_error(error, run) from error
    try:
        yield run
    finally:
        with suppress(OSError):
            if os.listdir(str(run)) == [LOCK]:
                (run / LOCK).unlink()
                run.rmdir()
        if held is not None:
            os.close(held)
