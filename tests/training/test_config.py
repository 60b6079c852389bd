"""Settings: from flags, from a file, from the model's recipe; and what is said of wrong ones."""

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Union, get_type_hints

import pytest
import torch

from minigpt.base.errors import UsageError
from minigpt.commands.cli import parse
from minigpt.commands.flags import parse_settings
from minigpt.devices.device import Device, find_device
from minigpt.model.lora import LoRAConfig
from minigpt.training.config import Settings, TrainConfig
from minigpt.training.config_file import flag_words, read_values, write_settings
from minigpt.training.resolve import resolve
from tests.helpers.tuning import base

CPU = Device("cpu", torch.device("cpu"))


def flags(*words):
    return parse_settings(TrainConfig, "train.py", [str(word) for word in words])


def settled(*words, device=CPU):
    return resolve(flags(*words), device)


def test_open_settings_follow_the_published_recipe():
    run = settled("--model", "cerebras-111m")
    assert (run.lr, run.batch_size, run.schedule) == (6e-4, 120, "linear")
    assert (run.steps, run.block_size, run.beta2) == (9037, 2048, 0.95)


def test_a_given_setting_wins_over_the_recipe():
    run = settled("--lr", "1e-3", "--steps=7")
    assert (run.lr, run.steps) == (1e-3, 7)


def test_the_last_learning_rate_keeps_its_ratio_to_a_given_peak():
    assert settled("--model", "cerebras-111m", "--lr", "1e-3").min_lr == pytest.approx(1e-4)


def test_the_block_is_never_longer_than_the_positions(tmp_path):
    assert settled("--init", base(tmp_path / "base", positions=512)).block_size == 512


def test_what_is_left_open_of_the_run_is_a_fifth_of_it():
    run = settled("--steps", 50, "--save-every", 7)
    assert (run.eval_every, run.sample_every, run.save_every) == (10, 10, 7)
    assert settled("--steps", 3).eval_every == 1


def test_a_batch_stays_whole_where_it_must():
    moai = Device("moai", torch.device("cpu"))
    words = ("--model", "cerebras-111m", "--batch-size", 16)
    assert settled(*words).micro_batch_size == 2
    assert settled(*words, device=moai).micro_batch_size == 16
    with pytest.raises(UsageError, match="say --micro-batch-size 16"):
        settled(*words, "--micro-batch-size", 4, device=moai)


WAYS = [
    (),
    ("--tokenizer", "gpt2"),
    ("--epochs", 2),
    ("--model", "cerebras-13b", "--fused-backward", "--precision", "bf16"),
    ("--init", "BASE"),
    ("--init", "BASE", "--lora-rank", 4, "--template", "moai"),
    ("--init", "BASE", "--freeze-layers", 1, "--record-keys", "a,b"),
    ("--init", "cerebras-13b", "--moai-num-stages", 4, "--moai-pipeline-parallel", "True"),
]


@pytest.mark.parametrize("device", [CPU, Device("moai", torch.device("cpu")), None])
@pytest.mark.parametrize("words", WAYS, ids=lambda words: " ".join(map(str, words)))
def test_nothing_is_left_open(words, device, tmp_path, monkeypatch):
    """Every setting is of its type, and those that may be None are those that are declared so."""
    monkeypatch.chdir(tmp_path)
    base(Path("BASE"))
    if device is not None and device.kind == "moai":
        words = [w for w in words if w not in ("--fused-backward", "--precision", "bf16")]
    elif device is CPU and "--fused-backward" in words and CPU.fused_backward_missing():
        pytest.skip("PyTorch 2.1 and later")
    run = settled(*words, device=device)
    for name, kind in get_type_hints(Settings).items():
        kinds = kind.__args__ if getattr(kind, "__origin__", None) is Union else (kind,)
        kinds = tuple(getattr(kind, "__origin__", kind) for kind in kinds)  # tuple, for Tuple[str]
        assert isinstance(getattr(run, name), kinds), name
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.lr = 1.0


# A file ------------------------------------------------------------------------------------------


def file_of(tmp_path, text):
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    return "--config", tmp_path / "a.toml"


def test_a_file_and_flags_on_top(tmp_path):
    file = file_of(tmp_path, 'lr = 3e-5\nmodel = "small"\nsteps = 10\ncompile = true\n')
    config = flags(*file, "--steps", "20", "--no-compile")
    assert (config.lr, config.model, config.steps) == (3e-5, "small", 20)
    assert config.compile is False


@pytest.mark.parametrize("text", ["\ufefflr = 3e-5\n", "lr = 3e-5\r\n", "# a\n'lr'=3e-5"])
def test_a_file_as_other_editors_write_it(tmp_path, text):
    assert flags(*file_of(tmp_path, text)).lr == 3e-5


@pytest.mark.parametrize("word, other", [("--steps", "epochs"), ("--epochs", "steps")])
def test_a_flag_wins_over_the_other_way_to_say_it(tmp_path, word, other):
    config = flags(*file_of(tmp_path, f"{other} = 3\n"), f"{word}=2")
    assert getattr(config, other) is None and getattr(config, word[2:]) == 2


