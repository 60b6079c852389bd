"""Records: every form that is recognised, and what is said of those that are not."""

import json
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.base.errors import DataError, UsageError
from minigpt.data.datasets import open_datasets
from minigpt.data.records import LeftOut, holds_records, parse_keys, read_records, recognise
from minigpt.data.tokenizer import load_tokenizer

BYTES = load_tokenizer("bytes")


def said(role, content, names=("role", "content")):
    return dict(zip(names, (role, content)))


def shared(role, content):
    return said(role, content, ("from", "value"))


@pytest.mark.parametrize(
    "value, turns",
    [
        ({"instruction": "i", "output": "o"}, [("i", "o")]),
        ({"instruction": "i", "input": "n", "output": "o"}, [("i\n\nn", "o")]),
        ({"instruction": "i", "input": "", "output": "o"}, [("i", "o")]),
        ({"instruction": "i", "input": None, "output": "o"}, [("i", "o")]),
        ({"instruction": "i", "context": "c", "response": "r", "category": 1}, [("i\n\nc", "r")]),
        ({"instruction": "i", "output": "o", "text": "all", "prompt": "of it"}, [("i", "o")]),
        ({"prompt": "p", "completion": "c"}, [("p", "c")]),
        ({"question": "q", "answer": "a", "input": "no part of it"}, [("q", "a")]),
        ({"messages": [said("user", "u"), said("assistant", "a")]}, [("u", "a")]),
        ({"messages": None, "prompt": "p", "response": "r"}, [("p", "r")]),
        (
            {"messages": [said("system", "s"), said("User", "u"), said("Assistant", "a"),
                          said("user", "v"), said("assistant", "b"), said("user", "unanswered")]},
            [("s\n\nu", "a"), ("v", "b")],
        ),
        (
            {"id": 1, "conversations": [shared("human", "h"), shared("gpt", "g")]},
            [("h", "g")],
        ),
        ({"messages": [said("system", ""), said("user", "u"), said("assistant", "a")]},
         [("u", "a")]),
        ({"instruction": " i\n", "output": "\n  kept as it is \n"},
         [(" i\n", "\n  kept as it is \n")]),
    ],
)  # fmt: skip
def test_forms_that_are_recognised(value, turns):
    assert recognise(value) == tuple(turns)


