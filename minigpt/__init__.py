"""minigpt: a from-scratch GPT training framework.

The public names below load on first use, so that a command which needs no PyTorch does not wait
for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "GPT": "minigpt.model.gpt",
    "GPTConfig": "minigpt.model.config",
    "load_model": "minigpt.checkpoint.model_files",
    "load_tokenizer": "minigpt.checkpoint.run_files",
    "generate": "minigpt.decoding.generate",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"minigpt has no public name {name!r}")
    return getattr(import_module(_HOME[name]), name)
