"""The one reader of JSON: an object comes back, and all that may pass for one is a sentence."""

import os
import sys

import pytest

from minigpt.base.errors import CheckpointError, MinigptError
from minigpt.base.files import parse_object, read_object, write_json
from minigpt.data.template import load_template


def test_what_is_written_is_read(tmp_path):
    values = {
        "none": None,
        "text": "ä\u2028😀",
        "int": -(2**63),
        "floats": [1e-5, 0.1],
        "o": {"a": {}},
    }
    write_json(tmp_path / "x", values)
    assert read_object(tmp_path / "x") == values


def test_a_byte_order_mark_does_no_harm(tmp_path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf{}")
    assert read_object(tmp_path / "x") == {}


NONE = {
    "nothing": b"",
    "half of one": b'{"a": ',
    "a list": b"[]",
    "a number": b"1",
    "no UTF-8": b'{"a": "\xff"}',
    "UTF-16": "{}".encode("utf-16"),
    "deep lists": b'{"a": ' + b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "a long integer": b'{"a": ' + b"9" * 5000 + b"}",
    "a longer one": b'{"a": ' + b"9" * 3_000_000 + b"}",
    "two": b"{} {}",
    "too much": b'{"a": "' + b"x" * (1 << 24) + b'"}',
}


@pytest.mark.parametrize("data", NONE.values(), ids=NONE.keys())
def test_what_is_none_is_one_short_sentence(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_object(tmp_path / "x", CheckpointError, "get another")
    said = str(caught.value)
    assert str(tmp_path / "x") in said and said.endswith("; get another")
    assert len(said) < 300 and "\n" not in said
    with pytest.raises(ValueError):
        parse_object(data)


def directory(path):
    path.mkdir()


def pipe(path):
    os.mkfifo(str(path))


def endless(path):
    path.symlink_to("/dev/zero")


def dangling(path):
    path.symlink_to("nowhere")


def loop(path):
    path.symlink_to(path.name)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes by name there")
@pytest.mark.parametrize("make", [directory, pipe, endless, dangling, loop])
def test_only_a_file_is_opened(tmp_path, make):
    make(tmp_path / "template.json")
    with pytest.raises(MinigptError, match=r"template\.json"):
        read_object(tmp_path / "template.json")
    if make not in (dangling, loop):
        with pytest.raises(CheckpointError, match="it is no file"):
            load_template(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "a\ud800b", "no/such/folder"])
def test_a_name_no_file_can_have(tmp_path, name):
    with pytest.raises(MinigptError, match=r"is missing|cannot be read"):
        read_object(tmp_path / name)
