"""The vocabulary of a directory in Hugging Face's layout: a tokenizer.json of byte-level BPE, or
vocab.json and merges.txt, with the special and added tokens, the blank and the tokens around a text
that these and the settings beside them name, as transformers reads them. Any other kind is refused,
since ids of another vocabulary mean nothing to the weights.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from minigpt.base.errors import CheckpointError, DataError
from minigpt.base.files import parse_object
from minigpt.data.tokenizer import MERGES, VOCAB, GPT2Tokenizer, find_gpt2
from minigpt.data.vocabulary import EOS, FLAGS, Rules, merge_lines
from minigpt.hf import BESIDE, GPT2, NONE
from minigpt.hf.layout import read_json

FAST, SETTINGS = "tokenizer.json", "tokenizer_config.json"
# What tokenizers are in that are none of GPT-2's, and what is half of one.
_OTHERS = re.compile(
    r".*\.(model|spm|tiktoken)|vocab\.(json|txt|bpe)|merges\.txt|(encoder|tekken)\.json|meta\.pkl"
)
_GPT2_TOKENS, _PADDED = 50257, 50304  # the latter in models of nanoGPT
_WAY_ON = "--tokenizer none converts the weights alone, --tokenizer gpt2 says that it is GPT-2's"
# As Hugging Face writes GPT-2's pattern where it is not their ByteLevel's own.
_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Classes whose tokenizer.json says all, and those that mean GPT-2's kind where there is none.
_BY_FILE = ("PreTrainedTokenizer", "TokenizersBackend")
_BY_CLASS = ("GPT2Tokenizer", "CodeGenTokenizer", *_BY_FILE)
# The order in which transformers gives ids to those that have none.
_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))

Object = Dict[str, Any]
# The ids, the merges, the added tokens as in a tokenizer.json, and what is around a text.
Found = Tuple[Dict[str, int], List[str], List[Object], Rules]


def find_vocabulary(
    source: Path, tokens: int, choice: str = BESIDE
) -> Tuple[Optional[GPT2Tokenizer], List[str]]:
    """The tokenizer for a model of so many `tokens`, if any, and notes. CheckpointError for one
    that is not GPT-2's kind, cannot be read, or has more tokens than the model.
    """
    if choice == NONE:
        return None, ["the vocabulary is left out, as --tokenizer none says"]
    if choice == BESIDE and source.is_file():  # nanoGPT's
        choice = GPT2
        if tokens not in (_GPT2_TOKENS, _PADDED):
            what = f"the {tokens} tokens of {source} are the characters in nanoGPT's meta.pkl"
            fix = "--tokenizer none converts the weights; to train your own, use --tokenizer bytes"
            raise CheckpointError(what, fix)
    if choice == GPT2:
        found, name = GPT2Tokenizer(*find_gpt2()), "GPT-2's vocabulary"
        notes = ["the vocabulary is GPT-2's own"]
    elif _has(source, FAST) or (_has(source, VOCAB) and _has(source, MERGES)):
        path = source / (FAST if _has(source, FAST) else VOCAB)
        (found, notes), name = _read_beside(path, tokens), str(path)
    else:
        _refuse_others(source)
        note = "there is no vocabulary beside the weights"
        if tokens == _GPT2_TOKENS:
            return GPT2Tokenizer(*find_gpt2()), [note + ": GPT-2's own is used"]
        size = "too large" if tokens < _GPT2_TOKENS else f"of {_GPT2_TOKENS} tokens, not {tokens}"
        return None, [f"{note}, and GPT-2's own is {size}: none kept"]
    if found.vocab_size > tokens:
        fix = "get the vocabulary that belongs to the weights, or use --tokenizer none"
        what = f"{name} has {found.vocab_size} tokens and the model {tokens}"
        raise CheckpointError(what, fix)
    return found, notes


def _has(directory: Path, name: str) -> bool:
    return (directory / name).is_file()


def _refuse_others(directory: Path) -> None:
    files = [path.name for path in sorted(directory.iterdir()) if path.is_file()]
    found = [name for name in files if _OTHERS.fullmatch(name)]
    kind = str(_beside(directory, SETTINGS).get("tokenizer_class") or "GPT2")
    if not kind.startswith("GPT2"):
        found.append(f"{SETTINGS} of a {kind!a:.40}")
    if found:
        needed = f"{VOCAB} and {MERGES}, or a {FAST} of GPT-2's kind"
        what = f"{directory} has {found[0]}, and its vocabulary cannot be read without {needed}"
        raise CheckpointError(what, _WAY_ON)


def _beside(directory: Path, name: str) -> Object:
    """A JSON file's object; empty where there is no such file."""
    return read_json(directory / name) if _has(directory, name) else {}


