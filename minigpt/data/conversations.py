"""Conversations, as the field writes them, to turns: what was asked and what was answered.

    {"role": "user", "content": "..."}     OpenAI's, also with parts, tool calls and weights
    {"from": "human", "value": "..."}      ShareGPT's
    {"role": "user", "parts": [...]}       Google's

Whoever speaks in a row speaks once. All that is said before an answer is its question, the results
of tools too; a call of a tool is an answer, written as JSON. An answer whose `weight` is 0 or whose
`train` is false, and one that nothing was asked for, is there to be read and not to be learned.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Dict, List, Optional, Tuple

from minigpt.data.template import UNLEARNED, Turns

_ANSWERS = {
    "assistant", "gpt", "chatgpt", "model", "bot", "ai", "function_call", "tool_call",
}  # fmt: skip
_ASKS = {
    "user", "human", "prompter", "system", "developer", "tool", "function", "observation",
    "tool_response", "ipython",
}  # fmt: skip
_SYSTEM = ("system", "system_prompt", "system_message", "systemInstruction")
_EMPTY = "an instruction or answer is empty"


class NoRecord(Exception):
    """What is wrong with a record, in words."""


def read_messages(messages: Any) -> Turns:
    """The turns of a list of messages; NoRecord when there are none to learn from."""
    if not isinstance(messages, list):
        raise NoRecord("no list of messages")
    turns: List[Tuple[str, ...]] = []
    asked: List[str] = []
    for message in messages:
        role, text = _read(message)
        if role in _ASKS:
            asked.append(text)
            continue
        if not text.strip():
            raise NoRecord(_EMPTY)
        question = joined(asked)
        heed = () if is_learned(message) and (question or turns) else (UNLEARNED,)
        if question or not turns:
            turns.append((question, text, *heed))
        elif turns[-1][2:] == heed:
            turns[-1] = (turns[-1][0], joined([turns[-1][1], text]), *heed)
        else:
            raise NoRecord("of answers in a row only one is to be learned")
        asked = []
    if not turns:
        raise NoRecord("no answer among its messages")
    if all(len(turn) > 2 for turn in turns):
        raise NoRecord("no answer is to be learned" if turns[-1][0] else _EMPTY)
    return tuple(turns)


def add_context(turns: Turns, value: Dict[str, Any]) -> Turns:
    """The turns, with what a record says beside them: history, system and tools."""
    system = next((value[key] for key in _SYSTEM if value.get(key)), "")
    tools = value.get("tools") or value.get("functions") or []
    if isinstance(tools, str):
        with suppress(ValueError):
            tools = json.loads(tools)
    if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools):
        lines = [_json(tool.get("function", tool)) for tool in tools]
        tools = "\n".join(["Tools:"] * bool(lines) + lines)
    if not isinstance(tools, str):
        raise NoRecord("tools is no list of them")
    history = value.get("history") or []
    pairs = history if isinstance(history, list) else [history]
    if not all(isinstance(pair, list) and [*map(type, pair)] == [str, str] for pair in pairs):
        raise NoRecord("history is no list of pairs")
    found: List[Tuple[str, ...]] = [*map(tuple, pairs), *turns]
    found[0] = (joined([_text(system), tools, found[0][0]]), *found[0][1:])
    return tuple(found)


def joined(texts: List[str]) -> str:
    """What is said in a row, without the parts that say nothing."""
    return "\n\n".join(text for text in texts if text.strip())


def is_learned(value: Dict[str, Any]) -> bool:
    """Whether `weight` and `train`, of a message or record, want it learned."""
    learned = True
    for key in ("weight", "train", "training"):
        wanted = 1 if value.get(key) is None else value[key]
        if wanted not in (0, 1):
            raise NoRecord(f"its {key} is neither 0 nor 1")
        learned = learned and bool(wanted)
    return learned


def _read(message: Any) -> Tuple[str, str]:
    """(role, text) of a message."""
    if not isinstance(message, dict):
        raise NoRecord("a message is no object")
    role = message.get("role") or message.get("from")
    calls = message.get("tool_calls") or message.get("function_call") or []
    calls = [calls] if isinstance(calls, dict) else calls
    texts = (message.get(key) for key in ("content", "value", "parts"))
    content = next((text for text in texts if text is not None), None)
    if not isinstance(role, str) or not isinstance(calls, list) or (content is None and not calls):
        raise NoRecord("a message has no role or no text")
    if role.lower() not in _ANSWERS | _ASKS:
        raise NoRecord(f"the role {role[:40]!a} is unknown")
    said = [_text("" if content is None else content), *map(_call, calls)]
    return role.lower(), "\n".join(text for text in said if text)


def _text(content: Any) -> str:
    """A content, or the texts of its parts."""
    if isinstance(content, dict) and "parts" in content:
        content = content["parts"]
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise NoRecord("a message has no role or no text")
    texts: List[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type", "other") if isinstance(part, dict) else type(part).__name__
            raise NoRecord(f"a part of a message is no text: {str(kind)[:40]!a}")
        texts.append(text)
    return "\n".join(texts)


def _call(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or "name" not in function:
        raise NoRecord("a call of a tool has no name")
    arguments: Optional[Any] = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError):
            arguments = json.loads(arguments)
    return _json({"name": function["name"], "arguments": arguments})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
