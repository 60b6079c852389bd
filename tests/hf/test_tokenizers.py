"""Tokenizers of every sort that transformers has for a GPT-2: read as they are, with transformers'
ids, and out again, in either form, with the same ids there.
"""

import json
import sysconfig
from pathlib import Path

import pytest
import torch

from minigpt.__main__ import command
from minigpt.__main__ import convert as convert_command
from minigpt.checkpoint.model_files import load_model
from minigpt.data.tokenizer import load_tokenizer
from minigpt.hf.vocabulary import find_vocabulary
from tests.helpers.reference import assert_close
from tests.helpers.tuning import run_to_the_end, trainer_of
from tests.hf.test_vocabulary import fast, weights
from tests.parity.test_00_tokenizer import AWKWARD

pytestmark = pytest.mark.oracle

AWKWARD = [
    *(text for text in AWKWARD if "<|endoftext|>" not in text),
    "<|user|>hi<|assistant|> there", "a<|user|>", "<|user|> <|user|>\n<|pad|>", "x  <mask>  y",
    "foo food foo, _foo foo\u0301 foo", "a foo\u200dfoo", "</s><s>x</s>", "<pad>", "<s", "<mask>",
    "[PAD] [PAD]", "Foo bar  <|user|>  bar", "  ", "\t<|user|>", "<|us<|user|>er|>", "zz" * 3000,
    "ab" * 40 + "  " * 9 + "=" * 70, "12345 ²³ ½ Ⅷ", "e\u0301 \u200b\u2028x", "\U0001f600\ufe0f",
    "한국어<|user|>문장", "x\u3000<mask>\x1f",
]  # fmt: skip
STDLIB = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))


