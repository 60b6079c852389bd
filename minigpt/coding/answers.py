"""The code in an answer: what a model wrote, without what it said around it."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from typing import List, Optional, Sequence, Tuple

_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.M | re.S)
_BEGINS = re.compile(r"(?:from|import|def|async|class)\b|@")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
_OF_A_SCRIPT = {"input", "argv", "stdin", "main", "exit"}  # tests give nothing to read, and go on


def completion(answer: str, prompt: str, name: str, stops: Sequence[str]) -> str:
    """What is to follow the beginning of a function, `prompt`: the code that defines `name` in the
    answer, in a fence or not, or else the function's body.
    """
    answer = answer.replace("\r\n", "\n")
    texts = [*(match[2] for match in _FENCE.finditer(answer)), answer]
    for text in texts:
        code = _defining(textwrap.dedent(text), name)
        if code is not None:  # below the prompt, it takes the place of what that begins
            line = "" if prompt.endswith("\n") else "\n"
            return ("" if _parsed(prompt)[0] else f"{line}    pass") + f"\n{code}"
    bodies = [_body(text, prompt, stops) for text in texts]
    return next(filter(None, bodies), _cut(texts[0], stops))


def _defining(text: str, name: str) -> Optional[str]:
    """From the beginning or the first import, definition or decorator, the longest piece that is
    Python and defines `name`, without what a script would do besides.
    """
    lines = text.split("\n")
    for start in [0, *(at for at, line in enumerate(lines) if _BEGINS.match(line))]:
        tree = _longest(lines[start:])
        if tree is not None and any(name in _names(node) for node in tree.body):
            kept = [node for node in tree.body if not _is_of_a_script(node)]
            spans = [range(start + _first(node), start + (node.end_lineno or 0)) for node in kept]
            return "\n".join(lines[at] for at in sorted({at for span in spans for at in span}))
    return None


def _longest(lines: Sequence[str]) -> Optional[ast.Module]:
    end = len(lines)
    while end > 0:
        tree, wrong = _parsed("\n".join(lines[:end]))
        if tree is not None:
            return tree
        end = min(end - 1, wrong)
    return None


def _parsed(text: str) -> Tuple[Optional[ast.Module], int]:
    """The syntax tree, or None and the line up to which a shorter text may have one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, "answer", "exec", dont_inherit=True)  # finds more than the parser does
            return ast.parse(text), 0
    except SyntaxError as error:
        return None, error.lineno or len(text)
    except (ValueError, RecursionError, MemoryError):
        return None, len(text)


def _first(node: ast.stmt) -> int:
    """The place of its first line, that of a decorator if it has one."""
    return min(one.lineno for one in (node, *getattr(node, "decorator_list", ()))) - 1


def _names(node: ast.stmt) -> List[str]:
    """What a statement gives a value."""
    targets = [*getattr(node, "targets", ()), getattr(node, "target", None)]
    return [getattr(node, "name", ""), *(getattr(target, "id", "") for target in targets)]


def _is_of_a_script(node: ast.stmt) -> bool:
    """Whether it is an example, a test, or waits for somebody who types."""
    if isinstance(node, _DEFINITIONS):
        return False
    called = getattr(getattr(node, "value", None), "func", None)
    if isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and not _is_setting(called)):
        return True
    used = {getattr(one, "id", "") or getattr(one, "attr", "") for one in ast.walk(node)}
    return not used.isdisjoint(_OF_A_SCRIPT)


def _is_setting(called: Optional[ast.expr]) -> bool:
    """Something like sys.setrecursionlimit(10000)."""
    return isinstance(called, ast.Attribute)


def _body(text: str, prompt: str, stops: Sequence[str]) -> str:
    """The part of a text that continues `prompt`; empty if none does."""
    for part in (text, re.sub(r"\A(?:\S[^\n]*\n|\n)*(?=[ \t])", "", text)):
        for code in (part, textwrap.indent(textwrap.dedent(part), "    ")):
            lines = _cut(code if prompt.endswith("\n") else "\n" + code, stops).split("\n")
            for end in range(len(lines), 0, -1):
                begun = "\n".join(lines[:end])
                if begun.strip() and _parsed(prompt + begun)[0] is not None:
                    return begun
    return ""


def _cut(code: str, stops: Sequence[str]) -> str:
    return code[: min((at for at in map(code.find, stops) if at >= 0), default=len(code))]
