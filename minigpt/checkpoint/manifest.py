"""What makes a directory a checkpoint: `manifest.json`, written last, with the size and sha256 of
every file.

A directory without one was not finished, or is not ours; a file that differs from it was damaged
later.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict

from minigpt import __version__
from minigpt.base.errors import CheckpointError
from minigpt.base.files import MANIFEST, read_object, write_json
from minigpt.checkpoint.safetensors import FileRecord

NAME = MANIFEST
FORMAT = 1
_ANOTHER = "the checkpoint is damaged: use another one"


def sha256(path: Path) -> str:
    """The file's sha256 in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 22), b""):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(directory: Path, known: Dict[str, FileRecord]) -> None:
    """Records every file in `directory`; those in `known` were hashed while they were written."""
    files = {}
    for path in sorted(p for p in directory.iterdir() if p.name != NAME):
        record = known.get(path.name) or FileRecord(path.stat().st_size, sha256(path))
        files[path.name] = asdict(record)
    write_json(directory / NAME, {"format": FORMAT, "minigpt": __version__, "files": files})


def read_json(path: Path) -> Dict[str, Any]:
    """A JSON object from a checkpoint's file; CheckpointError when it is not one."""
    return read_object(path, CheckpointError, _ANOTHER)


def check(directory: Path) -> None:
    """CheckpointError naming the first file that differs from the manifest in size or sha256."""
    manifest = read_json(directory / NAME)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            "%s has format %s and this version reads %d"
            % (directory, manifest.get("format"), FORMAT),
            "use the minigpt that wrote it (%s)" % manifest.get("minigpt"),
        )
    try:
        files = {directory / n: FileRecord(**record) for n, record in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        what = "%s is not as it was written: %r" % (directory / NAME, error)
        raise CheckpointError(what, _ANOTHER) from None
    for path, record in files.items():  # all sizes before the first sha256, which takes long
        _check_size(path, record.size)
    with ThreadPoolExecutor() as pool:
        for path, digest in zip(files, pool.map(sha256, files)):
            if digest != files[path].sha256:
                what = "%s is not what was written (its sha256 differs)" % path
                raise CheckpointError(what, _ANOTHER)


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise CheckpointError("%s is missing" % path, _ANOTHER)
    if path.stat().st_size != expected:
        found = path.stat().st_size
        what = "%s has %d bytes and should have %s" % (path, found, expected)
        raise CheckpointError(what, _ANOTHER)
