"""Vocabularies beside the weights: GPT-2's kind in either form, with transformers' ids; any other
is refused before a byte is written.
"""

import json
import sysconfig
from pathlib import Path

import pytest
from safetensors.torch import save_file

from minigpt.__main__ import convert as convert_command
from minigpt.base.errors import MinigptError
from minigpt.data.tokenizer import load_tokenizer
from minigpt.hf import config as hf_config
from minigpt.hf import layout
from minigpt.hf.convert import convert
from minigpt.hf.vocabulary import _PATTERN, find_vocabulary
from minigpt.model.gpt import GPT, GPTConfig

GPT2 = load_tokenizer("gpt2")
SHORT = 1000  # words, before the end


def weights(directory, tokens=50257):
    """A tiny GPT-2 of so many tokens, without any vocabulary."""
    config = GPTConfig(n_layer=1, n_head=2, n_embd=8, n_positions=32, vocab_size=tokens)
    directory.mkdir(parents=True, exist_ok=True)
    state = {
        layout.to_theirs(name): layout.other_layout(name, p.detach()).contiguous()
        for name, p in GPT(config).named_parameters()
    }
    save_file(state, str(directory / "model.safetensors"), {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(hf_config.write(config, "float32")))
    return directory


def fast(words=50256):
    """The tokenizer.json that transformers 5 writes for GPT-2, of its first `words` and the end."""
    vocabulary = {name: i for name, i in json.loads(GPT2.vocab_json).items() if i < words}
    vocabulary["<|endoftext|>"] = words
    end = {"id": words, "content": "<|endoftext|>", "special": True, "normalized": False}
    merges = [line.split(" ") for line in GPT2.merges.decode().splitlines()[1 : words - 255]]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    single = [{"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [end],
        "normalizer": None, "pre_tokenizer": {**level, "use_regex": True},
        "post_processor": {"type": "TemplateProcessing", "single": single},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "vocab": vocabulary, "merges": merges},
    }  # fmt: skip


def short():
    """As `fast`, and read a hundred times sooner."""
    return fast(SHORT)


def write(directory, values):
    (directory / "tokenizer.json").write_text(json.dumps(values))
    return directory


def vocabulary_of(directory, tokens=60000):
    return find_vocabulary(directory, tokens)[0]


def added(values, token, content, **more):
    values["added_tokens"].append({"id": token, "content": content, "special": True, **more})


def as_strings(values):
    values["model"]["merges"] = [" ".join(merge) for merge in values["model"]["merges"]]


def split_ahead(values):
    level = {**values["pre_tokenizer"], "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated"}
    split["invert"] = False
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}


def as_of_old(values):
    """Before use_regex, with the end of a text only among the added tokens."""
    del values["pre_tokenizer"]["use_regex"], values["model"]["vocab"]["<|endoftext|>"]
    values["post_processor"] = {"type": "ByteLevel", "trim_offsets": False}
    del values["model"]["type"]


@pytest.mark.parametrize("change", [lambda values: None, as_strings, split_ahead, as_of_old])
def test_a_tokenizer_json_of_gpt2_is_gpt2s_own_byte_for_byte(tmp_path, change):
    """So that what was prepared with --tokenizer gpt2 belongs to it."""
    values = fast()
    change(values)
    found = vocabulary_of(write(tmp_path, values))
    assert (found.vocab_json, found.merges) == (GPT2.vocab_json, GPT2.merges)


def test_added_tokens_keep_their_ids(tmp_path):
    values = fast()
    added(values, 50258, "<|user|>")
    added(values, 50257, "<|pad|>")
    found = vocabulary_of(write(tmp_path, values))
    assert json.loads(found.vocab_json)["<|user|>"] == 50258
    assert (found.vocab_size, found.eos_id) == (50259, 50256)


@pytest.mark.oracle
def test_what_transformers_saves_alone_gives_its_ids_on_the_standard_library(tmp_path):
    transformers = pytest.importorskip("transformers")
    GPT2.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(
        str(tmp_path), tokenizer_type="gpt2", pad_token="<|pad|>"
    )
    source = weights(tmp_path / "hf", 50304)
    theirs.save_pretrained(str(source))
    if (source / "vocab.json").exists():  # transformers 4
        (source / "vocab.json").unlink()
        (source / "merges.txt").unlink()
    convert(source, tmp_path / "ours")
    ours = load_tokenizer(tmp_path / "ours")
    assert ours.vocab_size == 50258
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]:
        text = path.read_text(encoding="utf-8", errors="ignore").replace("<|endoftext|>", "")
        assert ours.encode(text) == theirs(text)["input_ids"], path


