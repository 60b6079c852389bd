"""The code in an answer: what a model wrote, without what it said around it."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from typing import Iterable, Optional, Sequence

_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.M | re.S)
_BEGINS = re.compile(r"(?:from|import|def|async|class)\b|@")
_PROSE = re.compile(r"\A(?:\S[^\n]*\n|\n)+(?=[ \t])")  # above what is indented
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
_OF_A_SCRIPT = {"input", "argv", "stdin", "main", "exit"}  # tests give nothing to read, and go on


def completion(answer: str, prompt: str, name: str, stops: Sequence[str]) -> str:
    """What is to follow the beginning of a function, `prompt`: the code that defines `name` in the
    answer, in a fence or not, or else the function's body.
    """
    answer = answer.replace("\r\n", "\n")
    texts = [*(match[2] for match in _FENCE.finditer(answer)), answer]
    line = "" if prompt.endswith("\n") else "\n"
    for text in texts:
        code = _defining(textwrap.dedent(text), name)
        if code is not None:  # below the prompt, it takes the place of what that begins
            return ("" if _parsed([prompt]) else f"{line}    pass") + f"\n{code}"
    parts = [part for text in texts for part in (text, _PROSE.sub("", text))]
    forms = [form for part in parts for form in (part, textwrap.indent(part, "    "))]
    bodies = [_cut(line + form, stops) for form in forms]
    return next(filter(None, (_body(body, prompt) for body in bodies)), bodies[0])


def _defining(text: str, name: str) -> Optional[str]:
    """From the beginning or the first import, definition or decorator, the longest piece that is
    Python and defines `name`, without what a script would do besides.
    """
    lines = text.split("\n")
    for start in [0, *(at for at, line in enumerate(lines) if _BEGINS.match(line))]:
        rest = lines[start:]
        tree = next(filter(None, map(_parsed, _beginnings(rest))), ast.Module([], []))
        kept = [node for node in tree.body if not _is_of_a_script(node)]
        code = "\n".join("\n".join(rest[_first(node) : node.end_lineno]) for node in kept)
        if re.search(rf"^(?:(?:async +)?def +{name}\b|{name} *[:=])", code, re.M):
            return code
    return None


def _body(text: str, prompt: str) -> str:
    """The longest beginning of a text that is Python below `prompt`; empty if there is none."""
    begun = ("\n".join(lines) for lines in _beginnings(text.split("\n")))
    return next((code for code in begun if code.strip() and _parsed([prompt + code])), "")


def _beginnings(lines: Sequence[str]) -> Iterable[Sequence[str]]:
    return (lines[:end] for end in range(len(lines), 0, -1))


def _parsed(lines: Sequence[str]) -> Optional[ast.Module]:
    text = "\n".join(lines)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, "answer", "exec", dont_inherit=True)  # finds more than the parser does
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _first(node: ast.stmt) -> int:
    """The place of its first line, that of a decorator if it has one."""
    return min(one.lineno for one in (node, *getattr(node, "decorator_list", ()))) - 1


def _is_of_a_script(node: ast.stmt) -> bool:
    """Whether it is an example, a test, or waits for somebody who types. Calls such as that of
    sys.setrecursionlimit stay.
    """
    called = getattr(getattr(node, "value", None), "func", None)
    used = {getattr(one, "id", "") or getattr(one, "attr", "") for one in ast.walk(node)}
    example = isinstance(node, ast.Expr) and not isinstance(called, ast.Attribute)
    script = example or isinstance(node, ast.Assert) or not used.isdisjoint(_OF_A_SCRIPT)
    return script and not isinstance(node, _DEFINITIONS)


def _cut(code: str, stops: Sequence[str]) -> str:
    return code[: min((at for at in map(code.find, stops) if at >= 0), default=len(code))]
