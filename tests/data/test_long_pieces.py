"""Pieces too long for tiktoken: the same ids as everybody's, no panic, no square of the length."""

import random

import pytest

from minigpt.data import vocabulary
from minigpt.data.tokenizer import load_tokenizer
from minigpt.data.vocabulary import LONG, merge, pieces

GPT2 = load_tokenizer("gpt2")
SPACES = " \n\t\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u3000"
CHARACTERS = {
    "blanks": " ", "lines": "\n", "blank lines": " \n", "spaces": SPACES, "letters": "etaoin",
    "one letter": "x", "digits": "0123456789", "one sign": "=", "signs": "=-_'\"\x00\x1c\x1f",
    "letters and digits": "ab12", "signs and spaces": "-- \n", "Han": "日本語", "emoji": "🙂",
}  # fmt: skip
AROUND = [
    "",
    " ",
    "\n",
    "a",
    "1",
    "'",
    " '",
    "a'",
    "\n'",
    "_'",
    "''",
    " \n",
    "\n ",
    "\t",
    "'s",
    "é ",
]


def run(characters, length, seed=0):
    return "".join(random.Random(seed).choices(characters, k=length))


def everything():
    for number, characters in enumerate(CHARACTERS.values()):
        for before in AROUND:
            yield before + run(characters, LONG + number % 3, number) + AROUND[-number] + "end"


def expected(text):
    """What tiktoken says of lengths that it can do."""
    return GPT2._encoding.encode_ordinary(text)


@pytest.mark.parametrize("length", [1000, LONG - 1, LONG, LONG + 1, 5000])
@pytest.mark.parametrize("characters", CHARACTERS.values(), ids=CHARACTERS.keys())
def test_the_ids_are_tiktokens_around_the_length_that_is_cut(characters, length):
    for before, after in [("", ""), ("a", ""), ("  ", "b"), ("\n", " 1"), ("x'", "'s"), ("=", "=")]:
        text = before + run(characters, length) + after
        assert GPT2.encode(text) == expected(text), (before, after)


def test_the_ids_are_tiktokens_whatever_is_around():
    for text in everything():
        assert GPT2.encode(text) == expected(text), ascii(text[:9] + " ... " + text[-9:])


@pytest.mark.parametrize("word", ["s", "d", "m", "t", "ll", "ve", "re", "x", "l", "S"])
@pytest.mark.parametrize("before", ["", "a", "1", " ", "\n", "_", "=", "a'", "a's"])
def test_a_long_word_behind_an_apostrophe(word, before):
    text = before + "'" + word + "x" * LONG + "'s"
    assert GPT2.encode(text) == expected(text)


def test_any_mixture_of_long_and_short(monkeypatch):
    """Cut at 16, so that most of a short text is long pieces."""
    monkeypatch.setattr(vocabulary, "LONG", 16)
    monkeypatch.setattr(vocabulary, "_HALF", 8)
    pattern = vocabulary._HALF_RUN.pattern.replace(str(LONG // 2), "8")
    monkeypatch.setattr(vocabulary, "_HALF_RUN", vocabulary.re.compile(pattern))
    draw, kinds = random.Random(1), [" ", "\n", " \n\u3000", "ab", "sdmtlvre", "12", "=", "'", "_ "]
    longest = 0
    for _ in range(3000):
        text = "".join(
            run(draw.choice(kinds), draw.choice([1, 1, 2, 7, 15, 16, 17, 24, 40]), draw.random())
            for _ in range(draw.randint(1, 8))
        )
        assert GPT2.encode(text) == expected(text), ascii(text)
        assert "".join(piece for piece, _ in pieces(text)) == text
        longest += any(long for _, long in pieces(text))
    assert longest > 2000


@pytest.mark.oracle
def test_the_ids_are_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    GPT2.save(tmp_path)
    theirs = transformers.GPT2TokenizerFast(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )
    for text in everything():
        assert GPT2.encode(text) == theirs(text)["input_ids"], ascii(text[:9])


@pytest.mark.parametrize("characters", CHARACTERS.values(), ids=CHARACTERS.keys())
def test_a_long_run_of_anything_comes_back(characters, monkeypatch):
    """tiktoken panics on some of these, on others only where it is old, and there needs minutes: so
    it is to see none of them.
    """
    real, seen = GPT2._encoding.encode_ordinary, []

    def watched(text):
        seen.append(max(map(len, text.split())) if text.strip() else len(text))
        return real(text)

    size = 200_000 // len(characters[0].encode())
    text = "a " + run(characters, 10_000) * (size // 10_000) + " b"
    monkeypatch.setattr(GPT2._encoding, "encode_ordinary", watched)
    assert GPT2.decode(GPT2.encode(text)) == text
    assert max(seen) < LONG


def test_a_million_blanks_have_the_ids_that_the_pattern_gives():
    (blank,), (word,) = GPT2.encode(" "), GPT2.encode(" word")
    assert GPT2.encode(" " * 1_000_000 + "word") == [blank] * 999_999 + [word]
    assert GPT2.encode(" " * 1_000_000) == [blank] * 1_000_000


def test_merging_takes_the_lowest_rank_first_and_from_the_left():
    ranks = {bytes([i]): i for i in range(256)}
    ranks.update({b"bc": 256, b"ab": 257, b"aa": 258, b"aabc": 259, b"abc": 260})
    assert merge(b"", ranks) == []
    assert merge(b"abc", ranks) == [260]
    assert merge(b"aaa", ranks) == [258, 97]
    assert merge(b"aabcab", ranks) == [259, 257]


@pytest.mark.parametrize("text", ["", "a", "a b\n", " " * (LONG - 1)])
def test_a_text_without_any_is_left_whole(text):
    assert list(pieces(text)) == ([(text, False)] if text else [])
