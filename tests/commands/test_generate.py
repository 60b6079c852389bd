"""`python -m minigpt generate` and `evaluate`, as a person runs them, on a model trained a moment
before.
"""

import signal
import subprocess
import sys
import time

import pytest
import torch

from minigpt.commands.cli import parse
from minigpt.commands.options import GenerateConfig, unescaped
from tests.helpers.runs import ROOT, environment, train
from tests.helpers.warm import warm


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    train(path, "--steps", 20, "--lr", "3e-3", "--out", path / "run")
    return path / "run"


def minigpt(run, *words, code=0, text=None):
    done = subprocess.run(
        warm("-m", "minigpt", *words),
        capture_output=True,
        cwd=str(ROOT),
        env=environment(run.parent),
        input=text,
    )
    assert done.returncode == code, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


def generate(run, *words, code=0):
    return minigpt(run, "generate", "--checkpoint", run, "--prompt", "def ", *words, code=code)


def test_the_same_seed_prints_the_same_text(run):
    first, again, other = (generate(run, "--seed", s, "--max-new-tokens", 30) for s in (1, 1, 2))
    assert first == again != other
    assert first[0].startswith("def ") and first[0].endswith("\n")


def test_the_end_of_a_document_may_be_in_a_prompt(run):
    """`<|endoftext|>` alone is the empty prompt; as text it is seven tokens or more, and said."""
    words = ("generate", "--checkpoint", run, "--temperature", 0, "--max-new-tokens", 12)
    text, said = minigpt(run, *words, "--prompt", "<|endoftext|>", "--special-tokens")
    assert text == "<|endoftext|>" + minigpt(run, *words)[0] and "--special-tokens" not in said
    _, said = minigpt(run, *words, "--prompt", "<|endoftext|>")
    assert "is read as text; --special-tokens" in said


def test_several_samples_under_headings(run):
    text, _ = generate(run, "--samples", 3, "--seed", 1, "--max-new-tokens", 10)
    assert [line for line in text.splitlines() if line.startswith("---")] == [
        "--- sample %d of 3" % n for n in (1, 2, 3)
    ]


def test_a_text_longer_than_the_context_is_announced(run):
    _, said = generate(run, "--max-new-tokens", 400, "--temperature", 1)
    assert "will outgrow the model's 96 positions" in said
    _, said = minigpt(
        run, "generate", "--checkpoint", run, "--prompt", "x" * 300, "--temperature", 0
    )
    assert "the prompt has 300 tokens and the model 96 positions" in said


def started(run, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "minigpt", *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=str(ROOT),
        env=environment(run.parent),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_text_comes_while_it_is_made_and_ctrl_c_ends_the_line(run):
    """Far more tokens than there is time for: what is read can only have been streamed."""
    words = ("generate", "--checkpoint", run, "--prompt", "def ", "--max-new-tokens", 10**6)
    process = started(run, *words)
    begun = process.stdout.read(40)
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=30)
    assert begun.startswith(b"def ") and (begun + rest).endswith(b"\n")
    assert process.returncode == 130
    assert b"stopped" in said and b"Traceback" not in said


def test_a_stop_string_is_not_printed(run):
    text, _ = generate(run, "--max-new-tokens", 200, "--seed", 3, "--stop", "e", "a")
    assert not set("ea") & set(text[4:])


def test_a_stop_string_may_be_typed_with_escapes(run):
    text, _ = generate(run, "--max-new-tokens", 400, "--seed", 3, "--stop", r"\n", r"\x20")
    assert not set("\n ") & set(text[4:-1])


@pytest.mark.parametrize(
    "typed, meant",
    [
        (r"\n", "\n"), (r"\t\"", '\t"'), (r"\\n", "\\n"), (r"\u20ac€é", "€€é"), ("끝🙂", "끝🙂"),
        ("\n", "\n"), ("</s>", "</s>"), (r"\d", r"\d"), ("", ""), ("\udce9", "\udce9"),
    ],
)  # fmt: skip
def test_escapes_are_those_of_python(typed, meant):
    assert unescaped(typed) == meant


def prompted(run, *words, code=0, text=None):
    words = ("generate", "--checkpoint", run, "--seed", 1, "--max-new-tokens", 9, *words)
    return minigpt(run, *words, code=code, text=text)


def test_a_prompt_from_a_file_or_standard_input_is_the_prompt(run, tmp_path):
    expected = prompted(run, "--prompt", "def f():\n    €")
    for text in ("def f():\n    €", "def f():\n    €\n", "\ufeffdef f():\r\n    €\r\n"):
        (tmp_path / "값 1.py").write_bytes(text.encode())
        assert prompted(run, "--prompt-file", tmp_path / "값 1.py") == expected
        assert prompted(run, "--prompt-file", "-", text=text.encode()) == expected
        assert prompted(run, "--prompt", "-", text=text.encode()) == expected


