"""`python -m minigpt inspect`: what is printed is what is trained on, in colour or without."""

import io
import json
import re
import sys

import pytest
import torch

from minigpt.__main__ import command
from minigpt.checkpoint import manifest
from minigpt.checkpoint.model_files import save_model
from minigpt.commands.cli import run
from minigpt.commands.prepare import PrepareConfig, prepare
from minigpt.data.batch import IGNORE
from minigpt.data.datasets import open_datasets
from minigpt.data.loader import Loader
from minigpt.data.template import Template, save_template
from minigpt.data.tokenizer import load_tokenizer
from minigpt.model.gpt import GPT, GPTConfig

BYTES = load_tokenizer("bytes")
PROMPT = "[INST] %s [/INST]\\n"


@pytest.fixture()
def data(tmp_path):
    records = [{"instruction": "ask %d" % n, "output": "say\n  %s\n" % n} for n in range(60)]
    lines = [*map(json.dumps, records), "{", json.dumps({"instruction": "i", "output": "o" * 200})]
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "x.jsonl"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture()
def inspect(capsys):
    def inspect(*words):
        command(["inspect", *map(str, words)])
        return capsys.readouterr().out

    return inspect


def bytes_of(data, *words):
    return ("--data", data, "--tokenizer", "bytes", "--block-size", 96, *words)


