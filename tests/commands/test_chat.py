"""`python -m minigpt chat`: as in training, cut to the context, and Ctrl-C ends an answer."""

import os
import select
import signal
import subprocess
import sys
import time

import pytest
import torch

from minigpt.checkpoint.manifest import write_checkpoint
from minigpt.checkpoint.model_files import save_model
from minigpt.commands.chat import conversation
from minigpt.data.template import TEMPLATES
from minigpt.data.tokenizer import load_tokenizer
from minigpt.model.gpt import GPT, GPTConfig
from tests.helpers.runs import ROOT, environment
from tests.helpers.tuning import base
from tests.helpers.warm import warm


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A checkpoint that says it was tuned; its weights are random, its positions few."""
    torch.manual_seed(3)
    model, path = GPT(GPTConfig(257, 96, 2, 2, 32, init_std=0.1)), tmp_path_factory.mktemp("chat")
    tokenizer, template = load_tokenizer("bytes"), TEMPLATES["instruct"]
    write_checkpoint(path / "c", lambda part: save_model(part, model), tokenizer, template)
    return path / "c"


def chat(checkpoint, *words, text=b"", code=0):
    done = subprocess.run(
        warm("-m", "minigpt", "chat", "--checkpoint", checkpoint, *words),
        capture_output=True, cwd=str(ROOT), env=environment(checkpoint.parent), input=text,
    )  # fmt: skip
    assert done.returncode == code, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


CTRL_C = b"\x03"
TURNS = [("1 + 1?", "2"), ("and again?", "4")]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_put_as_in_training(name):
    """What follows the last question in a rendered record is the answer to it."""
    tokenizer, template = load_tokenizer("gpt2"), TEMPLATES[name]
    ids, _ = template.render(tokenizer, [*TURNS, ("more?", "8")])
    begun = conversation(tokenizer, template, TURNS, "more?")
    assert ids[: len(begun)] == begun
    assert tokenizer.decode(ids[len(begun) :]).startswith("8")


def test_an_answer_to_each_line_and_the_first_as_of_generate(tuned):
    words = ("--temperature", 0, "--max-new-tokens", 7)
    text, said = chat(tuned, *words, text="hello\n\n값?\n".encode())
    assert said == "" and len(text.splitlines()) >= 2
    alone = subprocess.run(
        warm("-m", "minigpt", "generate", "--checkpoint", tuned, "--prompt", "hello", "--instruct",
             *words),
        capture_output=True, cwd=str(ROOT), env=environment(tuned.parent),
    )  # fmt: skip
    assert text.startswith(alone.stdout.decode())


def test_a_conversation_is_cut_to_the_context(tuned):
    words = ("--max-new-tokens", 20, "--seed", 1)
    _, said = chat(tuned, *words, text=b"x" * 20 + b"\n" + b"y" * 20 + b"\n")
    assert "than the model's 96 positions" in said and "last 0 turns" in said
    _, said = chat(tuned, *words, text=b"z" * 200 + b"\n")
    assert "its last 96 are used" in said


def test_a_checkpoint_that_was_not_tuned_is_refused(tmp_path):
    _, said = chat(base(tmp_path / "plain"), code=2)
    assert "was not tuned" in said and "train.py" in said and len(said.splitlines()) == 1


def read_until(terminal, text, keys=b""):
    """What the terminal shows up to `text`. Ctrl-C is pressed again every three seconds: one that
    falls between a prompt and the wait for a line is not heard.
    """
    seen, end, pressed = b"", time.monotonic() + 100, time.monotonic()
    os.write(terminal, keys)
    while text not in seen:
        assert time.monotonic() < end, seen[-2000:]
        if select.select([terminal], [], [], 0.5)[0]:
            seen += os.read(terminal, 1000)
        if keys == CTRL_C and time.monotonic() > pressed + 3.0:
            pressed = time.monotonic()
            os.write(terminal, keys)
    return seen


def test_ctrl_c_ends_the_answer_and_not_the_program(tuned):
    """On a terminal: during an answer that would take for ever, then at the prompt, then Ctrl-D."""
    pty = pytest.importorskip("pty")
    words = ["chat", "--checkpoint", str(tuned), "--max-new-tokens", "1000000"]
    words += ["--temperature", "0"]  # so that no EOS comes by chance
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(str(ROOT))
        program = [sys.executable, "-m", "minigpt", *words]
        os.execve(sys.executable, program, {**environment(tuned.parent), "TERM": "dumb"})
    try:
        seen = read_until(terminal, b"> ")
        for _ in range(2):
            read_until(terminal, b"remembered", keys=b"hello\n")  # the note before the answer
            time.sleep(1.0)
            seen += read_until(terminal, b"\n> ", keys=CTRL_C)
        # A terminal forgets what was typed and not yet read at Ctrl-C: readline would wait for it.
        seen += read_until(terminal, b"half a line", keys=b"half a line")
        seen += read_until(terminal, b"\n> ", keys=CTRL_C)
        os.write(terminal, b"\x04")
        assert os.waitpid(child, 0)[1] == 0
        assert b"Traceback" not in seen
    finally:
        os.close(terminal)