def texts(count=25):
    for path in STDLIB[:: max(1, len(STDLIB) // count)]:
        yield path.read_text(encoding="utf-8", errors="ignore").replace("<|endoftext|>", "")[:20000]
    yield from AWKWARD


@pytest.fixture(scope="module")
def hf():
    return pytest.importorskip("transformers")


def trained(specials=(), size=700, alphabet=True, **trainer):
    """A byte-level BPE that tokenizers has learned from some of the standard library."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    made.train_from_iterator(
        [path.read_text(encoding="utf-8", errors="ignore") for path in STDLIB[:12]],
        tokenizers.trainers.BpeTrainer(
            vocab_size=size, special_tokens=[*specials], initial_alphabet=letters,
            show_progress=False, **trainer,
        ),
    )  # fmt: skip
    return made


def of_gpt2(hf, tmp_path, words=2000, **settings):
    """GPT-2's own, of so many words: one that is read sooner where the words do not matter."""
    directory, model = tmp_path / "gpt2", fast(words)["model"]
    directory.mkdir(exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = ["#version: 0.2", *map(" ".join, model["merges"]), ""]
    (directory / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    return hf.AutoTokenizer.from_pretrained(str(directory), tokenizer_type="gpt2", **settings)


def plain(hf, tmp_path):
    return of_gpt2(hf, tmp_path, words=50256)


def added(hf, tmp_path):
    tokenizer = of_gpt2(hf, tmp_path, pad_token="<|pad|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    return tokenizer


def words(hf, tmp_path):
    """Added words: as they are, whole words only, and with the blanks around."""
    tokenizer = of_gpt2(hf, tmp_path)
    Added = hf.AddedToken
    tokenizer.add_tokens([Added("foo", single_word=True), "<|user|>", Added("bar", rstrip=True)])
    tokenizer.add_special_tokens({"mask_token": Added("<mask>", lstrip=True, rstrip=True)})
    return tokenizer


def another_end(hf, tmp_path):
    return of_gpt2(hf, tmp_path, eos_token="<|user|>", bos_token="<s>")


def prefix_space(hf, tmp_path):
    tokenizer = of_gpt2(hf, tmp_path, add_prefix_space=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    return tokenizer


def bos(hf, tmp_path):
    return of_gpt2(hf, tmp_path, add_bos_token=True)


def bos_and_eos(hf, tmp_path):
    return of_gpt2(
        hf, tmp_path, bos_token="<s>", eos_token="</s>", add_bos_token=True, add_eos_token=True
    )


def special_first(hf, tmp_path):
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=trained(["<pad>", "<s>", "</s>", "<unk>", "<mask>"]), bos_token="<s>",
        eos_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip


def own(hf, tmp_path):
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=trained(["<|endoftext|>"]), eos_token="<|endoftext|>"
    )


def without_all_bytes(hf, tmp_path):
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=trained(["<|endoftext|>"], alphabet=False), eos_token="<|endoftext|>"
    )


def shuffled(hf, tmp_path):
    """Ids in another order than the merges, and a token that two merges make."""
    tokenizers = pytest.importorskip("tokenizers")
    made = trained(["<|endoftext|>"])
    values = json.loads(made.to_str())
    vocabulary = values["model"]["vocab"]
    size = len(vocabulary)
    values["model"]["vocab"] = {token: (i * 11 + 5) % size for token, i in vocabulary.items()}
    values["added_tokens"][0]["id"] = values["model"]["vocab"]["<|endoftext|>"]
    merges = values["model"]["merges"]
    made_by = {tuple(merge) for merge in merges}
    for left, right in list(merges):
        token = left + right
        for i in range(1, len(token)):
            pair = (token[:i], token[i:])
            if pair not in made_by and {*pair} <= {*vocabulary}:
                made_by.add(pair)
                merges.insert(len(merges) // 3, [*pair])
                break
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(values)),
        eos_token="<|endoftext|>",
    )


def roberta(hf, tmp_path):
    made = trained(["<s>", "</s>"])
    processors = pytest.importorskip("tokenizers").processors
    made.post_processor = processors.RobertaProcessing(
        ("</s>", made.token_to_id("</s>")), ("<s>", made.token_to_id("<s>")), add_prefix_space=False
    )
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


KINDS = [
    plain, added, words, another_end, prefix_space, bos, bos_and_eos, special_first, own,
    without_all_bytes, shuffled, roberta,
]  # fmt: skip


def ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


def as_two_files(directory):
    """As transformers 4 saved a slow tokenizer: the two files and added_tokens.json."""
    values = json.loads((directory / "tokenizer.json").read_text())
    vocabulary, merges = values["model"]["vocab"], values["model"]["merges"]
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n")
    more = {t["content"]: t["id"] for t in values["added_tokens"] if t["content"] not in vocabulary}
    (directory / "added_tokens.json").write_text(json.dumps(more))
    (directory / "tokenizer.json").unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_ids_in_and_out_again(tmp_path, hf, kind):
    theirs = kind(hf, tmp_path)
    size = len(theirs)
    source = weights(tmp_path / "hf", size + 3)  # a resized embedding is often a little larger
    theirs.save_pretrained(str(source))
    again = hf.AutoTokenizer.from_pretrained(str(source))
    out = tmp_path / "ours"
    convert_command([str(source), "--out", str(out)])
    ours = load_tokenizer(out)
    assert ours.vocab_size == size and ours.eos_id == theirs.eos_token_id
    convert_command(["--to-hf", str(out), "--out", str(tmp_path / "back")])
    back = hf.AutoTokenizer.from_pretrained(str(tmp_path / "back"))
    assert back.eos_token_id == theirs.eos_token_id
    assert back.bos_token_id == theirs.bos_token_id or theirs.bos_token is None
    (tmp_path / "back" / "tokenizer.json").unlink()
    two = hf.AutoTokenizer.from_pretrained(str(tmp_path / "back"))
    for text in texts():
        expected = ids(again, text)
        assert ours.encode(text) == expected, ascii(text[:60])
        assert ids(back, text) == expected, ascii(text[:60])
        if kind is not roberta:  # whose rule only a tokenizer.json can have
            assert ids(two, text) == expected, ascii(text[:60])
    assert load_model(out).config.vocab_size == size + 3


@pytest.mark.parametrize(
    "kind", [plain, added, words, another_end, prefix_space, own, special_first]
)
def test_the_two_files_with_what_lies_beside_them(tmp_path, hf, kind):
    theirs = kind(hf, tmp_path)
    theirs.save_pretrained(str(tmp_path / "hf"))
    source = tmp_path / "hf"
    as_two_files(source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "GPT2Tokenizer"
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    again = hf.AutoTokenizer.from_pretrained(str(source), tokenizer_type="gpt2")
    ours, _ = find_vocabulary(source, len(theirs) + 3)
    assert ours.eos_id == again.eos_token_id
    for text in texts(5):
        assert ours.encode(text) == ids(again, text), ascii(text[:60])


def test_a_resized_embedding_trains_generates_and_exports(tmp_path, hf, capsys):
    theirs = added(hf, tmp_path)
    source = weights(tmp_path / "hf", len(theirs))
    theirs.save_pretrained(str(source))
    start = tmp_path / "start"
    convert_command([str(source), "--out", str(start)])
    records = [{"instruction": f"<|user|> {i}", "output": f"<|assistant|> {i}"} for i in range(40)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, records)))
    settings = {"init": str(start), "data": str(tmp_path / "x.jsonl"), "steps": 2, "save_every": 1}
    run = run_to_the_end(trainer_of(**settings, block_size=32, out=str(tmp_path / "run")))
    ours = load_tokenizer(run / "checkpoints" / "step_00000002")
    assert ours.encode("<|user|>") == [theirs.convert_tokens_to_ids("<|user|>")]
    words = ["--checkpoint", str(run), "--prompt", "<|user|> 1", "--max-new-tokens", "3"]
    assert not command(["generate", *words])
    convert_command(["--to-hf", str(run), "--out", str(tmp_path / "back")])
    again = hf.AutoModelForCausalLM.from_pretrained(str(tmp_path / "back")).eval()
    numbers = torch.tensor([ours.encode("<|user|> 1<|assistant|>")])
    assert_close(load_model(run)(numbers), again(numbers).logits)
    text = "<|user|> 1<|assistant|>"
    assert ids(hf.AutoTokenizer.from_pretrained(str(tmp_path / "back")), text) == ours.encode(text)


def test_a_special_token_without_a_row_in_the_model_is_left_out_and_named(tmp_path, hf, capsys):
    """As after tokenizer.pad_token = "[PAD]" and no resizing."""
    theirs = of_gpt2(hf, tmp_path, pad_token="[PAD]")
    source = weights(tmp_path / "hf", 2001)
    theirs.save_pretrained(str(source))
    convert_command([str(source), "--out", str(tmp_path / "ours")])
    assert "the model has no row for '[PAD]'" in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "ours").vocab_size == 2001