def test_a_row_to_the_letter(inspect, tmp_path):
    """Two records of which one is held out, so that what is printed is known."""
    lines = [{"instruction": "a\nb", "output": "c"}, {"instruction": "a\nb", "output": "d"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    printed = inspect(*bytes_of(tmp_path / "x.jsonl", "--block-size", 30))
    answer = re.search(r"learned \| ([cd])\n", printed).group(1)
    assert printed == "\n".join([
        "row 1 of 1",
        "  document 1: 20 tokens, positions 0..19, 2 supervised",
        "    prompt  | [INST] a",
        "    prompt  | b [/INST]\\n",
        "    learned | " + answer,
        "    end     | <|endoftext|>",
        "  padding: 10 tokens",
        "in all: 1 rows of 1, 1 documents, 30 tokens",
        "  prompt           18   60.0%",
        "  supervised        2    6.7%",
        "  padding          10   33.3%",
        "  2 of 2 records, as 1 + 1 packed rows, template instruct",
        "",
    ])  # fmt: skip


def numbers(pattern, text):
    return [int(number.replace(",", "")) for number in re.findall(pattern, text)]


@pytest.mark.parametrize("words", [(), ("--no-packing",), ("--template", "moai")])
def test_the_counts_add_up_and_are_the_batchs(inspect, data, words):
    printed = inspect(*bytes_of(data, "--batch-size", 5, "--seed", 7, *words))
    train = open_datasets(
        str(data), BYTES, 96, "moai" if "moai" in words else "instruct", not words
    ).train
    batch = train.batch(Loader(train, 5, 7).indices(0))
    assert numbers(r"row (\d+) of 5", printed) == [1, 2, 3, 4, 5]
    assert sum(numbers(r"(\d+) supervised", printed)) == batch.supervised
    assert numbers(r"  supervised +([\d,]+) ", printed) == [batch.supervised]
    assert sum(numbers(r"document \d+: (\d+) tokens", printed)) == 5 * 96 - batch.padding
    assert sum(numbers(r"padding: (\d+) tokens", printed)) == batch.padding
    assert sum(map(float, re.findall(r"([\d.]+)%", printed))) == pytest.approx(100, abs=0.2)
    documents = len(re.findall("document ", printed))
    assert "in all: 5 rows of %d, %d documents, 480 tokens" % (len(train), documents) in printed
    positions = batch.positions
    if positions is not None:
        last = numbers(r"positions 0\.\.(\d+)", printed)
        starts = (positions[:, 1:] == 0).sum().item() + 5 - len(re.findall("padding:", printed))
        assert len(last) == documents == starts


def test_every_record_of_the_batch_is_printed_whole(inspect, data):
    train = open_datasets(str(data), BYTES, 96).train
    printed = inspect(*bytes_of(data, "--batch-size", len(train)))
    asked = numbers(r"prompt  \| \[INST\] ask (\d+) \[/INST\]\\n", printed)
    assert len(asked) == len(set(asked)) == len(train.examples)
    for number in asked:
        document = "prompt  | %s\n    learned | say\n    learned |   %d\\n\n    end     | <|endoft"
        assert document % (PROMPT % ("ask %d" % number), number) in printed


def test_the_rows_are_those_of_the_run_with_that_seed(inspect, data):
    train = open_datasets(str(data), BYTES, 96).train
    for skip in (0, 4, len(train) - 1):
        printed = inspect(*bytes_of(data, "--batch-size", 3, "--skip", skip, "--seed", 5))
        batch = train.batch(Loader(train, 3, 5).indices(skip))
        first = ["".join(map(chr, row[:20].tolist())).split(" [")[0] for row in batch.tokens]
        assert re.findall(r"document 1: .*\n    prompt  \| (\[INST\] ask \d+)", printed) == first


def test_the_tutorials_template_shows_its_faults(inspect, data):
    printed = inspect(*bytes_of(data, "--template", "moai", "--batch-size", 2))
    assert "end     |" not in printed  # no EOS is learned
    assert printed.count("    prompt  | [\n    learned | INST] ask") == 2  # the prompt is
    assert printed.count("learned | </s>\n") == 2
    assert len(re.findall("document 1:", printed)) == 2 and "document 2:" not in printed


def test_what_was_left_out_is_reported_by_line(inspect, data):
    printed = inspect(*bytes_of(data))
    assert "  left out 1: no JSON (%s:61)\n" % data in printed
    assert "  left out 1: longer than --block-size 96 (%s:62)\n" % data in printed


COLOUR = re.compile("\033\\[[0-9;]*m")


def test_colour_adds_to_what_is_printed_without(inspect, data):
    plain = inspect(*bytes_of(data, "--colour", "never"))
    coloured = inspect(*bytes_of(data, "--colour", "always"))
    assert "\033" not in plain and COLOUR.sub("", coloured) == plain
    assert re.search("prompt  \\| \033\\[36m\\[INST\\] ask .*\033\\[0m\n", coloured)
    assert re.search("learned \\| \033\\[32msay\033\\[0m\n", coloured)
    assert "end     | \033[1;35m<|endoftext|>\033[0m\n" in coloured


@pytest.mark.parametrize(
    "terminal, no_colour, coloured", [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_auto_is_colour_on_a_terminal_that_is_not_told_otherwise(
    monkeypatch, data, terminal, no_colour, coloured
):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return terminal

    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setattr(sys, "stdout", Terminal())
    command(["inspect", *map(str, bytes_of(data))])
    assert ("\033[" in sys.stdout.getvalue()) is coloured


def test_text_is_learned_altogether(inspect, tmp_path):
    (tmp_path / "text").mkdir()
    for name in "ab":
        (tmp_path / "text" / (name + ".txt")).write_text("one line\n" * 40)
    printed = inspect("--data", tmp_path / "text", "--tokenizer", "bytes", "--block-size", 50)
    assert "document 1: 50 tokens, positions 0..49, 50 supervised" in printed
    assert re.search(r"supervised +\d+ +100.0%", printed) and "padding:" not in printed
    assert re.search(r"padding +0 +0.0%", printed)


def test_the_end_of_a_text_is_shown(inspect, tmp_path):
    lines = "".join(json.dumps({"text": "text %d" % n}) + "\n" for n in range(300))
    (tmp_path / "x.jsonl").write_text(lines)
    printed = inspect("--data", tmp_path / "x.jsonl", "--tokenizer", "bytes", "--block-size", 50)
    assert re.search(r"learned \| text \d+\n    end     \| <\|endoftext\|>\n", printed)


def test_the_first_token_of_a_row_is_never_learned_and_not_said_to_be(inspect, tmp_path):
    held_out = '{"text": "held out"}\n'
    (tmp_path / "x.jsonl").write_text('{"text": "abcd"}\n' * 300 + held_out)
    printed = inspect("--data", tmp_path / "x.jsonl", "--tokenizer", "bytes", "--block-size", 4,
                      "--batch-size", 200)  # fmt: skip
    assert "    prompt  | <|endoftext|>\n    learned | abcd\n" in printed
    assert "    prompt  | a\n    learned | bcd\n    end     | <|endoftext|>\n" in printed


def test_what_is_in_the_data_does_not_steer_the_terminal(inspect, tmp_path):
    record = {"instruction": "\033[2J\r\b", "output": "a\r\n\u202eb\0"}
    records = [record, dict(record, output=record["output"] + "c")]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, records)))
    printed = inspect(*bytes_of(tmp_path / "x.jsonl"))
    assert r"[INST] \x1b[2J\r\x08 [/INST]\n" in printed
    assert r"learned | a\r" in printed and r"learned | \u202eb\x00" in printed


def test_a_terminal_of_few_characters_gets_the_rest_spelled_out(monkeypatch, tmp_path):
    records = [{"instruction": "é", "output": "o%d" % n} for n in range(2)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, records)))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert run(command, ["inspect", *map(str, bytes_of(tmp_path / "x.jsonl"))]) == 0
    sys.stdout.flush()
    assert b"[INST] \\xe9 [/INST]" in sys.stdout.buffer.getvalue()


