"""JSON that is read without trust, and writing so that a crash leaves the old state or the new.

What is written goes to a temporary sibling first, is pushed to the disk (fsync), and takes its name
by one rename. The sibling has a name of its own, so that two processes do not write into one, and
nothing that was there before is replaced unless the caller says that it is its own.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import secrets
import shutil
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Type, TypeVar, Union

from typing_extensions import get_args, get_origin, get_type_hints

from minigpt.base.errors import DataError, MinigptError, StorageError, UsageError, storage_error
from minigpt.base.text import size

try:
    import fcntl
except ImportError:  # Windows, where what a killed process left stays
    fcntl = None  # type: ignore[assignment]

MANIFEST = "manifest.json"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.(?P<kind>partial|replaced)")
ANOTHER_OUT = "name another with --out, or remove it"
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)
_LONGEST = 180  # bytes of a name to which something is added; file systems take 255
_LARGEST, _BYTES, _DIGITS = 1 << 60, 1 << 24, 40  # more than any JSON of ours or HF's has
T = TypeVar("T")


def read_object(path: Path, error: Type[MinigptError] = DataError, fix: str = "") -> Dict[str, Any]:
    """The JSON object in a file; an `error`, and `fix` is what mends it, when there is none or
    reading it would take for ever.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")  # opening a pipe would wait for ever
        with path.open("rb") as file:
            return parse_object(file.read(_BYTES + 1))
    except FileNotFoundError:
        raise error(f"{path} is missing", fix) from None
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", None) or problem
        raise error(f"{path} cannot be read: {why}", fix) from None


def parse_object(text: Union[str, bytes]) -> Dict[str, Any]:
    """The JSON object in a text; ValueError when there is none."""
    if len(text) > _BYTES:
        raise ValueError(f"it has more than {size(_BYTES)}")
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"it has a number of {len(digits):,} digits")
    return int(digits)


def as_dataclass(kind: Type[T], values: Dict[str, Any]) -> T:
    """The dataclass `kind` of a JSON object's values; ValueError for a field that is unknown, is
    missing, or has a value of another type, or a number that nothing here can have.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        hint = hints.get(name)
        kinds = get_args(hint) if get_origin(hint) is Union else [get_origin(hint) or hint]
        fits = type(value) in kinds or (type(value) is int and float in kinds)
        if not fits or (isinstance(value, (int, float)) and not abs(value) < _LARGEST):  # nan
            raise ValueError(f"its {name!a:.40} is {value!a:.40}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(str(error)) from None


def require_free(
    out: Path, fix: str = ANOTHER_OUT, source: Optional[Path] = None, kind: str = "directory"
) -> None:
    """UsageError unless a command may make the directory `out`: nothing is there yet, or an empty
    directory; and it is not in `source`, which is being read. `fix` is for a place that is taken.
    Where a "file" is to be made, nothing at all may be there.
    """
    place = kind == "directory"
    try:
        unfit, there = _unfit(out, source), os.path.lexists(str(out))
        empty = place and out.is_dir() and not any(out.iterdir())
    except OSError as error:
        raise storage_error(error, out) from error
    if unfit:
        raise UsageError(f"{out} {unfit}", f"name another {kind} with --out")
    if there and not empty:
        raise UsageError(f"{out} exists{' and is not an empty directory' * place}", fix)


def _unfit(out: Path, source: Optional[Path]) -> str:
    """Why no directory should be made there, whether one is there or not."""
    place = Path(os.path.realpath(str(out)))
    around, here = (place, *place.parents), Path(os.path.realpath(os.getcwd()))
    if source is not None and source.is_dir() and Path(os.path.realpath(str(source))) in around:
        return f"is or lies in {source}, which is what is to be read"
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
        what = f"{place} has {size(free)} free and {size(needed)} are needed"
        raise StorageError(what, "free some space or name another folder with --out")


def fsync(path: Path) -> None:
    """Waits until the file or directory at `path` is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handle to a directory, and no need of one
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC or not path.is_dir():
            raise  # of a directory some file systems have none, as some of the network
    finally:
        os.close(descriptor)


def cache_directory(name: str) -> Path:
    """Where what can be made again is kept: in the user's cache or, if there is none that can be
    written to, in a directory of the user's own among the temporary ones.
    """
    with suppress(OSError, RuntimeError):  # no place there, or nobody's home
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigpt" / name
        usual.mkdir(parents=True, exist_ok=True)
        if os.access(str(usual), os.W_OK | os.X_OK):
            return usual
    user = getattr(os, "getuid", int)()  # Windows has none
    own = Path(tempfile.gettempdir()) / f"minigpt-{name}-{user}"
    with suppress(FileExistsError):
        own.mkdir(mode=0o700)
    if own.is_symlink() or own.stat().st_uid != user:  # what has the name is somebody else's
        return Path(tempfile.mkdtemp(prefix="minigpt-"))
    return own


