"""The files behind what a person names, which of them validate, and the values in their rows.

    a file         .txt .py are texts; .jsonl .json .parquet hold a value in each line, element, row
    a directory    all such files in it (.json only where there are no others), but not those that
                   are hidden, behind a link or written by minigpt: these are counted
    stdlib         the running interpreter's own library

Names that say train, valid, validation, val, dev or test are heeded: what is for a test is read by
nobody who does not name it.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import sysconfig
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterator, List, Optional, Tuple, Union

from minigpt.base.errors import DataError, UsageError
from minigpt.base.files import MANIFEST

Names = Union[str, Tuple[str, ...]]  # what --data and --validation take: a name, or several

TRAIN, VALIDATION = "train", "validation"
HELD_OUT = 0.03  # the share that is kept for validation
LIBRARY = Path(sysconfig.get_paths()["stdlib"])  # of the running interpreter
TEXTS, ROWS = (".py", ".txt"), (".jsonl", ".json", ".parquet")

_TEST = "test"
_SAID = {TRAIN: TRAIN, "training": TRAIN, _TEST: _TEST}
_SAID.update(dict.fromkeys((VALIDATION, "valid", "val", "dev"), VALIDATION))
_PLACES, _REASONS = 3, 8  # what a report of what was left out shows of each
_READ = f"a file of records or text ({' '.join((*TEXTS, *ROWS))}), a directory or stdlib"
# The library's tests, other people's packages, and pydoc's topics, a 700 kB text in a string.
_NOT_CODE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"}
_MODEL = {"config.json", "vocab.json", "tokenizer.json", "tokenizer_config.json"}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


@dataclass
class LeftOut:
    """What was left out, and why: of each reason, how often and the first places."""

    strict: bool = False
    counts: Dict[str, int] = field(default_factory=dict)
    places: Dict[str, List[str]] = field(default_factory=dict)
    passed: List[str] = field(default_factory=list)  # what was not even read, in words
    held_out: str = ""  # what was kept for validation, in words
    marked: int = 0  # how often the end of a text is written in it as a text
    special: bool = False  # whether that was read as the end

    def add(self, reason: str, where: str) -> None:
        """Counts one; DataError when `strict`."""
        if self.strict:
            raise DataError(f"{where}: {reason}", "mend it, or leave out --strict")
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if len(self.places.setdefault(reason, [])) < _PLACES:
            self.places[reason].append(where)

    def lines(self) -> List[str]:
        """One line a reason, the commonest first."""
        lines, rest = [], sum(self.counts.values())
        for reason, count in Counter(self.counts).most_common(_REASONS):
            places = ", ".join(self.places[reason]) + (", ..." if count > _PLACES else "")
            lines.append(f"left out {count:,}: {reason} ({places})")
            rest -= count
        lines += [f"left out {rest:,}: other reasons"] * bool(rest) + self.passed
        if self.marked and not self.special:
            lines.append(
                f"<|endoftext|> or <|startoftext|> is written {self.marked:,} times in it, and"
                " read as text; --special-tokens reads it as the end of a document"
            )
        return lines

    def wrong(self) -> bool:
        """Whether it is none of ours, where it was read from a file."""
        texts = [text for places in (*self.places.values(), self.passed) for text in places]
        whole = {*self.counts} == {*self.places} and all(type(text) is str for text in texts)
        return not whole or any(type(n) is not int for n in (*self.counts.values(), self.marked))


@dataclass(frozen=True)
class File:
    """`key` is its name in what was given, wherever that lies; `split` what that, or --validation,
    says of it.
    """

    path: Path
    key: str
    split: Optional[str] = None


@dataclass(frozen=True)
class Found:
    """The files in a fixed order. `share` is what is held out of those whose split is open."""

    name: str
    files: Tuple[File, ...]
    share: float
    notes: Tuple[str, ...]  # what was passed over

    def chosen(self) -> str:
        """The files for validation, in words; empty where none was chosen by its name."""
        return said(tuple(f.key for f in self.files if f.split == VALIDATION))


def said(names: Names) -> str:
    """Names in a sentence."""
    listed = (names,) if isinstance(names, str) else names
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


def share_of(validation: Union[Names, float]) -> Optional[float]:
    """The share that --validation says, as 0.05 or 5%; None where it names files."""
    try:
        text = str(validation)
        share = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    if not 0.0 < share < 1.0:
        what = f"--validation is {validation}, and a share must be between 0 and 1"
        raise UsageError(what, "say 0.05, or name files")
    return share


def find_files(
    names: Names, validation: Union[Names, float] = HELD_OUT, whole: bool = False
) -> Found:
    """The files of `names`; DataError when there are none. `validation` is a share, or the names of
    what to validate on; with `whole` that is all of them.
    """
    share, passed = 1.0 if whole else share_of(validation), LeftOut()
    files = _files(names, passed)
    if share is None:
        assert not isinstance(validation, float)
        chosen = [replace(file, split=VALIDATION) for file in _files(validation, passed)]
        taken = {os.path.realpath(file.path) for file in chosen}
        rest = [file for file in files if os.path.realpath(file.path) not in taken]
        if not rest:
            raise DataError(f"{said(names)} is all in --validation", "name more to train on")
        files = [*(replace(file, split=TRAIN) for file in rest), *chosen]
    elif whole:
        files = [replace(file, split=VALIDATION) for file in files]
    else:
        files = _heeded(files, passed)
    return Found(said(names), tuple(files), share or HELD_OUT, tuple(passed.lines()))


def _files(names: Names, passed: LeftOut) -> List[File]:
    listed = (names,) if isinstance(names, str) else names
    if not listed:
        raise UsageError("no data are named", f"name {_READ}")
    several = len(listed) > 1
    files: Dict[str, File] = {}
    for name in listed:
        root = LIBRARY if name == "stdlib" else Path(name)
        paths = library_files() if name == "stdlib" else _below(root, passed)
        above = root.parent if root in paths else root
        prefix = Path(os.path.abspath(above)).name if several else ""
        for path in paths:
            key = (prefix / path.relative_to(above)).as_posix()
            files.setdefault(os.path.realpath(path), File(path, key))
    return list(files.values())


def library_files() -> List[Path]:
    """The library's own source files, without tests and other people's packages, in fixed order."""
    return [path for path in _walk(LIBRARY, LeftOut(), _NOT_CODE) if path.suffix == ".py"]


def _below(root: Path, passed: LeftOut) -> List[Path]:
    if not os.path.isdir(root):
        return [_named(root)]
    files = [p for p in _walk(root, passed) if p.suffix.lower() in TEXTS + ROWS]
    found = [p for p in files if p.suffix.lower() != ".json"] or files
    if not found:
        what = "; ".join([f"{root} has no {', '.join(TEXTS + ROWS)} file", *passed.lines()])
        raise DataError(what, f"name {_READ}")
    return found


def _named(path: Path) -> Path:
    """A file, by its own name; DataError when it is none that can be read."""
    if not os.path.exists(path):
        here = "" if path.is_absolute() else f" in {os.getcwd()}"
        fix = f"name {_READ}, or, to train on, stdlib-functions"
        fix += " (a run goes on elsewhere by --resume RUN --data PATH)" if here else ""
        raise DataError(f"there is no file {path}{here}", fix)
    if not os.path.isfile(path):
        raise DataError(f"{path} is neither a file nor a directory", f"name {_READ}")
    if path.suffix.lower() not in TEXTS + ROWS:
        what = f"{path} is no {', '.join(TEXTS + ROWS)} file"
        raise DataError(what, "if it is text, give it a name that ends in .txt")
    return path


def _walk(root: Path, passed: LeftOut, skip: Collection[str] = ()) -> Iterator[Path]:
    for directory, folders, names in os.walk(str(root)):
        here = Path(directory)
        if _written_by_us(here, names):
            passed.add("a run, a model or prepared data", directory)
            folders.clear()
            continue
        kept = {name for name in folders if not _passed_over(here / name, passed)}
        folders[:] = sorted(kept.difference(skip, {"__pycache__"}))
        texts = [here / name for name in sorted(names) if _is_data(here / name, names)]
        yield from (path for path in texts if not _passed_over(path, passed))


def _passed_over(path: Path, passed: LeftOut) -> bool:
    hidden = path.name.startswith(".") or path.name == "__MACOSX"
    if hidden or (path.is_symlink() and path.is_dir()):
        passed.add("hidden" if hidden else "a link to a directory, not followed", str(path))
        return True
    return not path.exists()


def _is_data(path: Path, beside: Collection[str]) -> bool:
    """Whether it is for us to read, and neither a part of a vocabulary nor an evaluation's."""
    vocabulary = path.name in ("merges.txt", "vocab.txt") and not _MODEL.isdisjoint(beside)
    ours = vocabulary or f"{path.name}.settings.json" in beside
    return path.suffix.lower() in TEXTS + ROWS and path.is_file() and not ours


