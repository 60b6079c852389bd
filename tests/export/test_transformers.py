"""transformers opens an export without a word of warning: the same ids, chats and logits."""

import json
import logging
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt import generate, load_model, load_tokenizer
from minigpt.base.errors import CheckpointError
from minigpt.data.records import recognise
from minigpt.data.template import TEMPLATES
from minigpt.hf.convert import convert
from minigpt.hf.export import chat_template, export
from minigpt.hf.vocabulary import find_vocabulary
from tests.helpers.exported import exported
from tests.helpers.reference import assert_close
from tests.helpers.runs import train
from tests.parity.test_00_tokenizer import AWKWARD

pytestmark = pytest.mark.oracle
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tuned")
    exported(directory)
    return directory


@pytest.fixture(scope="module")
def theirs(place):
    return transformers.AutoTokenizer.from_pretrained(str(place / "theirs"))


@pytest.fixture(scope="module")
def ours():
    return load_tokenizer("gpt2")


def test_opened_and_run_without_a_warning(place, ours, caplog):
    logging.getLogger("transformers").addHandler(caplog.handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = transformers.AutoModelForCausalLM.from_pretrained(str(place / "theirs"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(place / "theirs"))
        prompt = tokenizer(["def f(x):"], return_tensors="pt")
        tokens = model.generate(**prompt, max_new_tokens=12, do_sample=False)
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}])
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == []
    mine = load_model(place / "ours")
    assert_close(mine(tokens), model(tokens).logits)
    ids = ours.encode("def f(x):")
    assert generate(mine, ids, 12, temperature=0.0) == tokens[0, len(ids) :].tolist()


OWN = "--n-inner 50 --activation gelu_tanh --tied-head false --dropout 0.1 --tokenizer gpt2"


@pytest.mark.parametrize(
    "words", [OWN, pytest.param("--model cerebras-111m-mup", marks=pytest.mark.slow)]
)
def test_a_shape_of_ones_own_trained_and_exported(tmp_path, words):
    """Its own widths, head and dropout; or muP's scales at another width than the model's."""
    shape = [*words.split(), "--n-layer", 2, "--n-head", 3, "--n-embd", 24, "--n-positions", 40]
    train(tmp_path, *shape, "--steps", 3, "--out", tmp_path / "run")
    if words != OWN:
        with pytest.raises(CheckpointError, match=r"is a muP model.*--fold-mup"):
            export(tmp_path / "run", tmp_path / "theirs")
    export(tmp_path / "run", tmp_path / "theirs", fold=words != OWN)
    ours = load_model(tmp_path / "run")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "theirs"))
    tokens = theirs.generate(torch.randint(0, 50257, (1, 30)), max_new_tokens=10, do_sample=False)
    assert_close(ours(tokens), theirs(tokens).logits)
    assert generate(ours, tokens[0, :30].tolist(), 10, temperature=0.0) == tokens[0, 30:].tolist()


def test_it_knows_where_an_answer_ends(place, theirs, ours):
    found = transformers.GenerationConfig.from_pretrained(str(place / "theirs"))
    assert found.eos_token_id == found.pad_token_id == theirs.eos_token_id == ours.eos_id
    assert theirs.model_max_length == 64 and theirs.pad_token is None


def test_ids_are_ours_with_either_form_of_the_vocabulary(place, tmp_path, ours):
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((place / "theirs" / name).read_bytes())
    slow = transformers.AutoTokenizer.from_pretrained(str(tmp_path)).encode
    fast = tokenizers.Tokenizer.from_file(str(place / "theirs" / "tokenizer.json")).encode
    for text in AWKWARD:
        if text != "<|endoftext|>":  # a token there, and text here
            assert slow(text) == fast(text).ids == ours.encode(text), text
    assert slow("<|endoftext|>") == fast("<|endoftext|>").ids == [ours.eos_id]


def test_tokenizer_json_is_the_vocabulary_again(place, ours):
    again, _ = find_vocabulary(place / "theirs", ours.vocab_size)
    assert again.fingerprint == ours.fingerprint and again.merges == ours.merges
    assert json.loads(again.vocab_json) == json.loads(ours.vocab_json)


def test_it_comes_back_after_they_have_saved_it(place, tmp_path):
    for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
        kind.from_pretrained(str(place / "theirs")).save_pretrained(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "vocab.json").exists()
    convert(tmp_path / "saved", tmp_path / "back")
    tokens = torch.randint(0, 50257, (1, 20))
    assert torch.equal(load_model(tmp_path / "back")(tokens), load_model(place / "ours")(tokens))
    assert load_tokenizer(tmp_path / "back").encode("a  b") == load_tokenizer("gpt2").encode("a  b")


def conversation(*texts, system=None):
    roles = ("user", "assistant") * len(texts)
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": role, "content": text} for role, text in zip(roles, texts)]


def our_ids(messages, template, tokenizer):
    """What training makes of `messages`, or generation if they end in a question."""
    if messages[-1]["role"] == "assistant":
        return template.render(tokenizer, recognise({"messages": messages}))[0]
    *turns, (question, _) = recognise(
        {"messages": [*messages, {"role": "assistant", "content": "x"}]}
    )
    if template.whole:
        past = "".join(template.prompt(i) + a + template.after for i, a in turns)
        return tokenizer.encode(past + template.prompt(question))
    return template.render(tokenizer, turns)[0] + tokenizer.encode(template.prompt(question))


CHATS = {
    "a question": conversation("Add 1 and 2."),
    "an answer": conversation("Add 1 and 2.", "3"),
    "a system's words": conversation("Add.", system="You are terse.\n"),
    "several turns": conversation("a", "b", "c", "    return d\n", "e", system="s"),
    "several turns, answered": conversation("a?", "b", " c ", "d"),
    "no words of a system": conversation("a", system=" \n"),
    "two questions in a row": [*conversation("a"), *conversation("b", "c", "d")],
    "braces, quotes, Hangul": conversation("{{ x }} {% y %} \"'\\", "한글 \U0001f600", "\\n"),
    "a role of a tool": [*conversation("a", "b"), {"role": "tool", "content": "42"}],
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", CHATS.values(), ids=CHATS.keys())
def test_a_chat_there_is_the_chat_here(theirs, ours, name, messages):
    jinja = chat_template(TEMPLATES[name])
    found = theirs.apply_chat_template(messages, chat_template=jinja, add_generation_prompt=True)
    assert found["input_ids"] == our_ids(messages, TEMPLATES[name], ours)


words = st.text(max_size=12).filter(str.strip)
answers = words.filter(lambda text: text[0] not in "\n\u00a0")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(words, answers), min_size=1, max_size=3), st.none() | st.text(max_size=5))
def test_any_chat_there_is_the_chat_here(theirs, ours, turns, system):
    messages = conversation(*(text for turn in turns for text in turn), system=system)
    for some in (messages, messages[:-1]):
        for template in TEMPLATES.values():
            found = theirs.apply_chat_template(some, chat_template=chat_template(template))
            assert found["input_ids"] == our_ids(some, template, ours)


def test_where_they_differ(theirs, ours):
    """A text has no seams: an empty line ahead of an answer joins the end of the line before it.
    What a model is asked to go on from is the same.
    """
    template, messages = TEMPLATES["instruct"], conversation("a", "\n\nb")
    found = theirs.apply_chat_template(messages)["input_ids"]
    assert ours.decode(found) == ours.decode(our_ids(messages, template, ours))
    assert found != our_ids(messages, template, ours)
    assert theirs.chat_template == chat_template(template)
