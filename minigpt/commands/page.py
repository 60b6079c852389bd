"""Pages for a browser, each one HTML file that needs nothing else: of page.html, .css and .js, that
all have in common, a command's own three, and what they show, as JSON.
"""

from __future__ import annotations

import json
import os
import pkgutil
import re
from pathlib import Path
from typing import Any, Dict

from minigpt.base.errors import UsageError, storage_error
from minigpt.base.files import write_text


def page_of(name: str, title: str, values: Dict[str, Any]) -> str:
    """The page of the command `name` with the `values` that its script draws. A `<` could end the
    script they are in, or begin a comment; JSON can spell it out.
    """
    parts = {kind: _beside(f"page.{kind}") + _beside(f"{name}.{kind}") for kind in ("css", "js")}
    parts.update(name=name, title=title, body=_beside(f"{name}.html"))
    parts["data"] = json.dumps(values, allow_nan=False).replace("<", "\\u003c")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _beside("page.html"))


def replace_page(out: Path, name: str, title: str, values: Dict[str, Any]) -> int:
    """Writes a page at `out`, in place of an earlier one of the same command only; its bytes."""
    sign = f'<meta name="generator" content="minigpt {name}">'
    try:
        if os.path.lexists(str(out)):
            ours = out.is_file() and not out.is_symlink()
            if not ours or sign.encode() not in out.open("rb").read(1000):
                raise UsageError(f"{out} exists and is no page of {name}'s", "move it away")
    except OSError as error:
        raise storage_error(error, out) from error
    page = page_of(name, title, values)
    write_text(out, page)
    return len(page.encode())


def _beside(name: str) -> str:
    return (pkgutil.get_data("minigpt.commands", name) or b"").decode()