@pytest.mark.parametrize(
    "value, reason",
    [
        ([1], "no object with keys"),
        (None, "no object with keys"),
        ({}, "no instruction and answer among its keys: none"),
        ({"b": 1, "a": 2}, "among its keys: a, b"),
        ({"x" * 500: 1}, "..."),
        ({"instruction": "i", "output": None}, "output is empty"),
        ({"instruction": None, "output": "o"}, "instruction is empty"),
        ({"instruction": "i", "output": " \n"}, "output is empty"),
        ({"instruction": "i", "output": 3}, "output is no text"),
        ({"instruction": "i", "input": 5, "output": "o"}, "input is no text"),
        ({"instruction": "i", "input": 0, "output": "o"}, "input is no text"),
        ({"messages": []}, "no answer among its messages"),
        ({"messages": [said("user", "u")]}, "no answer among its messages"),
        ({"messages": ["u", "a"]}, "a message is no object"),
        ({"messages": [said("user", "u"), said("assistant", None)]}, "no role or no text"),
        ({"messages": [{"text": "u"}]}, "no role or no text"),
        ({"messages": [said("assistant", "first")]}, "an instruction or answer is empty"),
        ({"messages": [said("user", "u"), said("assistant", "")]}, "or answer is empty"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(value, reason):
    assert reason in recognise(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["instruction", "input", "output", "messages", "role", "content"]),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_anything_is_a_record_with_text_in_it_or_a_reason(value):
    found = recognise(value)
    assert found and (isinstance(found, str) or all(a.strip() and b.strip() for a, b in found))


MAPPED = {
    "q": "Q",
    "more": "M",
    "a": "A",
    "input": "I",
    "talk": [said("user", "u"), said("assistant", "a")],
}


class TestKeys:
    @pytest.mark.parametrize(
        "text, turns",
        [("q,a", [("Q", "A")]), ("q, more ,a", [("Q\n\nM", "A")]), ("q,none,a", [("Q", "A")]),
         ("talk", [("u", "a")])],
    )  # fmt: skip
    def test_named_keys_and_no_others(self, text, turns):
        assert recognise(MAPPED, parse_keys(text)) == tuple(turns)

    def test_they_win_over_what_would_be_recognised(self):
        record = {"instruction": "i", "output": "o", "a": "A", "b": "B"}
        assert recognise(record, ("a", "b")) == (("A", "B"),)

    @pytest.mark.parametrize("keys, reason", [(("x", "a"), "no x among its keys: a, input, more"),
                                              (("q", "y"), "no y among"),
                                              (("z",), "no list of messages")])  # fmt: skip
    def test_keys_that_are_not_there_are_named_beside_those_that_are(self, keys, reason):
        assert reason in recognise(MAPPED, keys)

    @pytest.mark.parametrize("text", ["", ",", "a,", ",b", "a,,b"])
    def test_a_list_with_holes_is_refused(self, text):
        with pytest.raises(UsageError, match="--record-keys"):
            parse_keys(text)

    def test_for_text_they_are_refused(self, tmp_path):
        (tmp_path / "x.txt").write_text("text\n")
        with pytest.raises(UsageError, match="is no file of them; leave it out"):
            open_datasets(str(tmp_path / "x.txt"), BYTES, 8, record_keys="a,b")


def read(path, keys=None, strict=False):
    left_out = LeftOut(strict)
    return list(read_records(str(path), keys, left_out)), left_out.lines()


def pair(n):
    return {"instruction": "i%d" % n, "output": "o%d" % n}


def asked(records):
    return [record.turns[0][0] for record in records]


def test_a_line_that_is_no_record_is_left_out_with_its_number(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [json.dumps(pair(1)).encode(), b"{", b"", b"\xff\xfe", b"[" * 100_000, b"null",
             json.dumps({"instruction": "", "output": "o"}).encode(), b"  ",
             json.dumps(pair(2)).encode()]  # fmt: skip
    path.write_bytes(b"\n".join(lines))
    records, notes = read(path)
    assert asked(records) == ["i1", "i2"] and records[1].where == "%s:9" % path
    assert notes == [
        "left out 2: no JSON (%s:2, %s:5)" % (path, path),
        "left out 1: not UTF-8: save it as that (%s:4)" % path,
        "left out 1: no object with keys (%s:6)" % path,
        "left out 1: instruction is empty (%s:7)" % path,
    ]


@pytest.mark.parametrize("number, line", [(2, "{"), (2, '{"instruction": "i", "output": ""}')])
def test_strict_stops_at_the_first_of_them(tmp_path, number, line):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(pair(1)) + "\n" + line + "\n")
    with pytest.raises(DataError, match="x.jsonl:%d: .*; mend it, or leave out --strict" % number):
        read(path, strict=True)


def test_strict_stops_at_one_that_is_too_long(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(pair(n)) + "\n" for n in (1, 2, 10**50)))
    assert "longer than --block-size" in open_datasets(str(path), BYTES, 40).notes[1]
    with pytest.raises(DataError, match=r"x\.jsonl:3: longer than --block-size 40"):
        open_datasets(str(path), BYTES, 40, strict=True)


@pytest.mark.parametrize("mark, newline", [("", "\n"), ("\ufeff", "\n"), ("\ufeff", "\r\n")])
def test_files_as_other_systems_write_them(tmp_path, mark, newline):
    lines = [json.dumps(pair(n), ensure_ascii=False) for n in (1, 2)]
    (tmp_path / "x.jsonl").write_bytes((mark + newline.join(lines) + newline).encode())
    assert asked(read(tmp_path / "x.jsonl")[0]) == ["i1", "i2"]
    text = json.dumps([pair(1), pair(2)], indent=1).replace("\n", newline)
    (tmp_path / "x.json").write_bytes((mark + text).encode())
    assert asked(read(tmp_path / "x.json")[0]) == ["i1", "i2"]


LINES = "\n".join(json.dumps(pair(n)) for n in (1, 2))


@pytest.mark.parametrize(
    "text, expected",
    [
        (json.dumps([pair(1), pair(2)]), ["i1", "i2"]),
        (LINES, ["i1", "i2"]),
        (json.dumps({"version": 1, "data": [pair(1), pair(2)]}), ["i1", "i2"]),
        (json.dumps(pair(1)), ["i1"]),
        (json.dumps({"messages": [said("user", "u"), said("assistant", "a")]}), ["u"]),
    ],
)
def test_shapes_of_a_json_file(tmp_path, text, expected):
    (tmp_path / "x.json").write_text(text)
    assert asked(read(tmp_path / "x.json")[0]) == expected


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("x.json", b'{"a":', "x.json is no JSON: .*line 1 column"),
        ("x.json", b"[" * 100_000, "x.json is no JSON"),
        ("x.json", b"\xff", "x.json is no JSON"),
        ("x.json", b"", "x.json is no JSON"),
        ("x.json", b"3", "x.json is not a list of records"),
        ("x.json", b"[]", "has no usable record; write instruction and output"),
        ("x.json", b'{"a": [1], "b": [2]}', "left out 1: no instruction and answer among its keys"),
        ("x.jsonl", b"", "x.jsonl has no usable record; write instruction and output"),
        ("x.jsonl", b"{\n[]\n", "no usable record; left out 1: no JSON .*; left out 1: no object"),
        ("x.jsonl", b'{"b": 1, "a": 2}\n', "among its keys: a, b .*--record-keys A,B"),
        ("x.parquet", b"", "x.parquet is no Parquet"),
        ("x.parquet", b"PAR1 and no more PAR1", "x.parquet is no Parquet|cannot be read"),
    ],
)
def test_a_file_without_records_is_one_sentence(tmp_path, name, content, words):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read(tmp_path / name)
    assert caught.value.fix and "\n" not in str(caught.value)


