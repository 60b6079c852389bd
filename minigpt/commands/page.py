"""Pages for a browser: one HTML file each that needs nothing else, of page.html, .css and .js, which
all have in common, and a command's own three. What they show is JSON, written by the command.
"""

from __future__ import annotations

import json
import pkgutil
import re
from typing import Any, Dict


def page_of(name: str, title: str, values: Dict[str, Any]) -> str:
    """The page of the command `name` with the `values` that its script draws. A `<` could end the
    script they are in, or begin a comment; JSON can spell it out.
    """
    parts = {kind: _beside(f"page.{kind}") + _beside(f"{name}.{kind}") for kind in ("css", "js")}
    parts.update(title=title, body=_beside(f"{name}.html"))
    parts["data"] = json.dumps(values, allow_nan=False).replace("<", "\\u003c")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _beside("page.html"))


def _beside(name: str) -> str:
    return (pkgutil.get_data("minigpt.commands", name) or b"").decode()
