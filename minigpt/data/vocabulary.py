"""What vocab.json, merges.txt and the rules beside them say, read once and checked.

A token has an id, by vocab.json, and a rank, by the line of merges.txt that makes it: behind the
256 bytes, in GPT-2's order. In GPT-2 the two are one number; other vocabularies have their special
tokens first, or words in another order. Text becomes ranks, and these become ids.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Dict, Iterator, List, NamedTuple, Pattern, Tuple

from minigpt.base.errors import DataError
from minigpt.base.files import as_dataclass, parse_object
from minigpt.data.long_pieces import SPACES

EOS = "<|endoftext|>"
# Of OpenAI's encoder.json (vocab.json in checkpoints) and vocab.bpe (merges.txt), as pinned by
# tiktoken.
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
# What can be said of an added token, in the words of Hugging Face's tokenizer.json.
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")
_AGAIN = "get both files again from where the model came from"

Pair = Tuple[bytes, bytes]


class Words(NamedTuple):
    """The vocabulary. `by_rank`: of any two neighbours that together are a token, the merge is one
    of merges.txt, which is how tiktoken merges; else `pairs` have to say which are.
    """

    vocabulary: Dict[str, int]  # every token, as it is written in vocab.json -> its id
    ranks: Dict[bytes, int]  # the bytes of each that text can become -> its rank
    ids: List[int]  # of each rank
    pairs: Dict[Pair, int]  # the two parts of each merge -> its rank
    missing: bytes  # what is no token, and is left out of a text as by Hugging Face
    by_rank: bool


@lru_cache(maxsize=2)  # several parts of a command open the same one
def read_vocabulary(vocab_json: bytes, merges: bytes) -> Words:
    """The Words of the two files. DataError when they do not belong together, such as for a merge
    that makes no token, or a word that no merge makes.
    """
    try:
        vocabulary: Dict[str, int] = parse_object(vocab_json)
        if [*map(repr, sorted(vocabulary.values()))] != [*map(str, range(len(vocabulary)))]:
            raise ValueError(f"the ids are not 0 to {len(vocabulary) - 1}")
        names = _byte_characters()
        byte_of = {character: byte for byte, character in names.items()}
        ranks = {bytes([byte]): rank for rank, byte in enumerate(names)}
        ids = [vocabulary.get(character, 0) for character in names.values()]
        pairs: Dict[Pair, int] = {}
        for line in merges.decode("utf-8").splitlines():
            if line and not line.startswith("#version"):
                _add_merge(line, vocabulary, byte_of, ranks, ids, pairs)
        made = {*ids, *(vocabulary.get(character) for character in byte_of)}
        # A token that begins with a blank is a word, and not one that was added.
        lost = [t for t, i in vocabulary.items() if "\u0120" in t and i not in made]
        if lost:
            raise ValueError("no merge makes %.40a" % lost[0])
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"vocab.json or merges.txt cannot be read: {error}", _AGAIN) from None
    missing = bytes(byte for byte, character in names.items() if character not in vocabulary)
    known = hashlib.sha256(merges).hexdigest() == BPE_SHA256
    by_rank = not missing and len(pairs) + 256 == len(ranks)
    by_rank = by_rank and (known or all(_parts(a + b, ranks) == [a, b] for a, b in pairs))
    for byte in missing:
        del ranks[bytes([byte])]
    return Words(vocabulary, ranks, ids, pairs, missing, by_rank)


def _add_merge(
    line: str, vocabulary: Dict[str, int], byte_of: Dict[str, int], ranks: Dict[bytes, int],
    ids: List[int], pairs: Dict[Pair, int],
) -> None:  # fmt: skip
    left, _, right = line.partition(" ")
    if not all(part in vocabulary for part in (left, right, left + right)):
        raise ValueError("the merge %.40a is not one of three tokens" % line)
    try:
        pair = bytes(map(byte_of.__getitem__, left)), bytes(map(byte_of.__getitem__, right))
    except KeyError:
        raise ValueError("the merge %.40a is not of bytes" % line) from None
    if pair in pairs:
        raise ValueError("the merge %.40a comes twice" % line)
    pairs[pair] = len(ids)
    ranks.setdefault(pair[0] + pair[1], len(ids))
    ids.append(vocabulary[left + right])


def _parts(token: bytes, ranks: Dict[bytes, int]) -> List[bytes]:
    """What `token` is before its last merge, if always the token of lowest rank is made next. No
    text can bring two other parts of it together, since what is around does not change the order
    of merges inside.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:])]
        lowest = min(found)
        if lowest == len(ranks):
            break
        i = found.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _byte_characters() -> Dict[int, str]:
    """GPT-2 writes each byte as a printable character: itself where it is one, else one from
    U+0100 on. The order is that of the first 256 ids.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    codes = [*printable, *range(256, 256 + len(rest))]
    return dict(zip([*printable, *rest], map(chr, codes)))


@dataclass(frozen=True)
class Rules:
    """What a tokenizer has beside its words, by the names of tokens. As it stands here, and then
    it is not written, it is GPT-2's.
    """

    eos: str = EOS  # ends a document
    names: Dict[str, str] = field(default_factory=dict)  # bos_token and others, for the way back
    added: Dict[str, List[str]] = field(default_factory=dict)  # found in a text; their FLAGS
    prefix_space: bool = False  # whether text begins with a blank where there is none
    begin: List[str] = field(default_factory=list)  # put before a text
    end: List[str] = field(default_factory=list)  # and behind it

    def cut(self, text: str, normalized: bool = False) -> Iterator[Tuple[str, str]]:
        """(a text without added tokens, "") or ("", an added token), in turn; as in Hugging Face's
        tokenizers those of normalized text are looked for in what the others leave. GPT-2's own
        end of a text is not looked for: in a text it is text.
        """
        here = (t for t, f in self.added.items() if ("normalized" in f) == normalized and t != EOS)
        for part, token in self._cut(text, _any_of(tuple(here))):
            if token or normalized:
                yield part, token
            else:
                yield from self.cut(part, normalized=True)

    def _cut(self, text: str, pattern: Pattern[str]) -> Iterator[Tuple[str, str]]:
        done = 0
        for found in pattern.finditer(text):
            (start, stop), flags = found.span(), self.added[found[0]]
            around = text[max(0, start - 1) : start], text[stop : stop + 1]
            if "single_word" in flags and any(map(_in_word, around)):
                continue
            if "lstrip" in flags:
                start = max(done, len(text[:start].rstrip(SPACES)))
            if "rstrip" in flags:
                stop = len(text) - len(text[stop:].lstrip(SPACES))
            if done < start:
                yield text[done:start], ""
            yield "", found[0]
            done = stop
        if done < len(text):
            yield text[done:], ""


@lru_cache(maxsize=8)
def _any_of(tokens: Tuple[str, ...]) -> Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) if tokens else "(?!)")


def _in_word(character: str) -> bool:
    """What \\w is in Rust."""
    if not character:
        return False
    kind = unicodedata.category(character)
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or character in "\u200c\u200d"


def read_rules(rules: bytes, vocabulary: Dict[str, int]) -> Rules:
    """The Rules in a JSON object, GPT-2's if `rules` is empty; DataError for what is none of
    `vocabulary`.
    """
    try:
        read = as_dataclass(Rules, parse_object(rules) if rules else {})
        if not all(type(f) is list and {*f} <= {*FLAGS} for f in read.added.values()):
            raise ValueError("an added token is described in other words")
        for token in [read.eos, *read.names.values(), *read.added, *read.begin, *read.end]:
            if not token or type(token) is not str or token not in vocabulary:
                raise ValueError("%.40a is none of its tokens" % (token,))
        return read
    except ValueError as error:
        what = "the tokenizer's special tokens cannot be read"
        raise DataError(f"{what}: {error}", _AGAIN) from None