def _written_by_us(directory: Path, names: Collection[str]) -> bool:
    """A prepared directory, a run, a checkpoint, or a model in Hugging Face's layout."""
    run = "metrics.jsonl" in names or (directory / "checkpoints").is_dir()
    if run and "config.toml" in names:
        return True
    weights = any(name.endswith((".safetensors", ".tokens")) for name in names)
    return weights and bool({MANIFEST, "dataset.json", "config.json"}.intersection(names))


def _heeded(files: List[File], passed: LeftOut) -> List[File]:
    """The files, with the splits that their names say, where these leave something to train on."""
    named = [_split_said(file) for file in files]
    code = any(file.path.suffix == ".py" for file in files)  # has a folder of tests, and they teach
    if not {TRAIN, None}.intersection(named) or (code and TRAIN not in named):
        return files
    kept = []
    for file, split in zip(files, named):
        if split == _TEST:
            passed.add("for a test, by its name", file.key)
        else:
            kept.append(replace(file, split=(split or TRAIN) if VALIDATION in named else None))
    return kept


def _split_said(file: File) -> Optional[str]:
    *folders, name = file.key.lower().split("/")
    words = re.split("[^a-z]+", name.rpartition(".")[0]) if file.path.suffix != ".py" else []
    for parts in (words, *([folder] for folder in reversed(folders))):
        found = {_SAID[part] for part in parts if part in _SAID}
        if len(found) == 1:
            return found.pop()
    return None


