"""Settings: from flags, from a file, from the model's recipe; and what is said of wrong ones."""

import dataclasses
import importlib
import re

import pytest

from minigpt.base.errors import UsageError
from minigpt.commands.cli import parse
from minigpt.model.zoo import find
from minigpt.training.config import TrainConfig, read_config, write_config


def flags(*words, default=None):
    return parse(TrainConfig, "train.py", words, default)


def test_open_settings_follow_the_published_recipe():
    entry = find("cerebras-111m")
    config = TrainConfig().filled(entry.recipe, entry.config.n_positions)
    assert (config.lr, config.batch_size, config.schedule) == (6e-4, 120, "linear")
    assert (config.steps, config.block_size, config.beta2) == (9037, 2048, 0.95)


def test_a_given_setting_wins_over_the_recipe():
    config = flags("--lr", "1e-3", "--steps=7").filled(find("mini").recipe, 256)
    assert (config.lr, config.steps) == (1e-3, 7)


def test_the_last_learning_rate_keeps_its_ratio_to_a_given_peak():
    recipe = find("cerebras-111m").recipe
    assert flags("--lr", "1e-3").filled(recipe, 2048).min_lr == pytest.approx(1e-4)


def test_the_block_is_never_longer_than_the_positions():
    assert TrainConfig().filled(find("cerebras-111m").recipe, 512).block_size == 512


def test_a_file_and_flags_on_top(tmp_path):
    (tmp_path / "a.toml").write_text('lr = 3e-5\nmodel = "small"\nsteps = 10\n')
    config = flags("--steps", "20", default=read_config(tmp_path / "a.toml"))
    assert (config.lr, config.model, config.steps) == (3e-5, "small", 20)


def test_what_a_run_writes_it_reads_again(tmp_path):
    config = flags("--data", 'a "quoted" \\ name', "--compile", "--lr", "1e-4")
    write_config(tmp_path / "config.toml", config)
    assert read_config(tmp_path / "config.toml") == config


WRONG = {
    "--blok-size 3": "there is no flag --blok-size; did you mean --block-size",
    "--lr fast": "--lr cannot be fast",
    "--lr": "--lr cannot be nothing",
    "--lr 0": "--lr is 0.0; it must be above 0",
    "--steps 0": "--steps is 0; it must be above 0",
    "--steps 1.5": "--steps cannot be 1.5",
    "--beta2 1": "--beta2 is 1.0; it must be at least 0 and below 1",
    "--keep 0": "--keep is 0; it must be at least 1",
    "--warmup-steps -1": "--warmup-steps is -1; it must be 0 or more",
    "--schedule cosin": "--schedule is 'cosin'; did you mean cosine",
    "--precision fp8": "--precision is 'fp8'; known: fp32, bf16-mixed",
    "--steps 3 --epochs 1": "give one of them",
    "--lora-rank 4": "name one with --init",
    "--lora-alpha 16": "--lora-alpha without an adapter",
    "--init x --lora-rank 4 --lora-alpha 0": "--lora-alpha is 0.0; it must be above 0",
    "--init x --lora-rank 4 --lora-alpha nan": "it must be above 0",
    "--init x --lora-rank 4 --lora-targets qvk": "did you mean qkv",
    "--init x --lora-rank 4 --freeze-layers 1": "leave out --freeze-layers",
    "--freeze-layers 1": "name one with --init",
    "--patience 3 --eval-every 0": "--eval-every N",
    "--template moay": "did you mean moai",
    "stdlib": "'stdlib' belongs to no flag",
}


@pytest.mark.parametrize("line, words", WRONG.items())
def test_a_wrong_flag_is_one_sentence(line, words):
    with pytest.raises(UsageError) as caught:
        flags(*line.split()).check_together()
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text, words",
    [
        ("lrr = 1", "unknown setting lrr; did you mean lr"),
        ('lr = "high"', "lr is 'high'; it must be a number"),
        ("steps = 1.5", "steps is 1.5; it must be a whole number"),
        ("compile = 1", "compile is 1; it must be true or false"),
        ("steps = true", "steps is True; it must be a whole number"),
        ("lr 3", "is not TOML"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, text, words):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UsageError, match=r"a\.toml") as caught:
        read_config(tmp_path / "a.toml")
    assert words in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "module, name",
    [
        ("minigpt.training.config", "TrainConfig"),
        ("minigpt.commands.generate", "GenerateConfig"),
        ("minigpt.commands.evaluate", "EvaluateConfig"),
        ("minigpt.data.prepare", "PrepareConfig"),
        ("minigpt.commands.report", "ReportConfig"),
    ],
)
def test_every_flag_has_a_sentence_and_a_default(capsys, module, name):
    kind = getattr(importlib.import_module(module), name)
    with pytest.raises(SystemExit):
        parse(kind, "prog", ["--help"])
    text = " ".join(re.sub("[\u2500-\u257f]", " ", capsys.readouterr().out).split())
    for field in dataclasses.fields(kind):
        flag = "--" + field.name.replace("_", "-")
        assert flag in text or "positional arguments" in text
    assert text.count("(default: ") + text.count("(required)") == len(dataclasses.fields(kind))
    without_sentence = r"(STR|INT|FLOAT|NAME|DIR|FILE|NUMBER|\]) \((default: |required)"
    assert not re.search(without_sentence, text)
