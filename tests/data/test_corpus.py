"""Sources: what is read, how it is cut and split, and what is said of broken ones."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.base.errors import DataError
from minigpt.data import corpus
from minigpt.data.corpus import TRAIN, VALIDATION, find_source, validation_documents
from minigpt.data.tokenizer import load_tokenizer


def texts(source, split=None):
    return [p.text for p in source.pieces() if split is None or p.split == split]


def test_the_standard_library_without_its_tests():
    source = find_source("stdlib")
    names = {file.path.name for file in source.files}
    assert {"argparse.py", "typing.py", "decoder.py"} <= names
    assert not any(
        {"test", "tests", "site-packages"} & set(f.path.parts[-3:]) for f in source.files
    )
    assert source.size() > 8_000_000
    sizes = {s: sum(file.size for file, x in zip(source.files, source.splits) if x == s)
             for s in (TRAIN, VALIDATION)}  # fmt: skip
    assert 0.005 < sizes[VALIDATION] / sizes[TRAIN] < 0.1


def test_every_file_of_the_standard_library_can_be_read():
    source = find_source("stdlib")
    assert sum(piece.ends_document for piece in source.pieces()) == len(source.files)


def test_the_held_out_documents_are_those_of_the_split():
    source = find_source("stdlib")
    documents = validation_documents("stdlib", 10**9)
    assert documents == [text.encode() for text in texts(source, VALIDATION)]


def test_a_directory_is_read_in_order_without_hidden_parts(tmp_path):
    for name in ("b.py", "a.txt", "sub/c.py", ".hidden/d.py", "e.md", "__pycache__/f.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("# %s\n" % name)
    found = [f.path.relative_to(tmp_path).as_posix() for f in find_source(str(tmp_path)).files]
    assert found == ["a.txt", "b.py", "sub/c.py"]


def test_a_split_does_not_change_when_files_are_added(tmp_path):
    def splits():
        source = find_source(str(tmp_path), 0.3)
        return {file.path.name: split for file, split in zip(source.files, source.splits)}

    for number in range(40):
        (tmp_path / ("%d.txt" % number)).write_text("x\n")
    before = splits()
    assert set(before.values()) == {TRAIN, VALIDATION}
    for number in range(40, 60):
        (tmp_path / ("%d.txt" % number)).write_text("x\n")
    after = splits()
    changed = [name for name, split in before.items() if after[name] != split]
    assert len(changed) == 0


def test_two_files_are_one_of_each(tmp_path):
    for name in "ab":
        (tmp_path / (name + ".txt")).write_text("text\n")
    assert sorted(find_source(str(tmp_path)).splits) == [TRAIN, VALIDATION]


def test_the_end_of_a_single_text_is_held_out_from_a_line_on(tmp_path):
    lines = ["line %d\n" % i for i in range(1000)]
    (tmp_path / "x.txt").write_text("".join(lines))
    source = find_source(str(tmp_path / "x.txt"), 0.1)
    train, validation = "".join(texts(source, TRAIN)), "".join(texts(source, VALIDATION))
    assert train + validation == "".join(lines)
    assert train.endswith("\n") and len(validation) / len(train + validation) == pytest.approx(
        0.1, abs=0.01
    )


def test_jsonl_records_are_documents(tmp_path):
    records = [{"text": "one"}, {"content": "two"}, {"text": "three", "id": 3}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    pieces = list(find_source(str(tmp_path / "x.jsonl")).pieces())
    assert [p.text for p in pieces] == ["one", "two", "three"]
    assert all(p.ends_document for p in pieces)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', "x.jsonl:2: no JSON"),
        (
            "x.jsonl",
            b'{"text": "a"}\n{"prompt": 1, "answer": 2}\n',
            "x.jsonl:2: no text or content among its keys: answer, prompt",
        ),
        ("x.jsonl", b'{"text": "a"}\n' + b"[" * 100_000, "x.jsonl:2: no JSON"),
        ("x.jsonl", b"[1]\n", "its keys: none"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "x.jsonl:2: not UTF-8"),
        ("x.txt", b"fine\nfine\n\xff\xfe\n", "x.txt:3: not utf-8"),
        ("x.py", b"# coding: nonsense\n", "unknown encoding"),
        ("x.txt", b"", "has no text"),
        ("x.bin", b"data", "is no .py, .txt, .jsonl, .json, .parquet file; if it is text"),
    ],
)
def test_a_broken_source_is_one_sentence_with_file_and_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(find_source(str(tmp_path / name)).pieces())
    assert words in str(caught.value) and name in str(caught.value) and caught.value.fix


def test_a_missing_or_empty_place_is_one_sentence(tmp_path):
    for name in ("none.txt", "."):
        with pytest.raises(DataError):
            find_source(str(tmp_path / name))


def test_a_python_file_is_read_in_its_own_encoding(tmp_path):
    (tmp_path / "x.py").write_bytes(b"# coding: latin-1\nname = '\xe9'\n")
    assert "é" in "".join(texts(find_source(str(tmp_path / "x.py"))))


GPT2 = load_tokenizer("gpt2")
WORDS = st.sampled_from(["foo", " ", "\n", "\n\n", "  \n", "\t", "x1", "'s", "\r\n", "é", "."])


@given(st.lists(WORDS, max_size=60).map("".join))
@settings(deadline=None)
def test_pieces_tokenize_as_the_whole_does(text):
    """Wherever the text may be cut, no token reaches across."""
    places = [match.start() for match in corpus._CUT.finditer(text)]
    bounds = [0, *places, len(text)]
    parts = [GPT2.encode(text[a:b]) for a, b in zip(bounds, bounds[1:])]
    assert [token for part in parts for token in part] == GPT2.encode(text)


def test_a_long_text_is_cut_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_PIECE", 1000)
    monkeypatch.setattr(corpus, "_LONGEST", 4000)
    text = "".join("value_%d = %d\n" % (i, i) for i in range(2000)) + "y" * 10_000 + "\nend\n"
    (tmp_path / "x.txt").write_text(text)
    pieces = texts(find_source(str(tmp_path / "x.txt")))
    assert "".join(pieces) == text
    assert len(pieces) > 20 and max(map(len, pieces)) <= 5000