def test_keys_that_match_nothing_name_the_keys_there_are(tmp_path):
    (tmp_path / "x.jsonl").write_text(LINES)
    with pytest.raises(DataError, match="no foo among its keys: instruction, output"):
        read(tmp_path / "x.jsonl", ("foo", "bar"))


@pytest.mark.parametrize("name", ["none.jsonl", "none.json", "none.parquet"])
def test_a_missing_file_is_one_sentence(tmp_path, name):
    with pytest.raises(DataError, match="there is no file .*%s; name a file of records" % name):
        open_datasets(str(tmp_path / name), BYTES, 8)


@pytest.mark.parametrize("name, words", [
    ("stdlib-function", "there is no .*stdlib-function; name .* stdlib, .*stdlib-functions"),
    ("x.csv", "is no .py, .txt, .jsonl, .json, .parquet file; if it is text, give it a name that"),
    ("directory", r"directory/x\.parquet is no Parquet"),
    ("mixed", "mixed has too few documents.*left out 2: no text or content among its keys: instr"),
])  # fmt: skip
def test_what_is_neither_text_nor_records_is_one_sentence(tmp_path, monkeypatch, name, words):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if name == "directory":
        pytest.importorskip("pyarrow")
    (tmp_path / "x.csv").write_text("a,b\n")
    for place, file in (("directory", "x.parquet"), ("mixed", "x.jsonl")):
        (tmp_path / place).mkdir()
        (tmp_path / place / file).write_text(LINES)
    (tmp_path / "mixed" / "x.txt").write_text("")
    with pytest.raises(DataError, match=words):
        open_datasets(str(tmp_path / name), BYTES, 8)


def test_two_equal_records_are_no_two_splits(tmp_path):
    (tmp_path / "x.jsonl").write_text((json.dumps(pair(1)) + "\n") * 2)
    with pytest.raises(DataError, match="are usable"):
        open_datasets(str(tmp_path / "x.jsonl"), BYTES, 40)