def test_another_peak_moves_the_last_rate_of_the_file(tmp_path):
    file = file_of(tmp_path, "lr = 0.001\nmin_lr = 0.0002\n")
    assert flags(*file, "--lr", "1e-4").min_lr == pytest.approx(2e-5)
    assert flags(*file, "--lr", "1e-4", "--min-lr", "3e-6").min_lr == 3e-6
    assert flags(*file).min_lr == 2e-4


TEXTS = ['a "quoted" \\ name', "--lr 3", "", "None", "a\n\tb", "\x7f\x01", "😀 한글", "-x", "= 1"]


@pytest.mark.parametrize("text", TEXTS)
def test_what_a_run_writes_it_reads_again(tmp_path, text):
    asked = TrainConfig(sample_prompt=text, compile=True, lr=1e-4, moai_pipeline_parallel=False)
    run = resolve(asked, CPU)
    write_settings(tmp_path / "a.toml", run)
    again = resolve(flags("--config", tmp_path / "a.toml"), CPU)
    asked = dataclasses.replace(again.asked, config=None)
    assert dataclasses.replace(again, run=run.run, asked=asked) == run


def test_an_adapter_is_written_as_its_flags(tmp_path):
    start = base(tmp_path / "base")
    words = ("--lora-rank", 2, "--lora-targets", "qkv, out", "--lora-dropout", 0)
    run = settled("--init", start, *words)
    write_settings(tmp_path / "a.toml", run)
    assert 'lora_targets = "qkv,out"' in (tmp_path / "a.toml").read_text()
    again = settled("--config", tmp_path / "a.toml")
    assert again.lora == run.lora == LoRAConfig(2, dropout=0.0, targets=("qkv", "out"))


def test_the_keys_of_a_file_are_those_of_earlier_versions(tmp_path):
    write_settings(tmp_path / "a.toml", settled())
    assert list(read_values(tmp_path / "a.toml", TrainConfig)) == [
        "init", "model", "data", "packing", "strict", "device", "precision", "recompute",
        "fused_backward", "compile", "deterministic", "steps", "batch_size", "micro_batch_size",
        "block_size", "lr", "min_lr", "warmup_steps", "schedule", "weight_decay", "beta1", "beta2",
        "eps", "hidden_lr_scale", "grad_clip", "lora_rank", "lora_alpha", "lora_dropout",
        "lora_targets", "patience", "log_every", "eval_every", "eval_tokens", "sample_every",
        "sample_prompt", "save_every", "keep", "seed", "tensorboard", "moai_parallelization",
    ]  # fmt: skip


def test_words_of_flags():
    values = {"lr": 0.1, "compile": True, "packing": False, "out": None, "data": "a b"}
    assert flag_words(values) == ["--lr=0.1", "--compile=True", "--packing=False", "--data=a b"]


# What is wrong is one sentence --------------------------------------------------------------------

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
        flags(*line.split()).check_together()  # the first thing that resolve does
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


WRONG_FILES = {
    "lrr = 1": "unknown setting lrr; did you mean lr",
    'lr = "high"': "a.toml: lr cannot be high; see train.py --help",
    "steps = 1.5": "a.toml: steps cannot be 1.5",
    "steps = true": "a.toml: steps cannot be True",
    "compile = 1": "a.toml: compile cannot be 1; say true or false",
    'compile = "yes"': "a.toml: compile cannot be yes; say true or false",
    "moai_pipeline_parallel = 1": "a.toml: moai_pipeline_parallel cannot be 1",
    "lr = 0": "a.toml: lr is 0.0; it must be above 0",
    "lr = nan": "a.toml: lr is nan; it must be above 0",
    "keep = -1": "a.toml: keep is -1; it must be at least 1",
    'schedule = "cosin"': "a.toml: schedule is 'cosin'; did you mean cosine",
    'template = "moay"': "a.toml: template is 'moay'; did you mean moai",
    "lora_rank = 2\nlora_alpha = -1": "a.toml: lora_alpha is -1.0; it must be above 0",
    'lora_rank = 2\nlora_targets = "qvk"': "a.toml: lora_targets is 'qvk'; did you mean qkv",
    'lora_targets = ["qkv"]': "a.toml: lora_targets is ['qkv']; write one number or one text",
    "lr = 2026-01-01": "a.toml: lr is datetime.date(2026, 1, 1); write one number",
    "[optimizer]\nlr = 1": "a.toml: unknown setting optimizer",
    'resume = "runs/x"': "a.toml: resume says what to read; give --resume beside it",
    "lr 3": "a.toml is not TOML",
    "lr = 1\nlr = 2": "a.toml is not TOML",
}


@pytest.mark.parametrize("text, words", WRONG_FILES.items())
def test_a_wrong_file_is_one_sentence(tmp_path, text, words):
    with pytest.raises(UsageError) as caught:
        flags(*file_of(tmp_path, text), "--batch-size", 3)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert "a.toml" in str(caught.value)


