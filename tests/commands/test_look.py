"""`python -m minigpt look`: the page that it writes. What is computed is held to transformers in
test_look_taps.py; here, that the page says the same, that no prompt can break it, and that a person
is told what is not in it. test_look_page.py opens it in a browser.
"""

import base64
import configparser
import fnmatch
import json
import re

import numpy as np
import pytest
import torch

from minigpt.__main__ import command
from minigpt.checkpoint.manifest import write_checkpoint
from minigpt.checkpoint.model_files import load_model, save_model
from minigpt.commands.cli import run
from minigpt.commands.look import digits, label, shown_tokens
from minigpt.commands.look_taps import look_inside
from minigpt.data.tokenizer import load_tokenizer
from minigpt.model.gpt import GPT, GPTConfig
from minigpt.model.zoo import ZOO
from tests.helpers.runs import ROOT
from tests.helpers.tuning import run_to_the_end, tuning

SHAPE = {"n_positions": 32, "n_layer": 2, "n_head": 3, "n_embd": 24, "init_std": 0.2}
HOSTILE = (
    "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"
    "<!--<script>{{js}}{{data}}\u2028\u202e\x00\x1b[31m\r\n\t & &lt; ' \" \\ 끝🙂é"
)


def checkpoint(folder, tokenizer="bytes", dtype=torch.float32, **shape):
    """A tiny one with random weights."""
    torch.manual_seed(3)
    known = load_tokenizer(tokenizer)
    model = GPT(GPTConfig(known.vocab_size, **{**SHAPE, **shape})).to(dtype)
    write_checkpoint(folder, lambda partial: save_model(partial, model), known)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("tiny") / "c")


def look(checkpoint, out, *words):
    """The page's text and its data."""
    line = ["look", "--checkpoint", str(checkpoint), "--out", str(out), *map(str, words)]
    assert run(command, line) == 0
    page = out.read_text(encoding="utf-8")
    return page, json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def attention(data, layer):
    """(H, N, 1 + N) of a page's layer, as look_taps.py has it."""
    H, N, before = data["model"]["heads"], len(data["tokens"]), data["earlier"] > 0
    kind = "<u2" if data["steps"] == 65535 else "<u1"
    values = np.frombuffer(base64.b64decode(data["attention"][layer]), kind).reshape(H, -1)
    weights = np.zeros((H, N, 1 + N))
    start = 0
    for row in range(N):
        weights[:, row, 1 - before : row + 2] = values[:, start : start + before + row + 1]
        start += before + row + 1
    assert start == values.shape[1]
    return weights / data["steps"]


def close(page, exact):
    np.testing.assert_allclose(np.array(page), exact, rtol=6e-4)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("last", [64, 6])
def test_the_page_says_what_was_computed(tmp_path, activation, last):
    place = checkpoint(tmp_path / "c", activation=activation)
    prompt = "def f(x): return x"
    _, data = look(place, tmp_path / "a.html", "--prompt", prompt, "--last", last)
    inside = look_inside(load_model(place), [*prompt.encode()], last)
    assert data["tokens"] == inside.tokens == [*prompt.encode()][-last:]
    assert data["earlier"] == inside.earlier == max(0, len(prompt) - last)
    for said, guess in zip(data["lens"], inside.lens):
        assert said["tokens"] == guess.tokens.tolist() and said["ranks"] == guess.ranks.tolist()
        close(said["probabilities"], guess.probabilities)
        close(said["bits"], guess.bits)
    close(data["norms"], inside.norms)
    for number, layer in enumerate(inside.layers):
        assert abs(attention(data, number) - layer.attention).max() <= 0.5001 / 65535
        assert data["layers"][number]["units"] == layer.units.tolist()
        for name in ("activations", "attended", "written", "gap"):
            close(data["layers"][number][name], getattr(layer, name))
    rows = [row for guess in data["lens"] for row in guess["tokens"]]
    named = {token for row in [*rows, data["tokens"]] for token in row}
    assert {*map(str, named)} == {*data["vocabulary"]}


@pytest.mark.parametrize("tokenizer", ["bytes", "gpt2"])
def test_no_prompt_leaves_its_script(tmp_path, tokenizer):
    """Nor does a place: few tokens are as long as a tag, and the page says where the model is."""
    place = tmp_path / "a<" / "script><!--<script>"  # a</script>
    checkpoint(place, tokenizer, n_positions=256)
    page, data = look(place, tmp_path / "a.html", "--prompt", HOSTILE, "--last", 256)
    plain, _ = look(checkpoint(tmp_path / "c"), tmp_path / "b.html", "--prompt", "x")
    for mark in ("<script", "</script", "<!--", "<img"):
        assert page.lower().count(mark) == plain.lower().count(mark)
    assert set(page) - set(plain) <= set(map(chr, range(32, 127)))
    known = load_tokenizer(tokenizer)
    assert known.decode(data["tokens"]) == HOSTILE
    assert all(len(text) == 2 and text[0].isprintable() for text in data["vocabulary"].values())


@pytest.mark.parametrize(
    "text, shown",
    [
        (" the", "·the"), ("\n", "↵"), ("\t", "⇥"), ("\x1b[", "\\x1b["), ("\u202e", "\\u202e"),
        ("끝", "끝"), ("🙂", "🙂"),
    ],
)  # fmt: skip
def test_a_token_is_shown_with_signs_for_what_is_not_seen(text, shown):
    known = load_tokenizer("bytes")
    known.token_bytes = lambda token: text.encode()
    assert label(known, 0) == [shown, repr(text.encode())]