def change(*keys, to):
    def apply(values):
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = to

    return apply


def in_sequences(*steps, deep=100):
    """A normalizer that is Sequence in Sequence, `deep` times."""
    for _ in range(deep):
        steps = [{"type": "Sequence", "normalizers": steps}]
    return steps[0]


def swap(values):
    vocabulary = values["model"]["vocab"]
    vocabulary["Ġthe"], vocabulary["Ġa"] = vocabulary["Ġa"], vocabulary["Ġthe"]


def special_first(values):
    vocabulary = values["model"]["vocab"]
    values["model"]["vocab"] = {name: (i + 1) % (SHORT + 1) for name, i in vocabulary.items()}
    values["added_tokens"][0]["id"] = 0


def inverted(values):
    split_ahead(values)
    values["pre_tokenizer"]["pretokenizers"][0]["invert"] = True


def digits(values):
    steps = [{"type": "Digits", "individual_digits": True}, values["pre_tokenizer"]]
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}


OTHERS = {
    "WordPiece": change("model", "type", to="WordPiece"),
    "Unigram": change("model", to={"type": "Unigram", "vocab": [["a", -1.0]]}),
    "no pattern": change("pre_tokenizer", "use_regex", to=False),
    "no pre_tokenizer": change("pre_tokenizer", to=None),
    "Metaspace": change("pre_tokenizer", to={"type": "Metaspace"}),
    "digits": digits,
    "an inverted pattern": inverted,
    "a normalizer in a sequence": change("normalizer", to=in_sequences({"type": "NFC"})),
    "a normalizer": change("normalizer", to={"type": "NFC"}),
    "BOS": change("post_processor", "single", to=[
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A"}},
    ]),
    "Roberta": change("post_processor", to={"type": "RobertaProcessing"}),
    "dropout": change("model", "dropout", to=0.1),
    "whole words": change("model", "ignore_merges", to=True),
    "an end of words": change("model", "end_of_word_suffix", to="</w>"),
    "an added word twice": lambda values: added(values, SHORT + 1, "in", special=False),
    "two ids": lambda values: added(values, SHORT + 1, "<|endoftext|>"),
    "a gap": lambda values: added(values, SHORT + 50, "<|pad|>"),
    "a number": lambda values: added(values, SHORT + 1.0, "<|pad|>"),
    "a merge twice": lambda values: values["model"]["merges"].append(["Ġ", "t"]),
    "no model": lambda values: values.pop("model"),
    "no merges": lambda values: values["model"].pop("merges"),
    "a list": change("model", "vocab", to=[1]),
    "nothing": lambda values: values.clear(),
}  # fmt: skip


