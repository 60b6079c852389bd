"""The layout of a run directory, and which checkpoint of a run is meant.

    runs/NAME/config.toml  metrics.jsonl  samples.md  checkpoints/step_00000200/  latest  best

`latest` and `best` are one-line text files that hold a relative path: they work on every file
system, and one rename moves them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import List, Optional, Sequence, Union

from minigpt.base.errors import CheckpointError
from minigpt.base.files import MANIFEST, write_text

LATEST, BEST = "latest", "best"


def step_directory(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is kept."""
    return run / "checkpoints" / ("step_%08d" % step)


def point(run: Path, pointer: str, checkpoint: Path) -> None:
    """Makes `run/pointer` name `checkpoint`."""
    write_text(run / pointer, "%s\n" % checkpoint.relative_to(run).as_posix())


def pointed(run: Path, pointer: str) -> Optional[Path]:
    """The complete checkpoint that `run/pointer` names, or None."""
    path = run / pointer
    if not path.is_file():
        return None
    checkpoint = run / path.read_text(encoding="utf-8").strip()
    return checkpoint if (checkpoint / MANIFEST).is_file() else None


def resolve(path: Union[str, Path], pointers: Sequence[str] = (BEST, LATEST)) -> Path:
    """The checkpoint directory meant by `path`: itself, or what the first of a run's `pointers`
    names.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path
    for pointer in pointers:
        checkpoint = pointed(path, pointer)
        if checkpoint is not None:
            return checkpoint
    complete = _complete(path)
    if complete:  # killed after its first checkpoint and before the pointer to it
        return complete[-1]
    raise CheckpointError(*_why_not(path))


def prune(run: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints of a run; `latest` and `best` always stay."""
    kept = {pointed(run, LATEST), pointed(run, BEST)}
    for checkpoint in _complete(run)[:-keep]:
        if checkpoint not in kept:
            # Without its manifest it is no checkpoint, so a crash in the middle of this leaves
            # none that lies.
            (checkpoint / MANIFEST).unlink()
            shutil.rmtree(str(checkpoint))


def _complete(run: Path) -> List[Path]:
    return sorted(path.parent for path in (run / "checkpoints").glob("step_*/" + MANIFEST))


def _why_not(path: Path) -> List[str]:
    if not path.exists():
        return ["there is no %s" % path, "name a checkpoint or run directory, such as runs/NAME"]
    if not path.is_dir():
        return ["%s is a file" % path, "name the checkpoint directory it is in"]
    if any(path.glob("*.bin")) or any(path.glob("*.safetensors")):
        return [
            "%s has weights but no %s of ours" % (path, MANIFEST),
            "convert it with: python convert_hf.py %s" % path,
        ]
    if (path / "config.toml").is_file():
        return ["the run %s has no complete checkpoint yet" % path, "start it again"]
    return [
        "%s is no checkpoint: it has no %s" % (path, MANIFEST),
        "name a checkpoint or run directory",
    ]
