"""The functions of the standard library as exercises: (signature and docstring) -> body.

Thousands of small programs, described by the people who wrote them, on every machine that has
Python: enough to learn what an instruction is, with nothing to download. CodeSearchNet (Husain et
al. 2019) pairs functions with docstrings in the same way.
"""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass
from typing import Iterator, List, Set, Tuple, Union

from minigpt.data.corpus import read_text
from minigpt.data.sources import LIBRARY, library_files

_SHORTEST = 20  # characters of a docstring that says something

Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]


@dataclass(frozen=True)
class Exercise:
    """A function cut in two behind its docstring, indented as at the top of a file."""

    where: str  # file:line
    file: str
    head: str
    body: str


def library_functions() -> Iterator[Exercise]:
    """The documented functions of the running interpreter's library, each once, in fixed order."""
    seen: Set[Tuple[str, str]] = set()
    for path in library_files():
        for exercise in functions(read_text(path), path.relative_to(LIBRARY).as_posix()):
            if (exercise.head, exercise.body) not in seen:
                seen.add((exercise.head, exercise.body))
                yield exercise


def functions(source: str, file: str) -> Iterator[Exercise]:
    """The documented functions and methods of a Python source, in its order; none when it cannot
    be parsed. Functions inside of functions belong to the body they are in.
    """
    # Not splitlines(): Python's own line numbers count no form feeds, and the library has some.
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
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
