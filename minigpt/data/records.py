"""Instructions and their answers, read from whatever form they came in.

    stdlib-functions          the library's documented functions: signature and docstring -> body
    .jsonl .json .parquet     a record a line, an element or a row, in one of these forms:
        instruction, input (optional), output      Alpaca, Evol-Instruct; with history and system
        prompt, completion      question, answer   and the like, as texts or as lists of messages
        messages or conversations                  turns with role and content, or from and value

A record that says nothing, or not what it should, is left out, counted and reported by its line;
under `strict` the first one ends the run.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Dict, Iterator, Optional, Tuple, Union

import numpy as np

from minigpt.base.errors import DataError, MinigptError, UsageError, flag
from minigpt.data.conversations import NoRecord, add_context, is_learned, joined, read_messages
from minigpt.data.corpus import TEXT_KEYS
from minigpt.data.functions import library_functions
from minigpt.data.shards import Encoded
from minigpt.data.sources import (
    HELD_OUT,
    ROWS,
    TRAIN,
    VALIDATION,
    File,
    LeftOut,
    Names,
    draw,
    find_files,
    names_of,
    rows,
    said,
)  # fmt: skip
from minigpt.data.template import Template, Turns
from minigpt.data.tokenizer import END_MARK, Tokenizer

FUNCTIONS = "stdlib-functions"

Keys = Tuple[str, ...]  # of the instruction, of what may be added to it, of the answer

_FORMS: Tuple[Keys, ...] = (
    *(("instruction", "input", "context", a) for a in ("output", "response", "answer")),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("problem", "solution"),
    ("input", "output"),
)
_CONVERSATIONS = ("messages", "conversations", "conversation", "contents")
_CONTEXT = (
    "system", "system_prompt", "system_message", "systemInstruction", "tools", "functions",
    "history", "weight", "train", "training",
)  # fmt: skip
_KNOWN = {*_CONVERSATIONS, *_CONTEXT, *TEXT_KEYS, *(key for form in _FORMS for key in form)}
# What decides of records whose split is said.
_DRAWN: Dict[Optional[str], float] = {TRAIN: 1.0 - 2.0**-53, VALIDATION: 0.0}
_WRITE = "write instruction and output, or name the keys: --record-keys A,B, of text --text-key A"


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
    names: Names, keys: Optional[Keys] = None, text_key: Optional[str] = None, **flags: object
) -> bool:
    """Whether --data `names` are records rather than text: the first JSON object decides where no
    text is among them. UsageError when they are not and `keys` or another of the `flags` is given.
    """
    if text_key is None and _hold_records(names, keys):
        return True
    given = [flag(one) for one, value in {"record_keys": keys, **flags}.items() if value]
    if given:
        what = f"{given[0]} is for records, and {said(names)} is no file of them"
        raise UsageError(what, "leave it out")
    return False


def _hold_records(names: Names, keys: Optional[Keys]) -> bool:
    if names == FUNCTIONS:
        return True
    if isinstance(names, tuple) and FUNCTIONS in names:
        raise UsageError(f"{FUNCTIONS} goes with nothing else", "name it alone")
    try:
        files = find_files(names, whole=True).files
    except DataError:
        if keys is not None:
            raise
        return False  # and what opens text says why
    if any(file.path.suffix.lower() not in ROWS for file in files):
        return False
    if keys is not None:
        return True
    first = _first_object(files)
    return _form(first) is not None or not any(key in first for key in TEXT_KEYS)


def _first_object(files: Tuple[File, ...]) -> Dict[str, Any]:
    for file in files:
        with suppress(MinigptError):  # reading all of it says why
            for _, value in rows(file.path, LeftOut(), _KNOWN.__contains__):
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
    validation: Union[Names, float] = HELD_OUT, whole: bool = False,
) -> Iterator[Record]:  # fmt: skip
    """The usable records of `names`; the others go to `left_out`. DataError when none is usable.
    `whole`: a template learns all of a record, so that none can be read without being learned.
    """
    if names == FUNCTIONS:
        for exercise in library_functions():
            yield Record(exercise.where, exercise.file, ((exercise.head, exercise.body),))
        return
    usable, columns = 0, _KNOWN if keys is None else {*keys}
    found = find_files(names, validation)
    left_out.passed, left_out.held_out = [*found.notes], found.chosen()
    for file in found.files:
        if file.path.suffix.lower() not in ROWS:
            raise DataError(
                f"{file.path} is no file of records", "name one of those for --validation"
            )
        try:
            for where, value in rows(file.path, left_out, columns.__contains__):
                turns = recognise(value, keys)
                if not isinstance(turns, str) and whole and any(len(turn) > 2 for turn in turns):
                    turns = "this template would learn an answer that is not to be learned"
                if isinstance(turns, str):
                    left_out.add(turns, where)
                    continue
                usable += 1
                if not whole:
                    left_out.marked += sum(len(END_MARK.findall("\0".join(t))) for t in turns)
                yield Record(where, json.dumps(turns), turns, _DRAWN.get(file.split))
        except DataError as error:
            if left_out.strict or (isinstance(names, str) and os.path.isfile(names)):
                raise
            left_out.add(error.what.replace(f"{file.path} ", "", 1), str(file.path))
    if not usable:
        what = "; ".join([f"{found.name} has no usable record", *left_out.lines()])
        raise DataError(what, _WRITE)


def recognise(value: Any, keys: Optional[Keys] = None) -> Union[Turns, str]:
    """The turns of a record, or in words what is wrong with it."""
    if not isinstance(value, dict):
        return "no object with keys"
    form = keys or _form(value)
    if form is None:
        return f"no instruction and answer among {names_of(value)}"
    try:
        turns = read_messages(value.get(form[0])) if len(form) == 1 else _pair(value, form)
        if keys is not None:
            return turns
        return add_context(turns, value) if is_learned(value) else "it is not to be learned"
    except NoRecord as reason:
        return str(reason)


def _form(value: Dict[str, Any]) -> Optional[Keys]:
    """The keys that make `value` a record, as far as can be told from their names."""
    for name in _CONVERSATIONS:
        if isinstance(value.get(name), list):
            return (name,)
    return next((form for form in _FORMS if form[0] in value and form[-1] in value), None)


def _pair(value: Dict[str, Any], keys: Keys) -> Turns:
    """All but the last of `keys` ask; those between may be missing."""
    if any(isinstance(value.get(key), list) for key in (keys[0], keys[-1])):
        before, after = value.get(keys[0]), value.get(keys[-1])
        asked = before if isinstance(before, list) else [{"role": "user", "content": before}]
        answer = after if isinstance(after, list) else [{"role": "assistant", "content": after}]
        context = [{**m, "weight": 0} if isinstance(m, dict) else m for m in asked]
        return read_messages([*context, *answer])
    texts = []
    for key in keys:
        needed, text = key in (keys[0], keys[-1]), value.get(key)
        if needed and key not in value:
            raise NoRecord(f"no {key} among {names_of(value)}")
        text = "" if text is None else text
        if not isinstance(text, str):
            raise NoRecord(f"{key} is no text")
        if needed and not text.strip():
            raise NoRecord(f"{key} is empty")
        texts.append(text)
    return ((joined(texts[:-1]), texts[-1]),)


def render(record: Record, template: Template, tokenizer: Tokenizer) -> Encoded:
    """A record as int32 tokens, of any length."""
    ids, learned = template.render(tokenizer, record.turns)
    turns = np.flatnonzero(np.diff(learned, prepend=False))
    if template.whole:  # one text: where its first answer begins, had its prompt stood alone
        asked = len(tokenizer.encode(template.prompt(record.turns[0][0])))
        turns = np.array([min(asked, len(ids) - 1)])
    drawn = draw(record.key) if record.drawn is None else record.drawn
    return Encoded(np.array(ids, np.int32), True, turns, drawn)
