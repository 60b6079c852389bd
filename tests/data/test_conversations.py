"""Conversations as the field writes them: what becomes of them, and the true reason where nothing
does.
"""

import json

import pytest

from minigpt.data.packing import fit
from minigpt.data.records import LeftOut, Record, read_records, recognise, render
from minigpt.data.template import TEMPLATES, UNLEARNED
from minigpt.data.tokenizer import load_tokenizer

BYTES = load_tokenizer("bytes")


def say(role, content, **more):
    return {"role": role, "content": content, **more}


ASK, ANSWER = say("user", "hi"), say("assistant", "yo")
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "record, turns",
    [
        # any order of roles, and their other names
        ({"messages": [say("assistant", "hello"), ASK, ANSWER]},
         [("", "hello", UNLEARNED), ("hi", "yo")]),
        ({"messages": [say("human", "q"), say("bot", "a"), say("prompter", "r"), say("ai", "b")]},
         [("q", "a"), ("r", "b")]),
        ({"messages": [ASK, ANSWER, say("assistant", "more")]}, [("hi", "yo\n\nmore")]),
        ({"messages": [say("developer", "d"), ASK, ASK, ANSWER]}, [("d\n\nhi\n\nhi", "yo")]),
        # what is to be learned
        ({"messages": [ASK, {**ANSWER, "weight": 0}, say("user", "q"), {**ANSWER, "weight": 1}]},
         [("hi", "yo", UNLEARNED), ("q", "yo")]),
        ({"messages": [ASK, {**ANSWER, "train": False}, say("user", "q"),
                       {**ANSWER, "train": None}]},
         [("hi", "yo", UNLEARNED), ("q", "yo")]),
        # content in parts
        ({"messages": [say("user", [{"type": "text", "text": "a"}, "b"]), ANSWER]},
         [("a\nb", "yo")]),
        ({"contents": [{"role": "user", "parts": [{"text": "q"}]},
                       {"role": "model", "parts": [{"text": "a"}]}],
          "systemInstruction": {"parts": [{"text": "S"}]}}, [("S\n\nq", "a")]),
        # tools
        ({"messages": [ASK, say("assistant", None, tool_calls=[CALL]), say("tool", "3"), ANSWER],
          "tools": [TOOL]},
         [('Tools:\n{"name": "f"}\n\nhi', '{"name": "f", "arguments": {"x": 1}}'), ("3", "yo")]),
        ({"messages": [ASK, say("assistant", None, function_call=CALL["function"])],
          "functions": [TOOL["function"]]},
         [('Tools:\n{"name": "f"}\n\nhi', '{"name": "f", "arguments": {"x": 1}}')]),
        ({"conversations": [{"from": "human", "value": "q"},
                            {"from": "function_call", "value": "{}"},
                            {"from": "observation", "value": "o"}, {"from": "gpt", "value": "a"}],
          "system": "S", "tools": '[{"name": "f"}]'},
         [('S\n\nTools:\n{"name": "f"}\n\nq', "{}"), ("o", "a")]),
        # TRL's prompt and completion
        ({"prompt": [ASK], "completion": [ANSWER]}, [("hi", "yo")]),
        ({"prompt": [say("system", "s"), ASK, ANSWER, say("user", "q")],
          "completion": [say("assistant", "a")]}, [("s\n\nhi", "yo", UNLEARNED), ("q", "a")]),
        ({"prompt": "p", "completion": [ANSWER]}, [("p", "yo")]),
        # beside instruction and output
        ({"instruction": "i", "input": "n", "output": "o", "system": "S", "history": [["q", "a"]]},
         [("S\n\nq", "a"), ("i\n\nn", "o")]),
        ({"instruction": "i", "output": "o", "system": None, "history": [], "tools": ""},
         [("i", "o")]),
        ({"system_prompt": "S", "question": "q", "response": "r"}, [("S\n\nq", "r")]),
    ],
)  # fmt: skip
def test_what_a_record_says(record, turns):
    assert recognise(record) == tuple(turns)


@pytest.mark.parametrize(
    "record, reason",
    [
        ({"messages": [ASK, ANSWER], "weight": 0}, "it is not to be learned"),
        ({"messages": [ASK, ANSWER], "train": False}, "it is not to be learned"),
        ({"messages": [ASK, {**ANSWER, "weight": 0}]}, "no answer is to be learned"),
        ({"messages": [ASK, {**ANSWER, "weight": 0.5}]}, "its weight is neither 0 nor 1"),
        ({"messages": [ASK, {**ANSWER, "weight": 0}, ANSWER]}, "answers in a row only one"),
        ({"messages": [say("user", [{"type": "image_url"}]), ANSWER]}, "no text: 'image_url'"),
        ({"messages": [say("narrator", "x"), ANSWER]}, "the role 'narrator' is unknown"),
        ({"messages": [ASK, say("assistant", "", tool_calls=[5])]}, "a call of a tool has no name"),
        ({"messages": [ASK, ANSWER], "tools": 5}, "tools is no list"),
        ({"messages": [ASK, ANSWER], "system": 5}, "no text"),
        ({"instruction": "i", "output": "o", "history": 5}, "history is no list of pairs"),
        ({"instruction": "i", "output": "o", "history": [["q"]]}, "history is no list of pairs"),
    ],
)
def test_why_a_record_is_left_out(record, reason):
    assert reason in recognise(record)


def test_an_answer_that_is_not_to_be_learned_is_read_and_not_learned():
    turns = (("q", "one", UNLEARNED), ("r", "two"))
    template = TEMPLATES["instruct"]
    ids, learned = template.render(BYTES, turns)
    assert ids == template.render(BYTES, [turn[:2] for turn in turns])[0]
    assert bytes(i for i, l in zip(ids, learned) if l and i < 256) == b"two"
    record = render(Record("", "", turns), template, BYTES)
    example = fit(record, template, BYTES.eos_id, 100)
    assert bytes(example.targets[(example.targets >= 0) & (example.targets < 256)]) != b""
    assert sum(example.targets >= 0) == len("two") + 1


def test_a_template_that_learns_all_leaves_such_a_record_out(tmp_path):
    path = tmp_path / "x.jsonl"
    records = [
        {"messages": [ASK, {**ANSWER, "weight": 0}, ASK, ANSWER]},
        {"messages": [ASK, ANSWER]},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    left_out = LeftOut()
    assert len(list(read_records(str(path), None, left_out, whole=True))) == 1
    assert "this template would learn an answer" in left_out.lines()[0]
    assert len(list(read_records(str(path), None, LeftOut()))) == 2