class TestCheckpoint:
    @pytest.fixture()
    def checkpoint(self, tmp_path):
        path = tmp_path / "checkpoint"
        path.mkdir()
        torch.manual_seed(0)
        shape = GPTConfig(vocab_size=257, n_positions=80, n_layer=1, n_head=2, n_embd=16)
        records = save_model(path, GPT(shape))
        BYTES.save(path)
        save_template(path, Template("mine", "Q: ", "\nA: "))
        manifest.write_manifest(path, records)
        return path

    def test_its_tokenizer_template_and_block(self, inspect, data, checkpoint):
        printed = inspect("--data", data, "--checkpoint", checkpoint, "--batch-size", 1)
        assert "prompt  | Q: ask" in printed and "80 tokens\n" in printed
        printed = inspect("--data", data, "--checkpoint", checkpoint, "--template", "instruct")
        assert "prompt  | [INST] ask" in printed

    @pytest.mark.parametrize("words, said", [
        (("--block-size", "81"), "more than the model's 80 positions; use --block-size 80"),
        (("--tokenizer", "bytes"), "--checkpoint brings its own tokenizer; leave out"),
    ])  # fmt: skip
    def test_what_does_not_fit_it(self, data, checkpoint, capsys, words, said):
        given = ["inspect", "--data", str(data), "--checkpoint", str(checkpoint), *words]
        assert run(command, given) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("words, code, said", [
    (("--colour", "red"), 2, "--colour is 'red'; known: auto, always, never"),
    (("--color", "never"), 2, "there is no flag --color; did you mean --colour?"),
    (("--template", "moia"), 2, "did you mean moai?"),
    (("--batch-size", "0"), 2, "use 1 or more"),
    (("--block-size", "0"), 2, "use 1 or more"),
    (("--skip", "-1"), 2, "--skip is -1"),
    (("--record-keys", "a,b"), 1, "no a among its keys: instruction, output"),
    (("--strict",), 1, "x.jsonl:61: no JSON; mend it, or leave out --strict"),
    (("--block-size", "4"), 1, "longer than --block-size 4"),
    (("--data", "none.jsonl"), 1, "there is no file none.jsonl"),
    (("--tokenizer", "gpt3"), 2, "gpt3 is no tokenizer"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(data, capsys, words, code, said):
    given = dict(zip(("--data", "--tokenizer", "--block-size"), (str(data), "bytes", "96")))
    given.update(zip(words[::2], words[1::2] or [None]))
    arguments = [word for pair in given.items() for word in pair if word is not None]
    assert run(command, ["inspect", *arguments]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("error: ")


def test_prepared_data_with_the_wrong_tokenizer(tmp_path, capsys):
    (tmp_path / "x.txt").write_text("one line\n" * 400)
    prepare(
        PrepareConfig(source=str(tmp_path / "x.txt"), out=str(tmp_path / "out"), tokenizer="bytes")
    )
    given = ["inspect", "--data", str(tmp_path / "out"), "--block-size", "50", "--tokenizer"]
    assert run(command, [*given, "bytes"]) == 0
    assert run(command, [*given, "gpt2"]) == 1
    assert "prepared with another tokenizer; name it with --token" in capsys.readouterr().err


def test_a_checkpoint_that_is_none(data, capsys):
    assert run(command, ["inspect", "--data", str(data), "--checkpoint", "none"]) == 1
    assert "there is no none; name a checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_with_no_flags_at_all(inspect):
    printed = inspect()
    assert printed.startswith("row 1 of 4\n  document 1: ")
    assert "in all: 4 rows of " in printed and "left out" in printed
    for kind in ("prompt  | [INST] def ", "learned | ", "end     | <|endoftext|>"):
        assert kind in printed


def test_ignored_targets_are_never_shown_as_learned(inspect, data):
    """Learned bytes printed, line breaks included, are the supervised targets one for one."""
    printed = inspect(*bytes_of(data, "--batch-size", 2))
    train = open_datasets(str(data), BYTES, 96).train
    targets = train.batch(Loader(train, 2, 1337).indices(0)).targets
    learned = re.findall(r"(?:learned|end    ) \| (.*)", printed)
    text = "\n".join(learned).replace("\\n\n<|endoftext|>\n", "\n\0")
    text = text.replace("\\n\n<|endoftext|>", "\n\0")
    expected = [t for t in targets.flatten().tolist() if t != IGNORE]
    assert [256 if c == "\0" else ord(c) for c in text] == expected
