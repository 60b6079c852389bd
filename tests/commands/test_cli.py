"""What holds for every command line."""

import subprocess
import sys
from dataclasses import fields

import pytest

from minigpt import __version__
from minigpt.__main__ import command
from minigpt.base.errors import UsageError, flag
from minigpt.checkpoint.model_files import DTYPES
from minigpt.commands import cli, options
from minigpt.commands.cli import parse
from minigpt.commands.plan import PlanConfig
from minigpt.training.config import TrainConfig
from tests.helpers.runs import ROOT, environment
from tests.helpers.tuning import base
from tests.helpers.warm import warm


def run(tmp_path, *words, start=(sys.executable,), **variables):
    return subprocess.run(
        [*start, "-m", "minigpt", *map(str, words)], capture_output=True, cwd=str(ROOT),
        env={**environment(tmp_path), **variables},
    )  # fmt: skip


NO_TORCH = """
import sys
from minigpt.__main__ import _COMMANDS, command
from minigpt.base.errors import UsageError
for name in _COMMANDS:
    for words in (["--help"], ["--no-such-flag", "3"]):
        try:
            command([name, *words])
        except (SystemExit, UsageError):
            pass
        assert "torch" not in sys.modules, (name, words)
print("done")
"""


def test_help_and_a_mistyped_flag_do_not_wait_for_pytorch():
    done = subprocess.run([sys.executable, "-c", NO_TORCH], cwd=str(ROOT), capture_output=True)
    assert done.stdout.endswith(b"done\n"), done.stderr.decode()


def test_the_names_that_flags_can_say_are_those_that_are_known():
    """Said twice, as the second needs PyTorch."""
    assert tuple(DTYPES) == options._DTYPES


def test_text_that_a_terminal_has_no_character_for_is_spelled_out(tmp_path):
    checkpoint = base(tmp_path / "모델")
    words = ("generate", "--checkpoint", checkpoint, "--prompt", "값 = ", "--max-new-tokens", "3")
    done = run(tmp_path, *words, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"\\uac12 = ")
    words = ("generate", "--checkpoint", tmp_path / "없음")
    done = run(tmp_path, *words, start=warm(), PYTHONIOENCODING="ascii")
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert b"\\uc5c6\\uc74c" in done.stderr


def test_the_version(tmp_path):
    done = run(tmp_path, "--version")
    assert done.stdout.decode().strip() == f"minigpt {__version__}" and done.returncode == 0


ELSEWHERE = {
    "--learning-rate": "--lr", "--learning_rate": "--lr", "--lerning-rate": "--lr",
    "--max-steps": "--steps", "--num_train_epochs": "--epochs", "--output_dir": "--out",
    "--per-device-train-batch-size": "--micro-batch-size", "--bf16": "--precision",
    "--gradient-checkpointing": "--recompute", "--hidden-size": "--n-embd", "--step": "--steps",
    "--lora_r": "--lora-rank", "--max_iters": "--steps", "--eval_interval": "--eval-every",
}  # fmt: skip


@pytest.mark.parametrize("word, ours", ELSEWHERE.items())
def test_a_flag_of_another_tool_is_told_ours(word, ours):
    with pytest.raises(UsageError, match=f"there is no flag {word}; did you mean {ours}\\?"):
        parse(TrainConfig, "train.py", [word, "3"])


def test_what_is_like_nothing_is_sent_to_the_help():
    with pytest.raises(UsageError, match="see train"):
        parse(TrainConfig, "train.py", ["--frobnicate"])


def test_help_has_groups_and_a_plan_has_no_flag_that_means_nothing_there(capsys):
    shown = []
    for kind in (TrainConfig, PlanConfig):
        with pytest.raises(SystemExit):
            parse(kind, "it", ["--help"])
        shown.append(capsys.readouterr().out)
    groups = ("model", "data", "run", "memory", "optimizer", "adapter", "saving", "MoAI")
    assert all(f" {name} options" in shown[0] for name in groups)
    assert shown[0].index("--n-layer") < shown[0].index(" data options")
    assert all(flag(field.name) in shown[0] for field in fields(TrainConfig))
    nothing = ["log_every", "seed", "sample_prompt", "dry_run", "lr", "schedule", "tensorboard"]
    for name in (*nothing, "packing", "text_key", "special_tokens", "activation"):
        assert f" {flag(name)} " not in shown[1] and f" {flag(name)}," not in shown[1], name
    for name in ("validation", "tied_head", "tokenizer", "grad_clip", "epochs"):
        assert f" {flag(name)} " in shown[1], name
    assert "--memory 80GB" in shown[1] and "--n-embd" in shown[1] and "mi300x" in shown[1]
    assert parse(PlanConfig, "it", ["--log-every", "3"]).log_every == 3  # said, it is no error


@pytest.mark.parametrize("words", [["look", "--chekpoint", "x"], ["generate", "--checkpiont=x"]])
def test_a_mistyped_flag_is_named_and_not_the_one_that_it_should_have_been(words, capsys):
    assert cli.run(command, words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is no flag %s; did you mean --check" % words[1][:12])
