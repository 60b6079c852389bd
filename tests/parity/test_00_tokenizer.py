"""ids = merge(bytes(words(text)));  text = decode(ids)

Byte-level BPE (Sennrich et al. 2016, Radford et al. 2019): GPT-2's pattern cuts the text into
words, each word begins as its bytes, and the pair of neighbours whose merge was learned first is
merged, again and again.
"""

import re

import pytest

from minigpt import load_tokenizer
from tests.helpers.reference import assert_same
from tests.helpers.runs import ROOT

AWKWARD = [
    "", " ", "\n", " \t\n  x", "def f(x):\n\treturn  x", "it's we'll I'D", "naïve café \u0301",
    "한국어 문장", "日本語。",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 family", "1234567890 3.14",
    "<|endoftext|>", "\x00\x1f\u200b\ufeff", "a" * 50, "  leading", "trailing  ",
    "\u3000wide\u00a0blank", "\r\n\r\n", "&&||!==", "_snake_case__",
]  # fmt: skip


def by_the_formula(word, ranks):
    """The merges of one word, found by looking at every pair every time."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 1:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:])]
        if min(pairs) == len(ranks):
            break
        place = pairs.index(min(pairs))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [ranks[part] for part in parts]


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer("gpt2")


@pytest.mark.parametrize("text", AWKWARD)
@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_decoding_gives_the_text_back(name, text):
    tokenizer = load_tokenizer(name)
    assert_same(tokenizer.decode(tokenizer.encode(text)), text)


def test_equals_the_formula(gpt2):
    """On the words of a file of this project, found by a pattern that knows ASCII only."""
    ranks = {gpt2.token_bytes(i): i for i in range(gpt2.vocab_size) if gpt2.token_bytes(i)}
    text = (
        (ROOT / "minigpt" / "model" / "attention.py").read_text().encode("ascii", "ignore").decode()
    )
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?[a-zA-Z]+| ?[0-9]+| ?[^\sa-zA-Z0-9]+|\s+(?!\S)|\s+"
    words = [match.group().encode() for match in re.finditer(pattern, text)]
    expected = [token for word in words for token in by_the_formula(word, ranks)]
    assert len(expected) > 1000
    assert_same(gpt2.encode(text), expected)


@pytest.mark.oracle
def test_equals_theirs(gpt2, tmp_path):
    transformers = pytest.importorskip("transformers")
    gpt2.save(tmp_path)
    files = str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    theirs = transformers.GPT2TokenizerFast(*files, split_special_tokens=True)
    for text in AWKWARD:
        assert_same(gpt2.encode(text), theirs(text)["input_ids"], text)