def write_text(path: Path, text: str) -> None:
    """Replaces the file at `path` as a whole."""
    try:
        with ExitStack() as stack:
            temporary = _made_and_held(path, stack, Path.touch)
            remove_abandoned(path)
            temporary.write_text(text, encoding="utf-8")
            fsync(temporary)
            os.replace(str(temporary), str(path))
            fsync(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error


def _sibling(path: Path) -> Path:
    """A name beside `path` that nobody else has."""
    return path.with_name(f".{shorter(path.name)}.{secrets.token_hex(8)}.partial")


def shorter(name: str, longest: int = _LONGEST) -> str:
    """`name`, or its beginning where it has more bytes than leave room for what is added to it."""
    return os.fsencode(name)[:longest].decode("utf-8", "ignore")


def write_json(path: Path, value: Any) -> None:
    """`write_text` of `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def atomic_directory(target: Path, replace: bool = False) -> Iterator[Path]:
    """Gives a temporary directory to fill, which becomes `target` when the block ends without an
    error, and is removed after one, or Ctrl-C. What is at `target` stays: an error says so. With
    `replace`, for a run's own directory of checkpoints, a checkpoint of ours gives way.
    """
    if not (replace and _is_ours(target)):
        require_free(target)
    try:
        with ExitStack() as stack:
            partial = _made_and_held(target, stack, functools.partial(Path.mkdir, parents=True))
            remove_abandoned(target, every=replace)
            yield partial
            for path in [*partial.rglob("*"), partial]:
                fsync(path)
            _take_place(partial, target, replace)
    except OSError as error:
        raise storage_error(error, target) from error


def _made_and_held(target: Path, stack: ExitStack, make: Callable[[Path], None]) -> Path:
    """What `make` makes beside `target`, held and there as long as the `stack` is open."""
    while True:
        partial = _sibling(target)
        make(partial)
        # Before it is held, another process may take it for abandoned and remove it.
        with suppress(FileNotFoundError, BlockingIOError):
            held = hold(partial)
            if held is not None:
                stack.callback(os.close, held)
            if partial.exists():
                stack.callback(_remove, partial)
                return partial


def _remove(path: Path) -> None:
    """Removes a file, or a directory with all that is in it, as far as that can be done."""
    with suppress(OSError):
        path.unlink() if path.is_file() else shutil.rmtree(str(path), ignore_errors=True)


def hold(path: Path) -> Optional[int]:
    """A descriptor whose lock on the file or directory at `path` ends with this process, however
    that ends; None where there are no such locks. BlockingIOError when another process has it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None


def discard(directory: Path) -> None:
    """Removes a directory, at once for all who look; what a crash leaves of it is
    `remove_abandoned`.
    """
    gone = _sibling(directory)
    os.rename(str(directory), str(gone))
    _remove(gone)


def remove_abandoned(target: Path, every: bool = False) -> None:
    """Removes what was begun, of `target` or of `every` one, and is held by nobody any more."""
    for path in _temporaries(target, "partial", every):
        with suppress(OSError):  # it is held, its process has just ended, or is somebody else's
            held = hold(path)
            if held is not None:
                _remove(path)
                os.close(held)


def _temporaries(target: Path, kind: str, every: bool = False) -> Iterator[Path]:
    for path in [*target.parent.glob(".*")]:
        match = _TEMPORARY.fullmatch(path.name)
        if match and match["kind"] == kind and (every or match["name"] == shorter(target.name)):
            yield path


def _take_place(partial: Path, target: Path, replace: bool) -> None:
    if replace and _is_ours(target):
        # A crash between the two renames leaves this, the last whole one, beside its place.
        os.rename(str(target), str(partial.with_suffix(".replaced")))
    with suppress(OSError):  # an empty directory, in whose place Windows puts nothing
        os.rmdir(str(target))
    try:
        os.rename(str(partial), str(target))
    except OSError as error:
        if os.path.lexists(str(target)):
            raise StorageError(f"{target} has appeared meanwhile", ANOTHER_OUT) from error
        raise
    fsync(target.parent)
    if replace:
        for replaced in _temporaries(target, "replaced"):
            shutil.rmtree(str(replaced), ignore_errors=True)


def _is_ours(target: Path) -> bool:
    """Whether there is a checkpoint of ours, by its manifest."""
    try:
        return not target.is_symlink() and "minigpt" in read_object(target / MANIFEST)
    except DataError:
        return False