def test_an_unknown_template_is_answered_by_the_nearest(tmp_path):
    (tmp_path / "x.jsonl").write_text(LINES)
    with pytest.raises(UsageError, match="--template is 'moia'; did you mean moai"):
        open_datasets(str(tmp_path / "x.jsonl"), BYTES, 40, template="moia")


@pytest.mark.parametrize(
    "name, content, records",
    [
        ("x.jsonl", '{"text": "t"}\n', False),
        ("x.jsonl", '{"content": "t", "id": 1}\n', False),
        ("x.jsonl", '{"text": "t", "instruction": "i", "output": "o"}\n', True),
        ("x.jsonl", '{"messages": [], "text": "t"}\n', True),
        ("x.jsonl", '\n\nbroken\n[1]\n{"text": "t"}\n', False),
        ("x.jsonl", 'broken\n{"instruction": "i", "output": "o"}\n', True),
        ("x.jsonl", '\ufeff{"text": "t"}\n', False),
        ("x.jsonl", '{"unknown": "t"}\n', True),
        ("x.txt", '{"instruction": "i", "output": "o"}\n', False),
        ("x.json", "", True),
        ("x.parquet", "", True),
    ],
)
def test_records_and_text_are_told_apart(tmp_path, name, content, records):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert holds_records(str(tmp_path / name)) is records


def test_a_directory_is_text_whatever_its_name(tmp_path):
    for name in ("a.json", "b.jsonl"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("text\n")
        assert not holds_records(str(tmp_path / name))


class TestParquet:
    @pytest.fixture()
    def write(self, tmp_path):
        pytest.importorskip("pyarrow")
        import pyarrow
        from pyarrow import parquet

        def write(rows):
            parquet.write_table(pyarrow.Table.from_pylist(rows), str(tmp_path / "x.parquet"))
            return tmp_path / "x.parquet"

        return write

    def test_rows(self, write):
        path = write([pair(n) for n in range(1500)] + [{"instruction": None, "output": "o"}])
        records, notes = read(path)
        assert asked(records) == ["i%d" % n for n in range(1500)]
        assert records[-1].where == "%s, row 1500" % path
        assert notes == ["left out 1: instruction is empty (%s, row 1501)" % path]

    def test_messages(self, write):
        path = write([{"messages": [said("user", "u"), said("assistant", "a")]}])
        assert read(path)[0][0].turns == (("u", "a"),)

    def test_the_same_records_as_from_json_lines(self, write, tmp_path):
        rows = [pair(n) for n in range(20)]
        (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
        first, second = (open_datasets(str(p), BYTES, 40) for p in
                         (write(rows), tmp_path / "x.jsonl"))  # fmt: skip
        assert first.train.fingerprint == second.train.fingerprint

    def test_damaged(self, write):
        path = write([pair(n) for n in range(1000)])
        data = bytearray(path.read_bytes())
        data[4:200] = b"\xff" * 196
        path.write_bytes(bytes(data))
        with pytest.raises(DataError, match=r"x\.parquet"):
            read(path)

    def test_without_pyarrow_the_command_that_gets_it(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        (tmp_path / "x.parquet").write_bytes(b"PAR1")
        with pytest.raises(UsageError, match="pip install pyarrow"):
            read(tmp_path / "x.parquet")


def test_the_report_stays_short():
    left_out = LeftOut()
    for number in range(1000):
        left_out.add("reason %d" % (number % 40), "line %d" % number)
        left_out.add("common", "line %d" % number)
    lines = left_out.lines()
    assert lines[0] == "left out 1,000: common (line 0, line 1, line 2, ...)"
    assert lines[-1] == "left out 825: other reasons" and len(lines) == 9


def test_a_large_file_is_not_held_in_memory(tmp_path):
    path = tmp_path / "x.jsonl"
    line = json.dumps({"instruction": "i", "output": "o" * 2000})
    path.write_text((line + "\n" + "broken\n") * 10_000)
    tracemalloc.start()
    left_out = LeftOut()
    count = sum(1 for _ in read_records(str(path), None, left_out))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 10_000 and path.stat().st_size > 20_000_000 and peak < 2_000_000