def names_of(value: Any) -> str:
    """The keys of a value, in words."""
    names = ", ".join(sorted(value)) if isinstance(value, dict) else ""
    return f"its keys: {names[:200] + '...' if len(names) > 200 else names or 'none'}"


def draw(key: str) -> float:
    """A number in [0, 1) that depends on nothing but `key`."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def encoding_of(path: Path) -> str:
    """How a file is encoded: UTF-8, unless its first bytes say otherwise."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def rows(path: Path, left_out: LeftOut, wanted: Callable[[str], bool]) -> Iterator[Tuple[str, Any]]:
    """(where, value) of everything in a .jsonl, .json or .parquet; of Parquet the columns that are
    `wanted`. What is no value goes to `left_out`; DataError when the file cannot be read at all.
    """
    try:
        if path.suffix.lower() == ".parquet":
            yield from _parquet(path, wanted)
        else:
            read = partial(_json, wanted=wanted) if path.suffix.lower() == ".json" else _jsonl
            yield from read(path, left_out)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}", "name another file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not {error.encoding}", "save it as UTF-8") from None


def _lines(path: Path) -> Iterator[Union[str, bytes]]:
    encoding = encoding_of(path)
    if encoding.startswith("utf-8"):
        with path.open("rb") as binary:
            yield from binary
    else:
        with path.open(encoding=encoding) as text:
            yield from text


def _jsonl(path: Path, left_out: LeftOut) -> Iterator[Tuple[str, Any]]:
    for number, line in enumerate(_lines(path), 1):
        try:
            text = line.decode("utf-8") if isinstance(line, bytes) else line
            text = text.strip("\ufeff \t\r\n")
            if text:
                yield f"{path}:{number}", json.loads(text)
        except UnicodeDecodeError:
            left_out.add("not UTF-8: save it as that", f"{path}:{number}")
        except (ValueError, RecursionError):
            left_out.add("no JSON", f"{path}:{number}")


def _json(
    path: Path, left_out: LeftOut, wanted: Callable[[str], bool]
) -> Iterator[Tuple[str, Any]]:
    try:
        value = json.loads(path.read_bytes().decode(encoding_of(path)))
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data"):  # a value a line, in spite of the name
            yield from _jsonl(path, left_out)
            return
        raise DataError(f"{path} is no JSON: {error}", "mend it there") from None
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]  # such as {"data": [...]}
        known = any(
            wanted(key) for key in value if not isinstance(value[key], list) or key != TRAIN
        )
        value = [value] if known or len(lists) != 1 else lists[0]
    if not isinstance(value, list):
        raise DataError(f"{path} is not a list of records", "begin it with [ and end it with ]")
    for number, record in enumerate(value, 1):
        yield f"{path}, record {number}", record


def _parquet(path: Path, wanted: Callable[[str], bool]) -> Iterator[Tuple[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        fix = "install it with: pip install pyarrow"
        raise UsageError(f"reading {path} needs pyarrow", fix) from None
    try:
        file = parquet.ParquetFile(str(path))
        names = file.schema_arrow.names
        columns = [name for name in names if wanted(name)]
        if not columns:
            found = ", ".join(sorted(names))
            raise DataError(f"{path} has neither text nor records among its columns: {found}",
                            "name them with --text-key or --record-keys")  # fmt: skip
        batches = file.iter_batches(100, columns=columns)
        values = chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, record in enumerate(values, 1):
            yield f"{path}, row {number}", record
    except (ArrowException, ValueError) as error:
        raise DataError(f"{path} is no Parquet: {error}", "get it again") from None
