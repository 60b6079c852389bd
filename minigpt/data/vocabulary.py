"""Byte-level BPE: what vocab.json, merges.txt and the rules beside them say, read once and checked,
and how the bytes of a piece of text are merged.

A token has an id, by vocab.json, and a rank, by the line of merges.txt that makes it: behind the
256 bytes, in GPT-2's order. In GPT-2 the two are one number; other vocabularies have their special
tokens first, or words in another order. Text becomes ranks, and these become ids.

tiktoken does that, but for pieces of thousands of letters, blanks or signs in a row: its regular
expressions run out of stack on a million of them, which is no Exception but a panic, and its older
versions need time that grows with the square of a piece. These are cut out and merged here.
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from array import array
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Dict, Iterator, List, NamedTuple, Optional, Pattern, Tuple

from minigpt.base.errors import DataError
from minigpt.base.files import as_dataclass, parse_object

EOS = "<|endoftext|>"
# Of OpenAI's encoder.json (vocab.json in checkpoints) and vocab.bpe (merges.txt), as in tiktoken.
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
# What can be said of an added token, in the words of Hugging Face's tokenizer.json.
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")
_AGAIN = "get both files again from where the model came from"

# GPT-2 writes each byte as a printable character: itself where it is one, else one from U+0100 on.
# The order is that of the first 256 ids.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = dict(zip(map(chr, [*_PRINTABLE, *range(256, 324)]), [*_PRINTABLE, *_OTHERS]))

LONG = 4096  # characters; below, tiktoken's square is small
_HALF = LONG // 2
# A long piece is letters and digits, or white space and signs, but for its first few characters:
# so one of the places that are tried has this.
_HALF_RUN = re.compile(r"[^\W_]{%d}|[\W_]{%d}" % (_HALF, _HALF))
# GPT-2's pattern, with one character for all letters (A), digits (0), white spaces (tab) and signs
# (!) that it does not tell apart, as `re` has no \p{L} and \p{N}.
_PATTERN = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[a-zA]+| ?0+| ?['!]+|[ \t]+(?![^ \t])|[ \t]+")
_TOLD_APART = " 'sdmtlver"
# What \s is in Unicode and in Rust; Python's has the separators U+001C to U+001F too.
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
SPACES += "".join(map(chr, range(0x2000, 0x200B)))

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

    def merged(self, piece: str) -> List[int]:
        """The ranks of a piece of text."""
        return merge(piece.encode().translate(None, self.missing), self.ranks, self.pairs)


def merge_lines(merges: bytes) -> List[str]:
    """The merges in a merges.txt: two tokens each, with a blank between them."""
    lines = merges.decode().splitlines()
    return [line for line in lines if line and not line.startswith("#version")]


@lru_cache(maxsize=2)  # several parts of a command open the same one
def read_vocabulary(vocab_json: bytes, merges: bytes) -> Words:
    """The Words of the two files; DataError when they do not belong together."""
    try:
        vocabulary: Dict[str, int] = parse_object(vocab_json)
        if [*map(repr, sorted(vocabulary.values()))] != [*map(str, range(len(vocabulary)))]:
            raise ValueError(f"the ids are not 0 to {len(vocabulary) - 1}")
        words = _words(vocabulary, merge_lines(merges))
        made = {*words.ids}
        for token, number in vocabulary.items():  # of which one with a blank was never added
            if "\u0120" in token and number not in made:
                raise ValueError("no merge makes %.40a" % token)
        return words
    except (ValueError, TypeError) as error:
        raise DataError(f"vocab.json or merges.txt cannot be read: {error}", _AGAIN) from None


def _words(vocabulary: Dict[str, int], merges: List[str]) -> Words:
    ids = [vocabulary.get(character, 0) for character in _BYTE_OF]
    by_byte = enumerate(_BYTE_OF.items())
    ranks = {bytes([byte]): rank for rank, (name, byte) in by_byte if name in vocabulary}
    missing = bytes(byte for name, byte in _BYTE_OF.items() if name not in vocabulary)
    pairs: Dict[Pair, int] = {}
    parts: Dict[bytes, Pair] = {}
    written = {name: bytes([byte]) for name, byte in _BYTE_OF.items()}
    by_rank = not missing
    for line in merges:
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise ValueError("the merge %.40a is not one of three tokens" % line)
        pair = written.get(left) or _as_bytes(left), written.get(right) or _as_bytes(right)
        if pair in pairs:
            raise ValueError("the merge %.40a comes twice" % line)
        made = written[left + right] = pair[0] + pair[1]
        # No text can bring two other parts of it together: what is around does not change the
        # order of merges inside.
        by_rank = by_rank and made not in ranks and _stay_two(*pair, ranks, parts)
        pairs[pair], parts[made] = len(ids), pair
        ranks.setdefault(made, len(ids))
        ids.append(vocabulary[left + right])
    return Words(vocabulary, ranks, ids, pairs, missing, by_rank)


def _stay_two(left: bytes, right: bytes, ranks: Dict[bytes, int], parts: Dict[bytes, Pair]) -> bool:
    """Whether the text of two tokens is merged by rank to these two. Walks back through the merges
    on both sides of their seam, the latest first, of one rank the right one: none goes across it
    before those that are still to be undone.
    """
    limit = len(ranks)
    while ranks.get(left + right, limit) >= limit:
        if len(left) == len(right) == 1:
            return True
        if ranks[left] > ranks[right]:
            limit, left = ranks[left], parts[left][1]
        else:
            limit, right = ranks[right] + 1, parts[right][0]
    return False


def _as_bytes(token: str) -> bytes:
    try:
        return bytes(map(_BYTE_OF.__getitem__, token))
    except KeyError:
        raise ValueError("the token %.40a is not of bytes" % token) from None


@lru_cache(maxsize=None)
def _kind(character: str) -> str:
    if character in _TOLD_APART:
        return character
    if character.isalnum():
        return "A" if character.isalpha() else "0"
    return "\t" if character in SPACES else "!"


def pieces(text: str, always: bool = False) -> Iterator[Tuple[str, bool]]:
    """`text` as it is, or, where it may have long pieces in it, or `always`, cut where GPT-2's
    pattern cuts it; with each part, whether it is a long piece.
    """
    long = always or any(_HALF_RUN.match(text, i) for i in range(0, len(text), _HALF))
    if text and not long:
        yield text, False
        return
    for found in _PATTERN.finditer("".join(map(_kind, text))):
        yield text[found.start() : found.end()], found.end() - found.start() >= LONG


def merge(
    piece: bytes, ranks: Dict[bytes, int], pairs: Optional[Dict[Pair, int]] = None
) -> List[int]:
    """The ranks of one piece: of all pairs of neighbours that make a token (or are in `pairs`), the
    one of the lowest rank is merged, of several the leftmost, until there are none. Time: n log n
    of the length.
    """
    end = len(piece)
    after = array("i", range(1, end + 1))  # where the token that begins here ends; `end` if none
    before = array("i", range(-1, end))  # where the token ahead of the one here begins

    def rank_of(start: int) -> Optional[int]:
        """Of the token that begins here and the next one together."""
        middle = after[start]
        if middle == end:
            return None
        if pairs is None:
            return ranks.get(piece[start : after[middle]])
        return pairs.get((piece[start:middle], piece[middle : after[middle]]))

    found = ((rank_of(start), start) for start in range(end))
    waiting = [rank << 40 | start for rank, start in found if rank is not None]  # less than pairs
    heapq.heapify(waiting)
    while waiting:
        rank, start = divmod(heapq.heappop(waiting), 1 << 40)
        if rank_of(start) != rank:
            continue  # one of the two is part of another token by now
        middle = after[start]
        after[start], after[middle] = after[middle], end
        before[after[start]] = start
        for place in (start, before[start]):
            rank_here = rank_of(place) if place >= 0 else None
            if rank_here is not None:
                heapq.heappush(waiting, rank_here << 40 | place)
    ids, start = [], 0
    while start < end:
        ids.append(ranks[piece[start : after[start]]])
        start = after[start]
    return ids


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

    def cut(self, text: str) -> Iterator[Tuple[str, str]]:
        """(a text without added tokens, "") or ("", an added token), in turn; as in Hugging Face's
        tokenizers those of normalized text are looked for in what the others leave. GPT-2's own
        end of a text is not looked for: in a text it is text.
        """
        for part, token in self._cut(text, normalized=False):
            yield from [(part, token)] if token else self._cut(part, normalized=True)

    def _cut(self, text: str, normalized: bool) -> Iterator[Tuple[str, str]]:
        here = (t for t, f in self.added.items() if ("normalized" in f) == normalized and t != EOS)
        done = 0
        for found in _any_of(tuple(here)).finditer(text):
            (start, stop), flags = found.span(), self.added[found[0]]
            around = text[start - 1 : start], text[stop : stop + 1]
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
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _in_word(character: str) -> bool:
    """What \\w is in Rust."""
    kind = unicodedata.category(character) if character else ""
    return kind[:1] in ("L", "M") or kind in ("Nd", "Nl", "Pc") or character in ("\u200c", "\u200d")


def read_rules(rules: bytes, vocabulary: Dict[str, int]) -> Rules:
    """The Rules in a JSON object, GPT-2's if `rules` is empty; DataError for what is none of
    `vocabulary`.
    """
    try:
        read = as_dataclass(Rules, parse_object(rules) if rules else {})
        if not all(type(f) is list and {*f} <= {*FLAGS} for f in read.added.values()):
            raise ValueError("an added token is described in other words")
        for token in [read.eos, *read.names.values(), *read.added, *read.begin, *read.end]:
            if type(token) is not str or token not in vocabulary or not token:
                raise ValueError("%.40a is none of its tokens" % (token,))
        return read
    except ValueError as error:
        raise DataError(f"the special tokens cannot be read: {error}", _AGAIN) from None
