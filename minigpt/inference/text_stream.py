"""Tokens to text while they come: whole characters only, and nothing of a stop string.

A token of a byte-level vocabulary can end in the middle of a character, and a text can end in
what may or may not become a stop string. Both are held back until they are decided.
"""

from __future__ import annotations

import codecs
from typing import Iterable, List, Optional, Sequence

from minigpt.data.tokenizer import Tokenizer


class TextStream:
    """Feed it the bytes of each token; it gives the text that is certain. `stopped` after a stop
    string.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stop = [text for text in stop if text]
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """The text that became certain with `data`."""
        return self._release(self._decoder.decode(data), final=False)

    def finish(self) -> str:
        """What was held back; half a character becomes U+FFFD."""
        return self._release(self._decoder.decode(b"", True), final=True)

    def _release(self, text: str, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        places = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        if places:
            self.stopped = True
            return text[: min(places)]
        keep = 0 if final else self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _undecided(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self.stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stop):
                return length
        return 0


def collect(
    steps: Iterable[List[Optional[int]]],
    streams: Sequence[TextStream],
    tokenizer: Tokenizer,
    ended: Optional[List[bool]] = None,
) -> List[str]:
    """The whole text of each row of `steps`, a generator of tokens. Reads no further than the last
    row needs; `ended` is the list that `stream_batch` shares, and is told of stop strings.
    """
    texts = ["" for _ in streams]
    ended = [False for _ in streams] if ended is None else ended
    for row in steps:
        for place, token in enumerate(row):
            if token is not None:
                texts[place] += streams[place].feed(tokenizer.token_bytes(token))
            ended[place] = token is None or streams[place].stopped
        if all(ended):
            break
    return [text + stream.finish() for text, stream in zip(texts, streams)]
