"""What makes a directory a checkpoint: `manifest.json`, written last, with the size and sha256 of
every file. A directory without one is not finished, or not ours.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, Optional

from minigpt import __version__
from minigpt.base.errors import CheckpointError
from minigpt.base.files import MANIFEST, as_dataclass, atomic_directory, read_object, write_json
from minigpt.base.text import word
from minigpt.checkpoint.safetensors import FileRecord
from minigpt.data.template import Template, save_template
from minigpt.data.tokenizer import Tokenizer

NAME = MANIFEST
FORMAT = 1
_ANOTHER = "the checkpoint is damaged: use another one"


def write_checkpoint(
    directory: Path, write: Callable[[Path], Dict[str, FileRecord]],
    tokenizer: Optional[Tokenizer], template: Optional[Template] = None, replace: bool = False,
) -> None:  # fmt: skip
    """The one way to write a checkpoint, whole or not at all: what `write` puts into the directory
    that it is given (it returns the records of large files), the tokenizer, the template and, last,
    the manifest. With `replace`, for a run's own, an older checkpoint gives way.
    """
    with atomic_directory(directory, replace) as partial:
        records = write(partial)
        if tokenizer is not None:
            tokenizer.save(partial)
        if template is not None:
            save_template(partial, template)
        write_manifest(partial, records)


def write_manifest(directory: Path, known: Dict[str, FileRecord]) -> None:
    """Records every file in `directory`; those in `known` were hashed while they were written, and
    may be another machine's, which a file system of several shows later in a listing.
    """
    files = {}
    for name in sorted({*known, *(path.name for path in directory.iterdir())} - {NAME}):
        path = directory / name
        files[name] = asdict(known.get(name) or FileRecord(path.stat().st_size, sha256(path)))
    write_json(directory / NAME, {"format": FORMAT, "minigpt": __version__, "files": files})


def sha256(path: Path) -> str:
    """The file's sha256 in hex."""
    return hexdigest(path, hashlib.sha256())


def hexdigest(path: Path, digest: Any) -> str:
    """What `digest`, one of hashlib's, makes of the file, read in pieces."""
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 22), b""):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> Dict[str, Any]:
    """A JSON object from a checkpoint's file; CheckpointError when it is not one."""
    return read_object(path, CheckpointError, _ANOTHER)


def _but_the_optimizers(name: str) -> bool:
    """Its files may be those of many processes, and each reads some (resume.load_optimizer)."""
    return not name.startswith("optimizer")


def but_tensors(name: str) -> bool:
    """The small files, which are read in no time."""
    return not name.endswith(".safetensors")


def check(directory: Path, read: Callable[[str], bool] = _but_the_optimizers) -> None:
    """CheckpointError naming the first file that differs from the manifest in size or, of those to
    be `read`, in sha256, and what to use instead.
    """
    try:
        _check(directory, read)
    except CheckpointError as error:
        fix = _instead(directory) if error.fix == _ANOTHER else error.fix
        raise CheckpointError(error.what, fix) from None


def _instead(damaged: Path) -> str:
    """The newest other checkpoint of its run with all that its manifest lists, in these sizes (to
    read all of it could take minutes), and how to go on from there.
    """
    for other in sorted(damaged.parent.glob(f"step_*/{NAME}"), reverse=True):
        with suppress(CheckpointError, OSError):
            if other.parent != damaged:
                _check(other.parent, but_tensors)
                resume = f"python train.py --resume {word(damaged.parent.parent)}"
                return f"{other.parent} has all files: move this one away, and go on with {resume}"
    return _ANOTHER


def _check(directory: Path, read: Callable[[str], bool]) -> None:
    manifest = read_json(directory / NAME)
    if manifest.get("format") != FORMAT:
        what = f"{directory} has format {manifest.get('format')} and this version reads {FORMAT}"
        raise CheckpointError(what, f"use the minigpt that wrote it ({manifest.get('minigpt')})")
    there = {path.name: path for path in directory.iterdir() if path.is_file()}
    try:
        files = {n: as_dataclass(FileRecord, record) for n, record in manifest["files"].items()}
        if not {name for name in there if name.endswith(".safetensors")} <= {*files}:
            raise ValueError("its files are not those beside it")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{directory / NAME} is not as it was written: {error!r:.200}"
        raise CheckpointError(what, _ANOTHER) from None
    for name, record in files.items():  # all sizes before the first sha256, which takes long
        if name not in there:
            raise CheckpointError(f"{directory / name} is missing", _ANOTHER)
        size = there[name].stat().st_size
        if size != record.size:
            what = f"{there[name]} has {size} bytes and should have {record.size}"
            raise CheckpointError(what, _ANOTHER)
    names = [*filter(read, files)]
    with ThreadPoolExecutor() as pool:
        for name, digest in zip(names, pool.map(sha256, [there[name] for name in names])):
            if digest != files[name].sha256:
                what = f"{there[name]} is not what was written (its sha256 differs)"
                raise CheckpointError(what, _ANOTHER)