@pytest.mark.parametrize("spoil", OTHERS.values(), ids=OTHERS.keys())
def test_what_means_other_ids_is_refused_in_a_sentence(tmp_path, spoil):
    values = short()
    spoil(values)
    with pytest.raises(MinigptError, match="is not a tokenizer of GPT-2's kind: ") as caught:
        vocabulary_of(write(tmp_path, values))
    assert "--tokenizer none" in caught.value.fix and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 and "vocab.json" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[" * 100_000, b"\xff", b"[]", b"{"])
def test_a_broken_one_is_a_sentence(tmp_path, data):
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(MinigptError, match=r"tokenizer\.json"):
        vocabulary_of(tmp_path)


READ = {
    "a normalizer that does nothing": change("normalizer", to=in_sequences(deep=1)),
    "a prefix space": change("pre_tokenizer", "add_prefix_space", to=True),
    "swapped ids": swap,
    "special tokens first": special_first,
    "an added word that is one": lambda values: added(values, 259, "in"),
}


def whole():
    """`short` with the fields that tokenizers insists on."""
    values = {**short(), "post_processor": None}
    values["decoder"] = values["pre_tokenizer"]
    values["added_tokens"][0].update(dict.fromkeys(("single_word", "lstrip", "rstrip"), False))
    return values


@pytest.mark.oracle
@pytest.mark.parametrize("alter", READ.values(), ids=READ.keys())
def test_what_means_other_ids_gives_them(tmp_path, alter):
    transformers = pytest.importorskip("transformers")
    values = whole()
    alter(values)
    values["added_tokens"] = [{**values["added_tokens"][0], **t} for t in values["added_tokens"]]
    ours = vocabulary_of(write(tmp_path, values))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in ["the a foo", " the food", "in a string", "", "\n", "def f(x):\n    return a the"]:
        assert ours.encode(text) == theirs(text)["input_ids"]


@pytest.mark.oracle
@pytest.mark.parametrize("flag", ["add_prefix_space", "add_bos_token"])
def test_settings_beside_it_count_as_in_transformers(tmp_path, flag):
    transformers = pytest.importorskip("transformers")
    settings = {flag: True, "tokenizer_class": "GPT2Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = vocabulary_of(write(tmp_path, whole()))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), tokenizer_type="gpt2")
    for text in ["hello", " hello", "x\ny"]:
        assert ours.encode(text) == theirs(text)["input_ids"]


FOREIGN = [
    "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.bpe",
    "encoder.json", "source.spm", "target.spm", "tokenizer.tiktoken", "tekken.json", "meta.pkl",
    "bpe.model", "x.tiktoken", "vocab.json", "merges.txt", "tokenizer.json",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("tokens", [300, 50257, 50304])
def test_another_kind_is_refused_before_a_byte_is_written(tmp_path, name, tokens, capsys):
    source = weights(tmp_path / "hf", tokens)
    (source / name).write_text("{}")
    (tmp_path / "out").mkdir()
    with pytest.raises(MinigptError, match=name) as caught:
        convert(source, tmp_path / "out" / "ours", progress=lambda *_: pytest.fail("written"))
    assert "--tokenizer none" in str(caught.value)
    assert not list((tmp_path / "out").iterdir())
    out = tmp_path / "out" / "ours"
    convert_command([str(source), "--out", str(out), "--tokenizer", "none"])
    assert "note     the vocabulary is left out" in capsys.readouterr().out
    assert not (out / "vocab.json").exists() and (out / "manifest.json").exists()


def test_settings_of_another_kind_alone_are_refused_too(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    with pytest.raises(MinigptError, match="ByT5Tokenizer"):
        find_vocabulary(tmp_path, 50257)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2TokenizerFast"}')
    assert find_vocabulary(tmp_path, 50257)[0].fingerprint == GPT2.fingerprint


@pytest.mark.parametrize("tokens, kept", [(300, False), (50257, True), (50304, False)])
def test_without_any_gpt2s_own_is_used_only_for_as_many_tokens(tmp_path, tokens, kept):
    lines = "\n".join(convert(weights(tmp_path / "hf", tokens), tmp_path / "ours"))
    assert (tmp_path / "ours" / "vocab.json").exists() == kept
    assert ("GPT-2's own is used" in lines) == kept and ("none kept" in lines) == (not kept)


def test_gpt2s_own_by_its_flag(tmp_path):
    source = weights(tmp_path / "hf", 50304)
    convert(source, tmp_path / "ours", tokenizer="gpt2")
    assert load_tokenizer(tmp_path / "ours").fingerprint == GPT2.fingerprint
    with pytest.raises(MinigptError, match="50257 tokens and the model 300"):
        convert(weights(tmp_path / "small", 300), tmp_path / "no", tokenizer="gpt2")
    with pytest.raises(MinigptError, match="--tokenizer is 'gtp2'; did you mean gpt2"):
        convert_command([str(source), "--tokenizer", "gtp2"])


BROKEN = {
    "a merge twice": lambda v, m: (v, m + b"\xc4\xa0 t\n"),
    "a merge twice in another way": lambda v, m: (v, m + b"\xc4\xa0t he\n"),
    "cut short": lambda v, m: (v[:-100], m),
    "no merges": lambda v, m: (v, b""),
    "the last merge lost": lambda v, m: (v, m[: m.rindex(b"\xc4\xa0g azed")]),
    "deep": lambda v, m: (b"[" * 100_000, m),
    "a fraction": lambda v, m: (v.replace(b": 264,", b": 264.0,"), m),
    "a gap": lambda v, m: (v.replace(b": 50256", b": 50300"), m),
    "beyond 32 bits": lambda v, m: (v.replace(b": 50256", b": 4294967296"), m),
    "truth": lambda v, m: (v.replace(b": 1,", b": true,"), m),
    "null": lambda v, m: (v.replace(b": 50256", b": null"), m),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN.keys())
def test_two_broken_files_are_refused_before_a_byte_is_written(tmp_path, spoil):
    source = weights(tmp_path / "hf")
    for name, data in zip(("vocab.json", "merges.txt"), spoil(GPT2.vocab_json, GPT2.merges)):
        (source / name).write_bytes(data)
    with pytest.raises(MinigptError) as caught:
        convert(source, tmp_path / "ours", progress=lambda *_: pytest.fail("written"))
    assert str(source) in str(caught.value) and "--tokenizer none" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_more_tokens_than_the_model(tmp_path):
    source = weights(tmp_path / "hf", 300)
    with pytest.raises(MinigptError, match=r"tokenizer\.json has 50257 tokens and the model 300"):
        convert(write(source, fast()), tmp_path / "ours")
