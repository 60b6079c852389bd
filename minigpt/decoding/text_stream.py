"""Tokens to text while they come: whole characters only, and nothing of a stop string.

A token of a byte-level vocabulary can end in the middle of a character, and a text can end in
what may or may not become a stop string. Both are held back until they are decided.
"""

from __future__ import annotations

import codecs
from typing import Iterable, Iterator, List, Optional, Sequence

from minigpt.data.tokenizer import Tokenizer

Tokens = List[Optional[int]]  # of all rows; None for a row that has ended


class TextStream:
    """From the bytes of each token, the text that is certain; `stopped` after a stop string."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stop = [text for text in stop if text]
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes, final: bool = False) -> str:
        """The text that became certain with `data`, the `final` piece or not."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(data, final)
        places = [place for place in map(text.find, self.stop) if place >= 0]
        if places:
            self.stopped = True
            return text[: min(places)]
        # How many characters at the end may be the beginning of a stop string.
        beginnings = (stop[:length] for stop in self.stop for length in range(1, len(stop)))
        undecided = max((len(begun) for begun in beginnings if text.endswith(begun)), default=0)
        certain = len(text) if final else len(text) - undecided
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """What was held back; half a character becomes U+FFFD."""
        return self.feed(b"", final=True)


def pieces(
    steps: Iterable[Tokens], ended: List[bool], stop: Sequence[str], tokenizer: Tokenizer
) -> Iterator[List[str]]:
    """For each of `steps`, a generator of tokens, the text of each row that became certain. Reads
    no further than the last row needs; `ended`, a False for each row, is told of stop strings:
    it may be the list that `stream` shares.
    """
    streams = [TextStream(stop) for _ in ended]
    for row in steps:
        data = [b"" if token is None else tokenizer.token_bytes(token) for token in row]
        texts = [stream.feed(each) for stream, each in zip(streams, data)]
        ended[:] = [token is None or s.stopped for token, s in zip(row, streams)]
        yield texts
        if all(ended):
            break
    yield [stream.finish() for stream in streams]
