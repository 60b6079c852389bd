"""Pieces of text that are too long for tiktoken: thousands of letters, blanks or signs in a row.

Its regular expressions run out of stack on a million of them, which is no Exception but a panic,
and its older versions need time that grows with the square of a piece. So such pieces are cut out
first, where GPT-2's pattern would end them, and merged here. The ids are the same.
"""

from __future__ import annotations

import heapq
import re
from array import array
from itertools import groupby
from typing import Dict, Iterator, List, Match, Tuple

import numpy as np

LONG = 4096  # characters; below, tiktoken's square is small
_HALF = LONG // 2

# What \s is in Unicode and in Rust; Python's has the separators U+001C to U+001F too.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_IS_SPACE = re.compile("[%s]" % _SPACE)
# Letters and digits, or white space and signs.
_RUN = re.compile(r"(?<![^\W_])[^\W_]{%d,}|(?<![\W_])[\W_]{%d,}" % (LONG, LONG))
_HALF_RUN = re.compile(r"[^\W_]{%d}|[\W_]{%d}" % (_HALF, _HALF))
# An apostrophe that begins a piece, so that it takes the first letters of a run.
_CONTRACTION = re.compile(r"(?<![ _])(?<![^\w%s])'(?:[sdmt]|ll|ve|re)" % _SPACE)


def parts(text: str) -> Iterator[Tuple[str, bool]]:
    """`text` in parts, and which of them are long pieces. GPT-2's pattern makes of every other
    part alone what it makes of it in `text`.
    """
    place = 0
    for start, end in _long_pieces(text):
        # Only white space at the end of a text is one piece with its last character, which is
        # why that goes alone, but for a blank, which is in the long piece.
        alone = start > place and not _IS_SPACE.match(text, start)
        before = start - 1 if alone and _IS_SPACE.match(text, start - 1) else start
        for part in (text[place:before], text[before:start]):
            if part:
                yield part, False
        yield text[start:end], True
        place = end
    if place < len(text):
        yield text[place:], False


def _long_pieces(text: str) -> Iterator[Tuple[int, int]]:
    for run in _runs(text):
        end = run.start()
        for kind, characters in groupby(run.group(), _kind):
            start, end = end, end + sum(1 for _ in characters)
            if end - start < LONG:
                continue
            if kind == "space":  # the last one is left to what follows
                yield start, end - (end < len(text))
            else:
                yield _start(text, start, kind), end


def _runs(text: str) -> Iterator[Match[str]]:
    """What _RUN.finditer finds, faster: every run has in it one of the places that are tried."""
    end = 0
    for place in range(0, len(text), _HALF):
        if place >= end and _HALF_RUN.match(text, place):
            run = _RUN.search(text, max(end, place - _HALF))
            if run is None:
                return
            yield run
            end = run.end()


def _kind(character: str) -> str:
    if character.isalnum():
        return "letter" if character.isalpha() else "digit"
    return "space" if _IS_SPACE.match(character) else "sign"


def _start(text: str, start: int, kind: str) -> int:
    """Where the piece with a run of letters, digits or signs begins."""
    contraction = _CONTRACTION.match(text, start - 1) if kind == "letter" and start else None
    if contraction is not None:
        return contraction.end()
    return start - 1 if start and text[start - 1] == " " else start


def merge(piece: bytes, ranks: Dict[bytes, int]) -> List[int]:
    """The ids of one piece: of all pairs of neighbours that make a token, those of the lowest rank
    are merged, from left to right, until there are none. Time grows with the length only.
    """
    end = len(piece)
    after = array("i", range(1, end + 1))  # where the token that begins here ends; `end` if none
    before = array("i", range(-1, end))  # where the token ahead of the one here begins
    waiting: Dict[int, array[int]] = {}  # of a rank: where its pairs begin
    order: List[int] = []

    def look(start: int) -> None:
        rank = ranks.get(piece[start : after[after[start]]]) if after[start] < end else None
        if rank is not None:
            if rank not in waiting:
                waiting[rank] = array("i")
                heapq.heappush(order, rank)
            waiting[rank].append(start)

    for start in range(end):
        look(start)
    while order:
        rank = heapq.heappop(order)
        places = waiting.pop(rank)
        np.frombuffer(places, dtype=np.intc).sort()
        for start in places:
            middle = after[start]
            if middle == end or ranks.get(piece[start : after[middle]]) != rank:
                continue  # one of the two is part of another token by now
            after[start], after[middle] = after[middle], end
            before[after[start]] = start
            look(start)
            if start:
                look(before[start])
    return list(_ids(piece, ranks, after))


def _ids(piece: bytes, ranks: Dict[bytes, int], after: array[int]) -> Iterator[int]:
    start = 0
    while start < len(piece):
        yield ranks[piece[start : after[start]]]
        start = after[start]
