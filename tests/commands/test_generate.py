"""`python -m minigpt generate` and `evaluate`, as a person runs them, on a model trained a moment
before.
"""

import signal
import subprocess
import sys

import pytest
import torch

from tests.helpers.runs import ROOT, environment, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    train(path, "--steps", 20, "--lr", "3e-3", "--out", path / "run")
    return path / "run"


def minigpt(run, *words, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "minigpt", *map(str, words)],
        capture_output=True,
        cwd=str(ROOT),
        env=environment(run.parent),
    )
    assert done.returncode == code, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


def generate(run, *words, code=0):
    return minigpt(run, "generate", "--checkpoint", run, "--prompt", "def ", *words, code=code)


def test_the_same_seed_prints_the_same_text(run):
    first, again, other = (generate(run, "--seed", s, "--max-new-tokens", 30) for s in (1, 1, 2))
    assert first == again != other
    assert first[0].startswith("def ") and first[0].endswith("\n")


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


def test_text_comes_while_it_is_made_and_ctrl_c_ends_the_line(run):
    """Far more tokens than there is time for: what is read can only have been streamed."""
    words = ("generate", "--checkpoint", run, "--prompt", "def ", "--max-new-tokens", 10**6)
    process = subprocess.Popen(
        [sys.executable, "-m", "minigpt", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=str(ROOT),
        env=environment(run.parent),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    begun = process.stdout.read(40)
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=30)
    assert begun.startswith(b"def ") and (begun + rest).endswith(b"\n")
    assert process.returncode == 130
    assert b"stopped" in said and b"Traceback" not in said


def test_a_stop_string_is_not_printed(run):
    text, _ = generate(run, "--max-new-tokens", 200, "--seed", 3, "--stop", "e", "a")
    assert not set("ea") & set(text[4:])


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--temperature", "-1"], "temperature is -1.0"),
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
