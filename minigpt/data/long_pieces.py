"""Pieces of text that are too long for tiktoken: thousands of letters, blanks or signs in a row.

Its regular expressions run out of stack on a million of them, which is no Exception but a panic,
and its older versions need time that grows with the square of a piece. So a text with such runs
is cut here by GPT-2's pattern, and its long pieces are merged here. The ids are the same.
"""

from __future__ import annotations

import heapq
import re
from array import array
from functools import lru_cache
from typing import Dict, Iterator, List, Optional, Tuple

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
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


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
    piece: bytes, ranks: Dict[bytes, int], pairs: Optional[Dict[Tuple[bytes, bytes], int]] = None
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
