"""Prompts: ids and mask are built together, and the tutorial's are reproduced to the token."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.base.errors import CheckpointError, UsageError
from minigpt.data.batch import IGNORE
from minigpt.data.packing import RecordDataset, fit
from minigpt.data.records import Record, render
from minigpt.data.template import TEMPLATES, Template, find_template, load_template, save_template
from minigpt.data.tokenizer import load_tokenizer

BYTES, GPT2 = load_tokenizer("bytes"), load_tokenizer("gpt2")
INSTRUCT, MOAI = TEMPLATES["instruct"], TEMPLATES["moai"]
TEXT = st.text(st.sampled_from("ab \n\t'sé[]/<|>"), max_size=12)


def test_only_the_answer_and_the_end_are_learned():
    ids, learned = INSTRUCT.render(BYTES, [("add", "a + b")])
    assert ids == [*b"[INST] add [/INST]\na + b", BYTES.eos_id]
    assert learned == [False] * len("[INST] add [/INST]\n") + [True] * len("a + b") + [True]


def test_each_answer_of_a_conversation_is_learned():
    ids, learned = INSTRUCT.render(BYTES, [("a", "b"), ("c", "d")])
    text = "[INST] a [/INST]\n"
    assert ids == [*text.encode(), *b"b", 256, *text.replace("a", "c").encode(), *b"d", 256]
    assert learned == ([False] * len(text) + [True] * 2) * 2


@given(TEXT, TEXT)
@settings(deadline=None)
def test_the_prompt_has_the_tokens_it_will_have_when_it_is_given(instruction, answer):
    """No token reaches across the border: `generate --instruct` starts where training did."""
    ids, learned = INSTRUCT.render(GPT2, [(instruction, answer)])
    prompt = GPT2.encode(INSTRUCT.prompt(instruction))
    assert ids[: len(prompt)] == prompt
    assert learned == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    assert GPT2.decode(ids[len(prompt) :]) == answer and ids[-1] == GPT2.eos_id


def test_the_name_of_the_end_in_an_answer_does_not_end_it():
    ids, _ = INSTRUCT.render(GPT2, [("<|endoftext|>", "print('<|endoftext|>')")])
    assert ids.count(GPT2.eos_id) == 1 and ids[-1] == GPT2.eos_id


def test_where_generation_stops():
    assert INSTRUCT.stop == () and MOAI.stop == ("</s>",)


RECORDS = [
    ("Add two numbers.", "def add(a, b):\n    return a + b"),
    ("Begin with breaks.", "\n\n  indented\n"),
    ("naïve — 日本語 🙂", "\tpass\r\n  "),
    ("too long for the block", "word " * 200),
    ("as long as the block", "x" + " y" * 48),
    ("Print <|endoftext|>.", "print('<|endoftext|>')\n<|endoftext|><|endoftext|> end"),
]
BLOCK = 64


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The tutorial's preprocessing: (ids, labels) of a record, as (BLOCK,) arrays."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("tokenizer")
    GPT2.save(path)
    tokenizer = transformers.GPT2Tokenizer(str(path / "vocab.json"), str(path / "merges.txt"))
    tokenizer.pad_token_id = tokenizer.unk_token_id

    def preprocess(instruction, output):
        text = f"[INST] {instruction} [/INST]\n{output}</s>"
        found = tokenizer(text, padding="max_length", truncation=True, max_length=BLOCK)
        ids = np.array(found["input_ids"])
        return ids, np.where(ids != tokenizer.pad_token_id, ids, IGNORE)

    return preprocess


@pytest.mark.oracle
@pytest.mark.parametrize("instruction, output", RECORDS)
def test_moai_is_the_tutorials_batch_to_the_token(theirs, instruction, output):
    """Padding to the block, the prompt learned; their model shifts the labels, our targets are
    shifted.
    """
    ids, labels = theirs(instruction, output)
    record = render(Record("", "", ((instruction, output),)), MOAI, GPT2)
    example = fit(record, MOAI, GPT2.eos_id, BLOCK)
    batch = RecordDataset([example], BLOCK, False, GPT2).batch(np.array([0]))
    assert batch.tokens[0].tolist() == ids.tolist()
    assert batch.targets[0].tolist() == [*labels[1:], IGNORE]
    assert batch.supervised == (labels[1:] != IGNORE).sum()
    assert batch.positions is None and batch.lengths is None


@pytest.mark.oracle
def test_the_records_compared_reach_the_edges(theirs):
    lengths = [len(MOAI.render(GPT2, [record])[0]) for record in RECORDS]
    assert max(lengths) > BLOCK and BLOCK in lengths and min(lengths) < BLOCK
    assert any((theirs(*record)[0][:20] == GPT2.eos_id).any() for record in RECORDS)


def test_moai_without_the_oracle():
    """What the tutorial's tokenizer made of one record, written down."""
    ids, learned = MOAI.render(GPT2, [("Hi", "Yo <|endoftext|>")])
    text = "[INST] Hi [/INST]\nYo "
    assert ids == GPT2.encode(text) + [50256, 3556, 82, 29]
    assert learned == [True] * len(GPT2.encode(text)) + [False, True, True, True]


def test_a_checkpoint_remembers_its_template(tmp_path):
    assert load_template(tmp_path) is None
    mine = Template("mine", "Q: ", "\nA: ", "\n\n", eos=False)
    save_template(tmp_path, mine)
    assert load_template(tmp_path) == mine


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"name": "x", "unknown": 1}', "{}", '{"name": 3}',
     '{"name": "x", "eos": "yes"}', '{"name": "x", "before": null}'],
)  # fmt: skip
def test_a_broken_template_file_is_one_sentence(tmp_path, content):
    (tmp_path / "template.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"template\.json cannot be read") as caught:
        load_template(tmp_path)
    assert caught.value.fix


def test_a_template_with_all_defaults_left_out_is_read(tmp_path):
    (tmp_path / "template.json").write_text(json.dumps({"name": "instruct"}))
    assert load_template(tmp_path) == INSTRUCT


@pytest.mark.parametrize("name, words", [("moia", "did you mean moai"), ("x", "known: instruct")])
def test_an_unknown_name_is_answered_by_the_nearest(name, words):
    with pytest.raises(UsageError, match=words):
        find_template(name)