def _read_beside(path: Path, tokens: int) -> Tuple[GPT2Tokenizer, List[str]]:
    """The tokenizer of a tokenizer.json, or of the vocab.json, at `path`, with what lies beside."""
    settings = _beside(path.parent, SETTINGS)
    if "added_tokens_decoder" not in settings:
        settings.update(_beside(path.parent, "special_tokens_map.json"))
    try:
        fast = path.name == FAST
        found = _of_fast(read_json(path), settings) if fast else _of_two(path.parent, settings)
        return _tokenizer(path.parent, found, settings, tokens)
    except (AttributeError, KeyError, TypeError, ValueError, DataError) as error:
        why = str(error) if isinstance(error, ValueError) else f"it lacks or garbles {error}"
        if isinstance(error, DataError):  # of the two files, which it was turned into
            why = error.what.partition(": ")[2]
        what = f"{path} is not a tokenizer of GPT-2's kind: {why}"
        raise CheckpointError(what, _WAY_ON) from None


def _of_two(directory: Path, settings: Object) -> Found:
    kind = str(settings.get("tokenizer_class") or "GPT2Tokenizer")
    if not kind.startswith(_BY_CLASS):
        raise ValueError(f"{SETTINGS} says that it is a {kind!a:.40}")
    listed = settings.get("added_tokens_decoder", {})
    added = [{**token, "id": int(i)} for i, token in listed.items()]
    if "added_tokens_decoder" not in settings:
        named = [token["content"] for _, token in _named(settings)]
        for token, i in _beside(directory, "added_tokens.json").items():
            special = token in named
            added.append({"content": token, "id": i, "special": special, "normalized": not special})
    ends = {k: settings.get(f"{k}_token", EOS) for k in ("bos", "eos")}
    begin, end = ([_content(ends[k])] * bool(settings.get(f"add_{k}_token")) for k in ends)
    rules = Rules(prefix_space=bool(settings.get("add_prefix_space")), begin=begin, end=end)
    vocabulary = parse_object((directory / VOCAB).read_bytes())
    return vocabulary, merge_lines((directory / MERGES).read_bytes()), added, rules


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _named(settings: Object) -> Iterator[Tuple[str, Object]]:
    """The special tokens that settings name, by the name of each if any, with their flags."""
    more = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    named = {name: settings.get(name) for name in (*_NAMES, *settings) if name.endswith("_token")}
    named.update(more if isinstance(more, dict) else {f"more {i}": t for i, t in enumerate(more)})
    for name, token in named.items():
        if isinstance(token, (str, dict)) and token:
            flags = {f: token.get(f, False) for f in FLAGS} if isinstance(token, dict) else {}
            yield name, {**flags, "content": _content(token), "special": True}


def _tokenizer(
    directory: Path, found: Found, settings: Object, tokens: int
) -> Tuple[GPT2Tokenizer, List[str]]:
    vocabulary, merges, listed, rules = found
    size, vocabulary, named, notes = len(vocabulary), dict(vocabulary), [*_named(settings)], []
    added: Dict[str, List[str]] = {}
    for token in [*sorted(listed, key=itemgetter("id")), *(token for _, token in named)]:
        name = token["content"]
        if name not in vocabulary and len(vocabulary) >= tokens >= size:
            notes.append(f"the model has no row for {name!a:.40}, which is left out")
            continue
        number = vocabulary.setdefault(name, len(vocabulary))
        if repr(token.get("id", number)) != repr(number):
            raise ValueError(f"{name!a:.40} has the id {token['id']!a:.40}, and not {number}")
        added.setdefault(name, [flag for flag in FLAGS if token.get(flag)])
    names = {k: t["content"] for k, t in named if k.endswith("_token") and t["content"] in added}
    rules = replace(rules, eos=_end(directory, names, vocabulary), names=names, added=added)
    plain = {*names.values()} <= {EOS} and added in ({}, {EOS: ["special"]})
    if plain and replace(rules, names={}, added={}) == Rules():
        rules = Rules()
    written = b"" if rules == Rules() else json.dumps(asdict(rules)).encode()
    return GPT2Tokenizer(*_files(directory, vocabulary, merges), written), notes


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
    if _has(directory, VOCAB) and _has(directory, MERGES):
        two = (directory / VOCAB).read_bytes(), (directory / MERGES).read_bytes()
        if parse_object(two[0]) == vocabulary and merge_lines(two[1]) == merges:
            return two
    ordered = dict(sorted(vocabulary.items(), key=itemgetter(1)))
    return json.dumps(ordered).encode(), "\n".join(["#version: 0.2", *merges, ""]).encode()