def test_several_prompts_stand_under_headings_each_as_alone(run, tmp_path):
    (tmp_path / "third").write_text("class A")
    words = ("--prompt", "def ", "-h", "--prompt-file", tmp_path / "third", "--temperature", 0)
    text, _ = prompted(run, *words[:2], "--prompt", *words[2:])
    alone = [prompted(run, "--prompt", p, "--temperature", 0)[0] for p in ("def ", "-h", "class A")]
    expected = [f"--- prompt {n} of 3\n{one}" for n, one in enumerate(alone, 1)]
    assert text == "".join(expected)
    text, _ = prompted(run, "--prompt", "a", "b", "--samples", 2)
    assert "--- prompt 2 of 2, sample 1 of 2\nb" in text


@pytest.mark.parametrize(
    "words, prompts, stops",
    [
        (["--prompt", "-h"], ("-h",), ()),
        (["--prompt=-h"], ("-h",), ()),
        (["--prompt", "- item"], ("- item",), ()),
        (["--prompt", "-x", "-y", "--stop", "--", "---"], ("-x", "-y"), ("--", "---")),
        (["--stop", "-1", "--prompt", "-", "--stop", "="], ("-",), ("-1", "=")),
        (["--prompt", ""], ("",), ()),
        (["--prompt", "--a b", "--no = c"], ("--a b", "--no = c"), ()),
        (["--prompt", "--\n"], ("--\n",), ()),
        (["--prompt", "x", "--compile", "--stop", "a"], ("x",), ("a",)),
    ],
)
def test_a_text_may_look_like_a_flag(words, prompts, stops):
    config = parse(GenerateConfig, "minigpt generate", ["--checkpoint", "-c", *words])
    assert (config.checkpoint, config.prompt, config.stop) == ("-c", prompts, stops)


@pytest.mark.parametrize("words", [["-h"], ["--prompt", "--help"], ["--prompt", "a", "-h"]])
def test_help_is_still_help(words, capsys):
    with pytest.raises(SystemExit):
        parse(GenerateConfig, "minigpt generate", ["--checkpoint", "c", *words])
    assert "--repetition-penalty" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, data, expected",
    [
        ("none", None, "No such file"),
        ("bad", b"\xff", "can't decode"),
        (".", None, "directory"),
        ("big", b"x" * (1 << 24) + b"y", "more than 16.8 MB"),
    ],
    ids=["none", "bad", "directory", "big"],
)
def test_a_prompt_that_cannot_be_read_is_one_sentence(run, tmp_path, name, data, expected):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    _, said = prompted(run, "--prompt-file", tmp_path / name, code=1)
    assert expected in said and str(tmp_path / name) in said and len(said.splitlines()) == 1


def test_what_is_there_already_can_be_made_less_likely(run):
    words = ("--prompt", "a", "--temperature", 0, "--max-new-tokens", 30)
    plain, varied = (prompted(run, *words, "--repetition-penalty", p)[0] for p in (1, 50))
    assert len(set(varied)) > len(set(plain))


def test_ctrl_c_shows_what_several_samples_have_become(run):
    """Far more tokens than there is time for; the notes say that the samples have begun."""
    words = ("generate", "--checkpoint", run, "--prompt", "def ", "--samples", 2)
    process = started(run, *words, "--max-new-tokens", 10**6)
    assert b"will outgrow" in process.stderr.readline()
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    text, said = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in said
    assert all(b"--- sample %d of 2\ndef " % n in text for n in (1, 2))
    assert len(text) > 100


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--repetition-penalty", "0"], "repetition penalty is 0.0"),
        (["--seed", "9" * 20], "seed is 99999999999999999999"),
        (["--stop", "\\x"], "--stop \\x: truncated"),
        (["--stop", "a\\"], "write a backslash as"),
        (["--prompt-file", "-", "--prompt", "-"], "give - once"),
        (["--samples", "0"], "--samples is 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["--top-p", "2"], "top-p is 2.0"),
        (["--top-kk", "2"], "did you mean --top-k"),
    ],
)
def test_wrong_flags_are_one_sentence(run, words, expected):
    _, said = generate(run, *words, code=2)
    assert expected in said and len(said.splitlines()) == 1


def test_no_such_checkpoint(run):
    _, said = minigpt(run, "generate", "--checkpoint", run / "none", code=1)
    assert "there is no" in said and len(said.splitlines()) == 1


def test_no_such_command(run):
    _, said = minigpt(run, "generat", code=2)
    assert "did you mean generate" in said


def test_evaluate_agrees_with_the_run(run):
    """The same windows give the number that training wrote last."""
    from tests.helpers.runs import records

    text, _ = minigpt(run, "evaluate", "--checkpoint", run, "--data", run.parent / "corpus",
                      "--block-size", 32, "--eval-tokens", 640)  # fmt: skip
    assert "loss %.4f" % records(run, "val_loss")[20] in text


def test_report_summarises_and_plots(run):
    text, _ = minigpt(run, "report", run)
    assert "steps    20" in text and "best     validation loss" in text
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert "pip install" in text
    else:
        assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(hasattr(torch, "compile"), reason="this PyTorch has torch.compile")
def test_compile_is_refused_in_a_sentence(run):
    _, said = generate(run, "--compile", code=2)
    assert "has no torch.compile" in said and "leave out --compile" in said
