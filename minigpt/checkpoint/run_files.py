"""The layout of a run directory, and which checkpoint of a run is meant.

    runs/NAME/config.toml  metrics.jsonl  samples.md  checkpoints/step_00000200/  latest  best

`latest` and `best` are one-line text files that hold a relative path: they work on every file
system, and one rename moves them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Optional, Sequence, Tuple, Union

from minigpt.base.errors import CheckpointError
from minigpt.base.files import MANIFEST, discard, remove_abandoned, write_text
from minigpt.base.text import word
from minigpt.checkpoint import manifest
from minigpt.data import tokenizer
from minigpt.data.tokenizer import Tokenizer
from minigpt.model.zoo import ZOO

LATEST, BEST = "latest", "best"


def step_directory(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is kept."""
    return run / "checkpoints" / f"step_{step:08d}"


def point(run: Path, pointer: str, checkpoint: Path) -> None:
    """Makes `run/pointer` name `checkpoint`."""
    write_text(run / pointer, f"{checkpoint.relative_to(run).as_posix()}\n")


def pointed(run: Path, pointer: str) -> Optional[Path]:
    """The complete checkpoint that `run/pointer` names, or None."""
    try:
        checkpoint = run / (run / pointer).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return checkpoint if _is_complete(checkpoint) else None


def _is_complete(checkpoint: Path) -> bool:
    return os.path.isfile(checkpoint / MANIFEST)  # False, too, for what no file can be called


def find(path: Union[str, Path], pointers: Sequence[str] = (BEST, LATEST)) -> Optional[Path]:
    """The checkpoint directory meant by `path`: itself, or what the first of a run's `pointers`
    names; None where there is none.
    """
    path = Path(path)
    if _is_complete(path):
        return path
    named = [pointed(path, pointer) for pointer in pointers]
    # Killed after its first checkpoint and before the pointer to it, a run has only the former.
    return next(filter(None, [*named, *_complete(path)[::-1]]), None)


def resolve(path: Union[str, Path], pointers: Sequence[str] = (BEST, LATEST)) -> Path:
    """`find`; CheckpointError where there is none, or where a file of it is missing or cut
    short, or a small one damaged. (Tensors are compared with the manifest when they are opened.)
    """
    checkpoint = find(path, pointers)
    if checkpoint is None:
        raise CheckpointError(*_why_not(Path(path)))
    manifest.check(checkpoint, manifest.but_tensors)
    return checkpoint


def tokenizer_source(source: Union[str, Path]) -> Union[str, Path]:
    """What data.tokenizer opens for `source`, which may also be a run."""
    return source if source in ("bytes", "gpt2") else find(source, (LATEST,)) or Path(source)


def load_tokenizer(source: Union[str, Path]) -> Tokenizer:
    """`bytes`, `gpt2`, or the tokenizer of a checkpoint, run or prepared directory."""
    return tokenizer.load_tokenizer(tokenizer_source(source))


def prune(run: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints of a run (0: none), and what a crash has left
    of others; `latest` and `best` always stay.
    """
    remove_abandoned(step_directory(run, 0), every=True)
    kept = {pointed(run, LATEST), pointed(run, BEST)}
    for checkpoint in _complete(run)[:-keep]:
        if checkpoint not in kept:
            discard(checkpoint)


def _complete(run: Path) -> List[Path]:
    if not os.path.isdir(run / "checkpoints"):  # unlike glob, at ease with what no file is called
        return []
    return sorted(path.parent for path in run.glob(f"checkpoints/step_*/{MANIFEST}"))


def _why_not(path: Path) -> Tuple[str, str]:
    if not os.path.exists(path):
        here = [place for place in (Path("runs", path), Path("checkpoints", path)) if find(place)]
        get = f"get it with: python convert_hf.py {path}"
        known = get if str(path) in ZOO else "name a checkpoint or run, such as runs/NAME"
        return f"there is no {path}", f"did you mean {here[0]}?" if here else known
    if not path.is_dir():
        return f"{path} is a file", "name the checkpoint directory it is in"
    if any(path.glob("*.bin")) or any(path.glob("*.safetensors")):
        what = f"{path} has weights but no {MANIFEST} of ours"
        return what, f"convert it with: python convert_hf.py {word(path)}"
    if (path / "config.toml").is_file():
        again = f"python train.py --config {word(path / 'config.toml')} --out {word(path)}"
        return f"the run {path} has no complete checkpoint yet", f"start it again: {again}"
    return f"{path} is no checkpoint: it has no {MANIFEST}", "name a checkpoint or run directory"
