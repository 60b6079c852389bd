"""Instructions and their answers, read from whatever form they came in.

    stdlib-functions          the library's documented functions: signature and docstring -> body
    .jsonl .json .parquet     a record a line, an element or a row (conversations.py)

The library's functions are thousands of small programs, described by the people who wrote them, on
every machine that has Python: enough to learn what an instruction is, with nothing to download.
CodeSearchNet (Husain et al. 2019) pairs functions with docstrings in the same way.

A record that says nothing, or not what it should, is left out, counted and reported by its line;
under `strict` the first one ends the run.
"""

from __future__ import annotations

import ast
import json
import warnings
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Set, Tuple, Union

import numpy as np

from minigpt.base.errors import DataError, MinigptError, UsageError, flag
from minigpt.data import sources
from minigpt.data.conversations import KNOWN, Keys, form_of, recognise
from minigpt.data.corpus import TEXT_KEYS, read_text
from minigpt.data.shards import Encoded
from minigpt.data.sources import FUNCTIONS, TRAIN, VALIDATION, Found, HeldOut, Names, find_files
from minigpt.data.template import Template, Turns
from minigpt.data.tokenizer import END_MARK, Tokenizer
from minigpt.data.values import LeftOut, draw

_COLUMNS = {*KNOWN, *TEXT_KEYS}
# What decides of records whose split is said.
_DRAWN: Dict[Optional[str], float] = {TRAIN: 1.0 - 2.0**-53, VALIDATION: 0.0}
_SHORTEST = 20  # characters of a docstring that says something
_WRITE = "write instruction and output, or name the keys: --record-keys A,B, of text --text-key A"


Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]


@dataclass(frozen=True)
class Record:
    """A conversation of one or more turns. `key` decides whether it is held out."""

    where: str
    key: str
    turns: Turns
    drawn: Optional[float] = None  # what decides in its place where its split is said
    split = "records"  # one until they are trained on: which are held out depends on which fit

    @property
    def size(self) -> int:
        return sum(len(text.encode("utf-8", "replace")) for turn in self.turns for text in turn)


def holds_records(
    names: Names, keys: Optional[Keys] = None, text_key: Optional[str] = None
) -> bool:
    """Whether --data `names` are records rather than text: the first JSON object decides where no
    text is among them. UsageError when they are not and `keys` are given.
    """
    if names == FUNCTIONS and text_key is None:
        return True
    if isinstance(names, tuple) and FUNCTIONS in names:
        raise UsageError(f"{FUNCTIONS} goes with nothing else", "name it alone")
    found = find_files(names, whole=True)
    if text_key is None and all(file.has_rows for file in found.files):
        first = _first_object(found)
        if keys or form_of(first) or not any(key in first for key in TEXT_KEYS):
            return True
    refuse({"record_keys": keys}, f"is for records, and {found.name} is no file of them")
    return False


def refuse(given: Mapping[str, object], why: str, fix: str = "leave it out") -> None:
    """UsageError for the first flag of which something is `given`."""
    for name, value in given.items():
        if value:
            raise UsageError(f"{flag(name)} {why}", fix)


def _first_object(found: Found) -> Dict[str, Any]:
    with suppress(MinigptError):  # reading all of it says why
        for file in found.files:
            for _, value in found.values(file, LeftOut(), _COLUMNS):
                if isinstance(value, dict):
                    return value
    return {}


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


def read_records(
    names: Names, keys: Optional[Keys], left_out: LeftOut,
    validation: HeldOut = None, whole: bool = False, part: sources.Part = sources.ALL,
) -> Iterator[Record]:  # fmt: skip
    """The usable records of `names`; the others go to `left_out`. DataError when of all none is.
    `whole`: a template learns all of a record, so that none can be read without being learned.
    """
    if names == FUNCTIONS:
        for one in library_functions():
            yield Record(one.where, one.file, ((one.head, one.body),))
        return
    usable, found = 0, find_files(names, validation).part(part)
    left_out.passed, left_out.held_out = [*found.notes], found.chosen()
    for file in found.files:
        if not file.has_rows:
            what = f"{file.path} is no file of records"
            raise DataError(what, "name one of those for --validation")
        for where, value in found.values(file, left_out, keys or _COLUMNS):
            turns = recognise(value, keys)
            if whole and not isinstance(turns, str) and any(len(turn) > 2 for turn in turns):
                turns = "this template would learn an answer that is not to be learned"
            if isinstance(turns, str):
                left_out.add(turns, where)
                continue
            usable += 1
            if not whole:
                left_out.marked += sum(len(END_MARK.findall("\0".join(turn))) for turn in turns)
            yield Record(where, json.dumps(turns), turns, _DRAWN.get(file.split))
    if not usable and part == sources.ALL:
        what = "; ".join([f"{found.name} has no usable record", *left_out.lines()])
        raise DataError(what, _WRITE)


def render(record: Record, template: Template, tokenizer: Tokenizer) -> Encoded:
    """A record as int32 tokens, of any length."""
    ids, learned = template.render(tokenizer, record.turns)
    turns = np.flatnonzero(np.diff(learned, prepend=False))
    if template.whole:  # one text: where its first answer begins, had its prompt stood alone
        asked = len(tokenizer.encode(template.prompt(record.turns[0][0])))
        turns = np.array([min(asked, len(ids) - 1)])
    drawn = draw(record.key) if record.drawn is None else record.drawn
    return Encoded(np.array(ids, np.int32), True, turns, drawn)


class Exercise(NamedTuple):
    """A function cut in two behind its docstring, indented as at the top of a file."""

    where: str  # file:line
    file: str
    head: str
    body: str


def library_functions() -> Iterator[Exercise]:
    """The documented functions of the running interpreter's library, each once, in fixed order."""
    seen: Set[Tuple[str, ...]] = set()
    for path in sources.library_files():
        for exercise in functions(read_text(path), path.relative_to(sources.LIBRARY).as_posix()):
            if exercise[2:] not in seen:
                seen.add(exercise[2:])
                yield exercise


def functions(source: str, file: str) -> Iterator[Exercise]:
    """The documented functions and methods of a Python source, in its order; none when it cannot
    be parsed. Functions inside of functions belong to the body they are in.
    """
    # As Python numbers them: splitlines() would count form feeds, and the library has some.
    lines = StringIO(source, newline=None).read().split("\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources have escapes that Python now warns of
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in filter(_teaches, _outermost(tree)):
        start = min([node.lineno, *(mark.lineno for mark in node.decorator_list)]) - 1
        middle = node.body[0].end_lineno
        indent = lines[node.lineno - 1][: node.col_offset]
        head = _dedent(lines[start:middle], indent).rstrip()
        body = _dedent(lines[middle : node.end_lineno], indent).strip("\n")
        yield Exercise(f"{file}:{node.lineno}", file, head, body)


def _outermost(node: ast.AST) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
        elif isinstance(child, (ast.stmt, ast.ExceptHandler)):
            yield from _outermost(child)


def _teaches(node: Function) -> bool:
    """Whether it says what it does, and then, from another line on, does something."""
    text = ast.get_docstring(node, clean=True)
    if text is None or len(text) < _SHORTEST or len(node.body) < 2:
        return False
    said, done = node.body[:2]
    return done.lineno > (said.end_lineno or 0) and not isinstance(done, (ast.Pass, ast.Raise))


def _dedent(lines: List[str], indent: str) -> str:
    """Takes `indent` from each line that has it; lines inside of strings may not."""
    return "\n".join(line[len(indent) :] if line.startswith(indent) else line for line in lines)