def _of_fast(values: Object, settings: Object) -> Found:
    """ValueError for what gives other ids than byte-level BPE by GPT-2's pattern."""
    model = values["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {model['type']!a:.40}")
    for rule in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(rule):
            raise ValueError(f"it has {rule}")
    if _steps(values.get("normalizer"), "normalizers"):
        raise ValueError("it changes the text (normalizer)")
    level = _byte_level(_steps(values.get("pre_tokenizer"), "pretokenizers"))
    kind = settings.get("tokenizer_class")
    by_file = str(kind).startswith(_BY_FILE)
    prefix_space = level.get("add_prefix_space", True) if by_file or not kind else False
    if not by_file:  # the settings count
        prefix_space = settings.get("add_prefix_space", prefix_space)
    begin, end = [], []  # type: List[str], List[str]
    for step in _steps(values.get("post_processor"), "processors"):
        before, behind = _around(step)
        begin, end = before + begin, end + behind
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    rules = Rules(prefix_space=bool(prefix_space), begin=begin, end=end)
    return model["vocab"], merges, values.get("added_tokens") or [], rules


def _steps(step: Optional[Object], name: str) -> List[Object]:
    """The steps of a Sequence, which can hold others, or the only one."""
    steps = [step] if step else []
    while any(step["type"] == "Sequence" for step in steps):
        inner = (step[name] if step["type"] == "Sequence" else [step] for step in steps)
        steps = [step for part in inner for step in part]
    return steps


def _byte_level(steps: List[Object]) -> Object:
    """The step that is ByteLevel, by its own pattern, or by the same ahead of it."""
    last = steps[-1] if steps else {}
    first = {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated"}
    ahead = [] if last.get("use_regex", True) else [{**first, "invert": False}]
    if last.get("type") != "ByteLevel" or [{"invert": False, **s} for s in steps[:-1]] != ahead:
        raise ValueError("it splits text in another way (pre_tokenizer)")
    return last


def _around(step: Object) -> List[List[str]]:
    """The tokens that a post-processor puts before a text, and those that it puts behind it."""
    if step["type"] == "ByteLevel":
        return [[], []]
    if step["type"] in ("RobertaProcessing", "BertProcessing"):
        return [[step["cls"][0]], [step["sep"][0]]]
    found: List[List[str]] = [[]]
    for piece in step["single"] if step["type"] == "TemplateProcessing" else []:
        if "Sequence" in piece:
            found.append([])
        else:
            found[-1] += step["special_tokens"][piece["SpecialToken"]["id"]]["tokens"]
    if len(found) != 2:
        raise ValueError("it adds tokens to every text in another way (post_processor)")
    return found


def fast(tokenizer: GPT2Tokenizer) -> Object:
    """The tokenizer.json that is read as `tokenizer`, here and by others."""
    vocabulary, rules = tokenizer.words.vocabulary, tokenizer.rules
    around = [*rules.begin, "", *rules.end]
    special = {t: {"id": t, "ids": [vocabulary[t]], "tokens": [t]} for t in around if t}
    processor = {
        "type": "TemplateProcessing",
        "single": [_piece(token, "A") for token in around],
        "pair": [_piece(token, side) for side in "AB" for token in around],
        "special_tokens": special,
    }
    level = {"type": "ByteLevel", "use_regex": True, "trim_offsets": True}
    level["add_prefix_space"] = rules.prefix_space
    return {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer")),
        "post_processor": processor if special else None,
        "added_tokens": [{"id": number, **said} for number, said in _added(tokenizer).items()],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merge_lines(tokenizer.merges)},
    }


def _piece(token: str, side: str) -> Object:
    kind = "SpecialToken" if token else "Sequence"
    return {kind: {"id": token or side, "type_id": "AB".index(side)}}


def _added(tokenizer: GPT2Tokenizer) -> Dict[int, Object]:
    """The added tokens by their ids, as Hugging Face describes them."""
    vocabulary, rules = tokenizer.words.vocabulary, tokenizer.rules
    flags = {rules.eos: ["special"], **rules.added}
    if rules == Rules():  # which do not say it of what stands for no text
        silent = (token for token, i in vocabulary.items() if not tokenizer.token_bytes(i))
        flags.update((token, ["special"]) for token in silent)
    return {
        vocabulary[token]: {"content": token, **{flag: flag in flags[token] for flag in FLAGS}}
        for token in sorted(flags, key=vocabulary.__getitem__)
    }


def settings(tokenizer: GPT2Tokenizer, n_positions: int) -> Object:
    """The tokenizer_config.json of `tokenizer`."""
    rules = tokenizer.rules
    usual = rules.eos if rules == Rules() else None
    return {
        "tokenizer_class": "GPT2Tokenizer",
        **dict.fromkeys(("bos_token", "unk_token"), usual),
        "eos_token": rules.eos,
        **rules.names,
        "add_prefix_space": rules.prefix_space,
        "add_bos_token": bool(rules.begin),
        "add_eos_token": bool(rules.end),
        "added_tokens_decoder": _added(tokenizer),
        "model_max_length": n_positions,
    }
