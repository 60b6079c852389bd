"""Records, as the field writes them, to turns: what was asked and what was answered.

    instruction, input (optional), output      Alpaca, Evol-Instruct; with history and system
    prompt, completion      question, answer   and the like, as texts or as lists of messages
    messages, conversations, contents          lists of them:
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
from functools import partial
from typing import Any, Dict, List, Optional, Tuple, Union

from minigpt.data.template import UNLEARNED, Turns
from minigpt.data.values import names_of

Keys = Tuple[str, ...]  # of the instruction, of what may be added to it, of the answer

_FORMS: Tuple[Keys, ...] = (
    *(("instruction", "input", "context", a) for a in ("output", "response", "answer")),
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"),
    ("question", "response"), ("query", "response"), ("problem", "solution"), ("input", "output"),
)  # fmt: skip
_LISTS = ("messages", "conversations", "conversation", "contents")
_SYSTEM = ("system", "system_prompt", "system_message", "systemInstruction")
_LEARNED = ("weight", "train", "training")
# All keys that mean something.
KNOWN = {*_LISTS, *_SYSTEM, *_LEARNED, *(key for form in _FORMS for key in form),
         "tools", "functions", "history"}  # fmt: skip
_ANSWERS = {"assistant", "gpt", "chatgpt", "model", "bot", "ai", "function_call", "tool_call"}
_ASKS = {
    "user", "human", "prompter", "system", "developer", "tool", "function", "observation",
    "tool_response", "ipython",
}  # fmt: skip
_EMPTY = "an instruction or answer is empty"
_NO_TEXT = "a message has no role or no text"
_json = partial(json.dumps, ensure_ascii=False)


class NoRecord(Exception):
    """What is wrong with a record, in words."""


def form_of(value: Dict[str, Any]) -> Optional[Keys]:
    """The keys that make `value` a record, as far as can be told from their names."""
    for name in _LISTS:
        if isinstance(value.get(name), list):
            return (name,)
    return next((form for form in _FORMS if form[0] in value and form[-1] in value), None)


def recognise(value: Any, keys: Optional[Keys] = None) -> Union[Turns, str]:
    """The turns of a record, or in words what is wrong with it."""
    if not isinstance(value, dict):
        return "no object with keys"
    form = keys or form_of(value)
    if form is None:
        return f"no instruction and answer among {names_of(value)}"
    try:
        turns = _messages(value.get(form[0])) if len(form) == 1 else _pair(value, form)
        if keys is not None:
            return turns
        return _add_context(turns, value) if _is_learned(value) else "it is not to be learned"
    except NoRecord as reason:
        return str(reason)


def _pair(value: Dict[str, Any], keys: Keys) -> Turns:
    """All but the last of `keys` ask; those between may be missing."""
    before, after = value.get(keys[0]), value.get(keys[-1])
    if isinstance(before, list) or isinstance(after, list):
        asked = before if isinstance(before, list) else [{"role": "user", "content": before}]
        answer = after if isinstance(after, list) else [{"role": "assistant", "content": after}]
        context = [{**m, "weight": 0} if isinstance(m, dict) else m for m in asked]
        return _messages([*context, *answer])
    texts = []
    for key in keys:
        needed = key in (keys[0], keys[-1])
        if needed and key not in value:
            raise NoRecord(f"no {key} among {names_of(value)}")
        text = "" if value.get(key) is None else value[key]
        if not isinstance(text, str):
            raise NoRecord(f"{key} is no text")
        if needed and not text.strip():
            raise NoRecord(f"{key} is empty")
        texts.append(text)
    return ((_joined(*texts[:-1]), texts[-1]),)


def _messages(messages: Any) -> Turns:
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
        question = _joined(*asked)
        heed = () if _is_learned(message) and (question or turns) else (UNLEARNED,)
        if question or not turns:
            turns.append((question, text, *heed))
        elif turns[-1][2:] == heed:
            turns[-1] = (turns[-1][0], _joined(turns[-1][1], text), *heed)
        else:
            raise NoRecord("of answers in a row only one is to be learned")
        asked = []
    if not turns:
        raise NoRecord("no answer among its messages")
    if all(len(turn) > 2 for turn in turns):
        raise NoRecord("no answer is to be learned" if turns[-1][0] else _EMPTY)
    return tuple(turns)


def _read(message: Any) -> Tuple[str, str]:
    """(role, text) of a message."""
    if not isinstance(message, dict):
        raise NoRecord("a message is no object")
    role = message.get("role") or message.get("from")
    calls = message.get("tool_calls") or message.get("function_call") or []
    calls = [calls] if isinstance(calls, dict) else calls
    texts = (message.get(key) for key in ("content", "value", "parts"))
    content = next((text for text in texts if text is not None), "" if calls else None)
    if not isinstance(role, str) or not isinstance(calls, list):
        raise NoRecord(_NO_TEXT)
    if role.lower() not in _ANSWERS | _ASKS:
        raise NoRecord(f"the role {role[:40]!a} is unknown")
    said = [_text(content), *map(_call, calls)]
    return role.lower(), "\n".join(text for text in said if text)


def _text(content: Any) -> str:
    """A content, or the texts of its parts."""
    if isinstance(content, dict) and "parts" in content:
        content = content["parts"]
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise NoRecord(_NO_TEXT)
    return "\n".join(map(_part, content))


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        kind = part.get("type", "other") if isinstance(part, dict) else type(part).__name__
        raise NoRecord(f"a part of a message is no text: {str(kind)[:40]!a}")
    return text


def _call(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or "name" not in function:
        raise NoRecord("a call of a tool has no name")
    return _json({"name": function["name"], "arguments": _parsed(function.get("arguments"))})


def _is_learned(value: Dict[str, Any]) -> bool:
    """Whether `weight` and `train`, of a message or record, want it learned."""
    wanted = {key: value[key] for key in _LEARNED if value.get(key) is not None}
    for key in wanted:
        if wanted[key] not in (0, 1):
            raise NoRecord(f"its {key} is neither 0 nor 1")
    return all(wanted.values())


def _add_context(turns: Turns, value: Dict[str, Any]) -> Turns:
    """The turns, with what a record says beside them: history, system and tools."""
    system = next((value[key] for key in _SYSTEM if value.get(key)), "")
    tools = _parsed(value.get("tools") or value.get("functions") or "")
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
    found[0] = (_joined(_text(system), tools, found[0][0]), *found[0][1:])
    return tuple(found)


def _joined(*texts: str) -> str:
    """What is said in a row, without the parts that say nothing."""
    return "\n\n".join(text for text in texts if text.strip())


def _parsed(value: Any) -> Any:
    """What a text says as JSON, if it is that."""
    with suppress(ValueError, TypeError):
        return json.loads(value)
    return value