def test_parts_of_characters_and_tokens_without_bytes():
    known = load_tokenizer("bytes")
    assert label(known, 0xE2) == ["\\xe2", "b'\\xe2'"]
    assert label(known, known.eos_id)[0] == "⟨end⟩" and label(known, 300)[0] == "⟨300⟩"


def test_a_number_has_four_digits_and_none_is_infinite():
    values = np.array([[0.123456, 1e-7], [np.inf, np.nan]], np.float32)
    assert digits(values) == [[0.1235, 1e-07], [None, None]]
    assert digits(np.array([123456])) == [123456]


def test_64_tokens_of_12_layers_of_12_heads_are_less_than_5_mb(tmp_path):
    """As wide as the smallest GPT-2 it would have units of four digits, and no more of anything."""
    place = checkpoint(tmp_path / "c", "gpt2", n_positions=64, n_layer=12, n_head=12)
    page, data = look(place, tmp_path / "a.html", "--prompt", "word " * 80)
    assert len(data["tokens"]) == 64 and data["steps"] == 65535
    assert 1e6 < len(page.encode()) < 2e6


@pytest.mark.parametrize("name", [*ZOO])
def test_of_every_published_model_64_tokens_are_shown(name):
    assert shown_tokens(ZOO[name].config, 500, 64) == 64
    assert shown_tokens(ZOO[name].config, 1000, 10**9) ** 2 < 2.1 * (1 << 22)


def test_what_is_cut_is_said_on_the_screen_and_in_the_page(tiny, tmp_path, capsys, monkeypatch):
    _, data = look(tiny, tmp_path / "a.html", "--prompt", "x" * 50, "--last", 8)
    said = capsys.readouterr().err
    assert "the prompt has 50 tokens and the model 32 positions" in data["notes"][0]
    assert "32 tokens, of which the last 8 are shown: --last shows more" in data["notes"][1]
    assert said == "".join("note: %s\n" % line for line in data["notes"])

    monkeypatch.setattr("minigpt.commands.look._WEIGHTS", 6 * 200)
    monkeypatch.setattr("minigpt.commands.look._PRECISE", 100)
    _, data = look(tiny, tmp_path / "b.html", "--prompt", "x" * 30)
    assert len(data["tokens"]) == 20 and data["steps"] == 255
    assert "too large for a browser" in data["notes"][0] and "8 bits" in data["notes"][1]
    inside = look_inside(load_model(tiny), [*b"x" * 30], 20)
    assert abs(attention(data, 1) - inside.layers[1].attention).max() <= 0.5001 / 255


def test_without_a_prompt_a_document_begins(tiny, tmp_path):
    _, data = look(tiny, tmp_path / "a.html")
    assert data["tokens"] == [256] and data["vocabulary"]["256"][0] == "⟨end⟩"


def test_marks_and_standard_input(tiny, tmp_path, monkeypatch):
    text = "a<|endoftext|>b"
    _, data = look(tiny, tmp_path / "a.html", "--prompt", text, "--special-tokens")
    assert data["tokens"] == [97, 256, 98]
    monkeypatch.setattr("minigpt.commands.look.read_prompt", {"-": text}.__getitem__)
    _, data = look(tiny, tmp_path / "b.html", "--prompt", "-")
    assert bytes(data["tokens"]).decode() == text


def test_a_tuned_adapter_with_its_template(tmp_path):
    place = run_to_the_end(tuning(tmp_path, lora_rank=2, steps=2))
    _, data = look(place, tmp_path / "a.html", "--prompt", "Add.", "--instruct")
    assert bytes(data["tokens"]).decode() == "[INST] Add. [/INST]\n"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits(tmp_path, dtype):
    place = checkpoint(tmp_path / "c", dtype=dtype)
    try:
        load_model(place)(torch.zeros(1, 1, dtype=torch.long))
    except RuntimeError as error:
        pytest.skip("this PyTorch has no %s on a CPU: %s" % (dtype, error))
    _, data = look(place, tmp_path / "a.html", "--prompt", "def")
    assert data["dtype"] == str(dtype).split(".")[1] and len(data["lens"]) == 3


def refused(capsys, *words):
    assert run(command, ["look", *map(str, words)]) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_bad_input_is_one_sentence(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "nowhere" in refused(capsys, "--checkpoint", "nowhere", "--prompt", "x")
    assert "was not tuned" in refused(capsys, "--checkpoint", tiny, "--prompt", "x", "--instruct")
    assert "at least 1" in refused(capsys, "--checkpoint", tiny, "--prompt", "x", "--last", 0)
    (tmp_path / "look.html").write_text("mine")
    said = refused(capsys, "--checkpoint", tiny, "--prompt", "x")
    assert said == "error: look.html exists; name another with --out, or remove it"
    assert (tmp_path / "look.html").read_text() == "mine"


def test_a_page_may_have_a_new_directory(tiny, tmp_path):
    look(tiny, tmp_path / "new" / "deep" / "a.html", "--prompt", "x")


def test_what_the_page_is_made_of_is_in_the_wheel():
    declared = configparser.ConfigParser()
    declared.read(str(ROOT / "setup.cfg"))
    patterns = declared["options.package_data"]["minigpt.commands"].replace(" ", "").split(",")
    for name in (f"{n}.{kind}" for n in ("page", "look") for kind in ("html", "css", "js")):
        assert (ROOT / "minigpt" / "commands" / name).is_file()
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
