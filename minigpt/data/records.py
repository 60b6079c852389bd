"""Instructions and their answers, read from whatever form they came in.

    stdlib-functions          the library's documented functions: signature and docstring -> body
    .jsonl .json .parquet     a record a line, an element or a row, in one of these forms:
        instruction, input (optional), output      Alpaca, Evol-Instruct
        prompt, completion      question, answer   and the like
        messages or conversations                  turns with role and content, or from and value

A record that says nothing, or not what it should, is left out, counted and reported by its line;
under `strict` the first one ends the run.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

import numpy as np

from minigpt.base.errors import DataError, UsageError, flag
from minigpt.data.corpus import TEXT_KEYS, draw
from minigpt.data.functions import library_functions
from minigpt.data.shards import Encoded
from minigpt.data.template import Template, Turns
from minigpt.data.tokenizer import Tokenizer

FUNCTIONS = "stdlib-functions"

Keys = Tuple[str, ...]  # of the instruction, of what may be added to it, of the answer

_FORMS: Tuple[Keys, ...] = (
    *(("instruction", "input", "context", a) for a in ("output", "response", "answer")),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("problem", "solution"),
)
_CONVERSATIONS = ("messages", "conversations", "conversation")
_ANSWERS = ("assistant", "gpt", "chatgpt", "model")  # the roles that are learned from
_WRITE = "write instruction and output, or name the keys with --record-keys A,B"
_PLACES, _REASONS = 3, 8  # what a report of left-out records shows of each


@dataclass(frozen=True)
class Record:
    """A conversation of one or more turns. `key` decides whether it is held out."""

    where: str
    key: str
    turns: Turns
    split = "records"  # one until they are trained on: which are held out depends on which fit

    @property
    def size(self) -> int:
        return sum(len(text.encode("utf-8", "replace")) for turn in self.turns for text in turn)


@dataclass
class LeftOut:
    """What was left out, and why: of each reason, how often and the first places."""

    strict: bool = False
    counts: Dict[str, int] = field(default_factory=dict)
    places: Dict[str, List[str]] = field(default_factory=dict)

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
        return lines + ([f"left out {rest:,}: other reasons"] if rest else [])


def holds_records(name: str, keys: Optional[Keys] = None, **flags: object) -> bool:
    """Whether --data `name` is made of records rather than of text. Of a .jsonl file the first
    JSON object decides. UsageError when it is not and `keys` or another of the `flags` is given.
    """
    if _holds_records(name, keys):
        return True
    said = [flag(one) for one, value in {"record_keys": keys, **flags}.items() if value]
    if said:
        raise UsageError(f"{said[0]} is for records, and {name} is no file of them", "leave it out")
    return False


def _holds_records(name: str, keys: Optional[Keys]) -> bool:
    path = Path(name)
    if path.is_dir():
        return False
    if path.suffix != ".jsonl":
        return name == FUNCTIONS or path.suffix in (".json", ".parquet")
    if keys is not None or not path.exists():
        return True
    first = next((value for _, value in _values(path, LeftOut()) if isinstance(value, dict)), {})
    return _form(first) is not None or not any(key in first for key in TEXT_KEYS)


def parse_keys(text: Optional[str]) -> Optional[Keys]:
    """The names in --record-keys: A,B for instruction and answer, or A,INPUT,B where INPUT may be
    added to A, or one name for a list of messages.
    """
    if text is None:
        return None
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise UsageError(f"--record-keys is {text!r}", "name two keys, such as question,solution")
    return names


def require_file(name: str) -> None:
    """DataError when the records `name` are not there."""
    if name != FUNCTIONS and not Path(name).is_file():
        raise DataError(f"there is no file {name}", f"name a file of records, or {FUNCTIONS}")


def read_records(name: str, keys: Optional[Keys], left_out: LeftOut) -> Iterator[Record]:
    """The usable records of `name`; the others go to `left_out`. DataError when none is usable."""
    if name == FUNCTIONS:
        for exercise in library_functions():
            yield Record(exercise.where, exercise.file, ((exercise.head, exercise.body),))
        return
    usable = 0
    for where, value in _values(Path(name), left_out):
        turns = recognise(value, keys)
        if isinstance(turns, str):
            left_out.add(turns, where)
        else:
            usable += 1
            yield Record(where, json.dumps(turns), turns)
    if not usable:
        raise DataError("; ".join([f"{name} has no usable record", *left_out.lines()]), _WRITE)


def recognise(value: Any, keys: Optional[Keys] = None) -> Union[Turns, str]:
    """The turns of a record, or in words what is wrong with it."""
    if not isinstance(value, dict):
        return "no object with keys"
    form = keys or _form(value)
    if form is None:
        return f"no instruction and answer among {_names(value)}"
    return _conversation(value.get(form[0])) if len(form) == 1 else _pair(value, form)


def _form(value: Dict[str, Any]) -> Optional[Keys]:
    """The keys that make `value` a record, as far as can be told from their names."""
    for name in _CONVERSATIONS:
        if isinstance(value.get(name), list):
            return (name,)
    return next((form for form in _FORMS if form[0] in value and form[-1] in value), None)


def _names(value: Dict[str, Any]) -> str:
    names = ", ".join(sorted(value)) or "none"
    return f"its keys: {names if len(names) < 200 else names[:200] + '...'}"


def _pair(value: Dict[str, Any], keys: Keys) -> Union[Turns, str]:
    """All but the last of `keys` ask; those between may be missing."""
    texts = []
    for key in keys:
        needed, text = key in (keys[0], keys[-1]), value.get(key)
        if needed and key not in value:
            return f"no {key} among {_names(value)}"
        text = "" if text is None else text
        if not isinstance(text, str):
            return f"{key} is no text"
        if needed and not text.strip():
            return f"{key} is empty"
        texts.append(text)
    return ((_joined(texts[:-1]), texts[-1]),)


def _joined(texts: List[str]) -> str:
    """What an answer answers, without the parts that say nothing."""
    return "\n\n".join(text for text in texts if text.strip())


def _conversation(messages: Any) -> Union[Turns, str]:
    """Pairs each answer with all that was said since the one before it."""
    if not isinstance(messages, list):
        return "no list of messages"
    turns: List[Tuple[str, str]] = []
    asked: List[str] = []
    for message in messages:
        if not isinstance(message, dict):
            return "a message is no object"
        role = message.get("role", message.get("from"))
        text = message.get("content", message.get("value"))
        if not isinstance(text, str) or not isinstance(role, str):
            return "a message has no role or no text"
        if role.lower() not in _ANSWERS:
            asked.append(text)
        elif not text.strip() or not _joined(asked):
            return "an instruction or answer is empty"
        else:
            turns.append((_joined(asked), text))
            asked = []
    return tuple(turns) or "no answer among its messages"


def render(record: Record, template: Template, tokenizer: Tokenizer) -> Encoded:
    """A record as int32 tokens, of any length."""
    ids, learned = template.render(tokenizer, record.turns)
    turns = np.flatnonzero(np.diff(learned, prepend=False))
    if template.whole:  # one text: where its first answer begins, had its prompt stood alone
        asked = len(tokenizer.encode(template.prompt(record.turns[0][0])))
        turns = np.array([min(asked, len(ids) - 1)])
    return Encoded(np.array(ids, np.int32), True, turns, draw(record.key))


def _values(path: Path, left_out: LeftOut) -> Iterator[Tuple[str, Any]]:
    """(where, value) of everything in a file that may be a record."""
    require_file(str(path))
    read = {".parquet": _parquet, ".json": _json}.get(path.suffix, _jsonl)
    try:
        yield from read(path, left_out)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}", "name another file") from None


def _jsonl(path: Path, left_out: LeftOut) -> Iterator[Tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if line.strip():
                try:
                    yield where, json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError):
                    left_out.add("no JSON", where)


def _json(path: Path, left_out: LeftOut) -> Iterator[Tuple[str, Any]]:
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data"):  # a record a line, in spite of the name
            yield from _jsonl(path, left_out)
            return
        raise DataError(f"{path} is no JSON: {error}", "mend it there") from None
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]  # such as {"data": [...]}
        value = [value] if _form(value) or len(lists) != 1 else lists[0]
    if not isinstance(value, list):
        raise DataError(f"{path} is not a list of records", "begin it with [ and end it with ]")
    for number, record in enumerate(value, 1):
        yield f"{path}, record {number}", record


def _parquet(path: Path, _: LeftOut) -> Iterator[Tuple[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        fix = "install it with: pip install pyarrow"
        raise UsageError(f"reading {path} needs pyarrow", fix) from None
    try:
        batches = parquet.ParquetFile(str(path)).iter_batches(1000)
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, record in enumerate(rows, 1):
            yield f"{path}, row {number}", record
    except (ArrowException, ValueError) as error:
        raise DataError(f"{path} is no Parquet: {error}", "get it again") from None
