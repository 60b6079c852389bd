"""Small things said to people in the same words everywhere."""

from __future__ import annotations

import difflib
import re
import shlex
from pathlib import Path
from typing import Iterable, Union


def nearest(word: str, known: Iterable[str]) -> str:
    """'did you mean X?' where a known word is close to `word`, else the list of known words."""
    known = list(known)
    close = difflib.get_close_matches(word, known, 1, 0.6)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def size(count: float) -> str:
    """Bytes as a person reads them: 512 B, 1.3 MB, 51.4 GB (powers of 1000, as disks are sold)."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def parse_size(text: str) -> int:
    """5GB, 512 MiB or 2e9 -> bytes; 0 for what is none."""
    match = re.fullmatch(r"(\d{0,15}\.?\d{1,15}(?:e\d\d?)?) *([kmgt]?)(i?)b?", text.strip().lower())
    if match is None:
        return 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 42 s, 3:07, 2:15:00, 12 days."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours // 24:,} days"
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def word(place: Union[str, Path]) -> str:
    """A path as one word of a command that is to be copied into a shell."""
    return shlex.quote(str(place))


def visible(line: str) -> str:
    """A line in which what would move the cursor or change the colours is spelled out instead."""
    return "".join(
        c if c.isprintable() or c == "\t" else c.encode("unicode_escape", "replace").decode()
        for c in line
    )
