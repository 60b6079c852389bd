"""A published model by its name: downloaded to downloads/NAME, converted to checkpoints/NAME."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from minigpt.base.errors import CheckpointError, UsageError
from minigpt.base.files import require_free
from minigpt.base.text import nearest, size
from minigpt.checkpoint.run_files import resolve
from minigpt.hf.convert import convert
from minigpt.hf.download import Hub, download
from minigpt.model import zoo


def published(name: str, may_fetch: bool = True) -> Path:
    """The converted checkpoint of a model of the zoo. What is not here yet is downloaded and
    converted; CheckpointError if that may not be, UsageError if there is nothing to download.
    """
    local = Path("checkpoints") / name
    if local.exists():
        return resolve(local)
    if zoo.find(name).repo is None:
        fix = f"train it from scratch with --model {name}"
        raise UsageError(f"{name} has no published weights", fix)
    if not may_fetch:
        fix = f"get the weights with: python convert_hf.py {name}"
        raise CheckpointError(f"{local} is not there", fix)
    require_free(local, "remove it")
    print("\n".join(convert(fetch(name), local)), flush=True)
    return local


def fetch(name: str, revision: str = "main") -> Path:
    """Downloads a published model; returns the directory its files are in."""
    entry = find(name)
    hub = Hub.from_environment(entry.repo or "", revision, entry.subfolder)
    directory = Path("downloads") / local_name(name, revision)
    about = size(4 * entry.config.parameter_count())
    print(f"download {hub.url('')} to {directory}: about {about}", flush=True)
    download(hub, directory)
    return directory


def find(name: str) -> zoo.ZooEntry:
    """What the zoo says of a model that can be downloaded; UsageError when it cannot."""
    entry = zoo.ZOO.get(name)
    if entry is None or entry.repo is None:
        known = [known for known, each in zoo.ZOO.items() if each.repo]
        what = f"{name} is neither a directory nor a published model"
        raise UsageError(what, nearest(name, known))
    return entry


def local_name(name: str, revision: str) -> str:
    """What a published model is called here: each revision is a model of its own."""
    return name if revision == "main" else f"{name}@{quote(revision, '')}"


def progress_bar(what: str) -> tqdm[None]:
    """Counts bytes where somebody watches."""
    return tqdm(unit="B", unit_scale=True, desc=what, disable=None)