def test_a_flag_is_to_blame_for_what_it_says_itself(tmp_path):
    file = file_of(tmp_path, "lr = 0.1\nsteps = 3\n")
    with pytest.raises(UsageError, match=r"^--lr cannot be fast"):
        flags(*file, "--lr", "fast")
    with pytest.raises(UsageError, match=r"^--lr is 0"):
        flags("--lr=0", *file)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        flags("--config", tmp_path / "none.toml")


def test_the_flag_at_fault_is_named_beside_those_that_are_required():
    kind = importlib.import_module("minigpt.commands.generate").GenerateConfig
    for words, says in (
        (["--checkpoint", "C", "--prompt", "hello", "--temperature", "0,8"],
         "--temperature cannot be 0,8"),
        (["--prompt", "hello"], "--checkpoint is missing; see prog --help"),
        (["--checkpoint=C", "--prompt=", "--samples=two"], "--samples cannot be two"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            parse(kind, "prog", words)
        assert says in str(caught.value)


@pytest.mark.parametrize(
    "module, name",
    [
        ("minigpt.training.config", "TrainConfig"),
        ("minigpt.commands.generate", "GenerateConfig"),
        ("minigpt.commands.evaluate", "EvaluateConfig"),
        ("minigpt.commands.prepare", "PrepareConfig"),
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
    said = sum(text.count(words) for words in ("(default: ", "(required)", "(repeatable)"))
    assert said == len(dataclasses.fields(kind))
    without_sentence = r"(STR|INT|FLOAT|NAME|DIR|FILE|NUMBER|\]) \((default: |required)"
    assert not re.search(without_sentence, text)


@pytest.mark.parametrize("line", ["--lr 1e-5 --min-lr 1e-4", "--min-lr 1"])
def test_a_rate_does_not_rise_to_its_end(line):
    with pytest.raises(UsageError, match="--min-lr"):
        resolve(flags(*line.split()), None)


def written(tmp_path, *words):
    """A run's config.toml; the flags that name it."""
    write_settings(tmp_path / "run.toml", settled(*words))
    return "--config", tmp_path / "run.toml"


def test_what_a_run_left_open_stays_open(tmp_path):
    file = written(tmp_path, "--steps", 3000, "--weight-decay", 0.2)
    asked = TrainConfig(steps=3000, weight_decay=0.2, config=str(file[1]))
    run = settled(*file)
    assert run == dataclasses.replace(
        settled(), asked=asked, run=run.run, steps=3000, weight_decay=0.2, eval_every=600,
        sample_every=600, save_every=600, eval_tokens=103_680,
    )  # fmt: skip
    short = settled(*file, "--steps", 50)
    assert (short.eval_every, short.save_every, short.warmup_steps) == (10, 10, 5)
    assert settled(*file, "--lr", 1e-4).min_lr == pytest.approx(5e-6)
    other = settled(*file, "--model", "small")
    assert (other.lr, other.block_size, other.weight_decay) == (2e-3, 256, 0.2)
    if not find_device("cpu").fused_backward_missing():
        assert settled(*file, "--fused-backward").grad_clip == 0
    tuned = settled(*file, "--init", base(tmp_path / "base"))
    assert (tuned.lr, tuned.data, tuned.steps) == (1e-5, "stdlib-functions", 3000)


def test_what_is_changed_in_the_file_is_said(tmp_path):
    written(tmp_path)
    text = (tmp_path / "run.toml").read_text()
    (tmp_path / "run.toml").write_text(text.replace("\nlr = 0.005\n", "\nlr = 0.003\n"))
    run = settled("--config", tmp_path / "run.toml", "--model", "small")
    assert (run.lr, run.min_lr) == (0.003, pytest.approx(0.00015))


def test_a_run_counted_in_epochs_is_counted_again(tmp_path):
    file = written(tmp_path, "--epochs", 2)
    assert "epochs = 2" in (tmp_path / "run.toml").read_text()
    assert flags(*file).epochs == 2 and flags(*file).steps is None
    assert flags(*file, "--steps", 5).epochs is None


@pytest.mark.parametrize("steps, warmup", [(6000, 100), (1000, 100), (60, 6), (9, 0), (90000, 100)])
def test_a_short_run_warms_up_for_a_tenth(steps, warmup):
    assert settled("--steps", steps).warmup_steps == warmup
    assert settled("--steps", steps, "--warmup-steps", 77).warmup_steps == 77


def test_a_recipe_that_warms_up_for_longer_keeps_its_share():
    assert settled("--model", "cerebras-111m").warmup_steps == 1525
    assert settled("--model", "cerebras-111m", "--steps", 9000).warmup_steps == 1518


def test_validation_is_a_small_share_of_a_run_and_all_there_is_of_the_default():
    run = settled()
    assert run.eval_tokens == 207_360  # more than the 190 thousand held out
    short = settled("--steps", 60)
    validated = short.eval_tokens * short.steps / short.eval_every
    assert validated / 3 < 0.25 * short.steps * short.batch_size * short.block_size
    assert settled("--model", "cerebras-111m").eval_tokens == 1_000_000
    assert settled("--eval-tokens", 0).eval_tokens == 0
