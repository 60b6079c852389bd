"""What train.py says and does around the steps: the plan, the dry run, the fetching of weights."""

import re
import subprocess
from types import SimpleNamespace

import pytest
import torch

from minigpt.__main__ import train as train_command
from minigpt.commands import train as command
from minigpt.commands.cli import run
from minigpt.devices.device import Device
from minigpt.model.gpt import GPT
from minigpt.planning import peaks
from minigpt.planning.memory import trained_count
from minigpt.training.config import TrainConfig
from minigpt.training.resolve import job_of, resolve
from tests.helpers.runs import command as words_of
from tests.helpers.runs import environment, train
from tests.helpers.tuning import base, instructions, tuning


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """Runs train.py with these words in this process; gives its output and its errors."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)

    def run_it(*words, code=0):
        line = words_of(tmp_path, *words, python=False)
        assert run(train_command, line) == code
        return "".join(capsys.readouterr())

    return run_it


@pytest.fixture
def start(tmp_path):
    return base(tmp_path / "base")


def no_weights(*_, **__):
    raise AssertionError("weights were asked for")


@pytest.fixture
def weightless(monkeypatch):
    """Any look at a weight fails."""
    monkeypatch.setattr(GPT, "__init__", no_weights)
    monkeypatch.setattr("minigpt.checkpoint.safetensors.open_safetensors", no_weights)


def test_what_does_not_fit_starts_by_force_alone(said, tmp_path, monkeypatch):
    monkeypatch.setattr(Device, "free_memory", lambda self: 1000)
    words = ("--steps", 1, "--out", tmp_path / "run")
    assert "or start all the same with --force" in said(*words, code=1)
    assert "saved" in said(*words, "--force")


def test_a_dry_run_of_what_does_not_fit_says_so_and_goes_on(said, monkeypatch, weightless):
    """It may be meant for another machine."""
    monkeypatch.setattr(Device, "free_memory", lambda self: 1000)
    text = said("--steps", 1, "--dry-run")
    assert "does not fit" in text and "--force" in text and "no step was run" in text


@pytest.mark.parametrize(
    "words", [(), ("--lora-rank", 2), ("--freeze-layers", 1), ("--precision", "bf16")]
)
def test_a_dry_run_reads_no_weights(said, tmp_path, words, start, weightless):
    data = instructions(tmp_path / "functions.jsonl")
    weights = start / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    text = said("--init", start, "--data", data, "--steps", 3, "--dry-run",
                "--block-size", 1024, "--out", tmp_path / "run", *words)  # fmt: skip
    assert "no step was run" in text and not (tmp_path / "run").exists()


def test_a_dry_run_counts_steps_tokens_epochs_and_time(said, tmp_path, monkeypatch):
    cpu = peaks.Accelerator("this one", 1 << 40, 1e12, 1e12)
    monkeypatch.setattr(peaks, "here", lambda device, size: cpu)
    text = said("--epochs", 2, "--batch-size", 8, "--out", tmp_path / "run", "--dry-run")
    found = re.search(r"to do +([\d,]+) steps, ([\d,]+) tokens, ([\d.]+) epochs; about", text)
    steps, tokens = (int(found.group(n).replace(",", "")) for n in (1, 2))
    assert tokens == steps * 8 * 32 and float(found.group(3)) == pytest.approx(2, abs=0.05)
    assert f": {steps} steps of 8 x 32 tokens" in text
    assert "assumed 40% of a peak of 1 TFLOP/s" in text


def test_a_dry_run_of_a_run_to_go_on_with_says_from_where(said, tmp_path):
    said("--steps", 4, "--save-every", 2, "--out", tmp_path / "run")
    text = said("--resume", tmp_path / "run", "--steps", 10, "--dry-run")
    assert re.search(r"to do +6 steps after step 4, 768 tokens", text)
    assert "has done all of its 4 steps" in said("--resume", tmp_path / "run", "--lr", 1, code=2)


def test_a_dry_run_leaves_moai_alone(said, tmp_path, monkeypatch, weightless):
    """Told to parallelize, or given a tensor, the platform would take the cluster."""
    told = SimpleNamespace(enable_advanced_parallelization=no_weights)
    monkeypatch.setattr(torch, "moreh", SimpleNamespace(option=told), raising=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", no_weights)
    monkeypatch.setattr(torch.cuda, "get_device_name", no_weights)
    monkeypatch.setattr(torch.Tensor, "to", no_weights)
    text = said("--device", "moai", "--steps", 20, "--out", tmp_path / "run", "--dry-run")
    assert "divided by the platform" in text and "20 steps of 4 x 32 tokens, fp32 on moai" in text
    assert "plan --device" in text.splitlines()[-1]


@pytest.mark.parametrize(
    "settings", [{}, {"lora_rank": 3, "lora_targets": "qkv,up"}, {"freeze_layers": 1}]
)
def test_what_the_opening_lines_count_is_what_the_model_has(tmp_path, settings):
    trainer = tuning(tmp_path, **settings)
    trainer.loader.close()
    job = job_of(trainer.settings, trainer.device)
    learned = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert trained_count(job) == learned
    whole = trainer.settings.shape.parameter_count() + (learned if trainer.adapter else 0)
    assert whole == trainer.model.parameter_count()


def test_what_does_not_fit_is_not_downloaded(said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Device, "free_memory", lambda self: 1000)
    assert "does not fit" in said("--init", "cerebras-111m", "--block-size", 32, code=1)
    assert not (tmp_path / "downloads").exists()


def test_a_shape_of_ours_has_nothing_to_download(said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "train it from scratch with --model small" in said("--init", "small", code=2)


def test_epochs_are_counted_in_the_rows_there_are(tmp_path):
    done = tuning(tmp_path, epochs=3, steps=None, eval_every=None)
    rows = len(done.loader.dataset)
    done.loader.close()
    assert done.settings.steps == round(3 * rows / 4)
    assert done.settings.eval_every == max(1, done.settings.steps // 5)


def test_another_peak_of_a_run_moves_its_last_rate(tmp_path):
    train(tmp_path, "--steps", 2, "--lr", "1e-3", "--out", tmp_path / "a")
    train(tmp_path, "--config", tmp_path / "a" / "config.toml", "--lr", "1e-4", "--out",
          tmp_path / "b")  # fmt: skip
    written = (tmp_path / "b" / "config.toml").read_text()
    last = float(re.search(r"min_lr = (.*)", written).group(1))
    assert last == pytest.approx(5e-6) and "lr = 0.0001\n" in written


def test_a_checkpoint_in_a_directory_called_bytes_keeps_its_own_vocabulary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base(tmp_path / "bytes", tokenizer="gpt2")
    data = instructions(tmp_path / "functions.jsonl")
    done = train(tmp_path, "--init", "bytes", "--data", data, "--block-size", 512, "--dry-run")
    assert "gpt2 tokenizer" in done.stdout


def test_a_device_that_is_not_a_cpu_has_a_time_where_it_is_in_a_table(monkeypatch):
    gpu = Device("cuda", torch.device("cuda"))
    job = job_of(resolve(TrainConfig(), None), gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 36, 1 << 36))
    assert "about" in command._time(job, 1000, gpu)[0]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Something 9000")
    assert "plan --device NAME" in command._time(job, 1000, gpu)[0]


def test_a_longer_run_says_that_its_rate_goes_up(said, tmp_path):
    said("--steps", 10, "--out", tmp_path / "run")
    text = said("--resume", tmp_path / "run", "--steps", 40)
    assert re.search(r"after step 10 it goes up, from 0.00025 to 0.004", text)
    assert f"go on    from {tmp_path / 'run' / 'checkpoints' / 'step_00000010'}" in text
    assert "goes up" not in said("--resume", tmp_path / "run")


def test_absurd_runs_are_said(said, tmp_path, monkeypatch):
    text = said("--epochs", 30, "--out", tmp_path / "run", "--dry-run")
    assert "30.00 epochs" in text and "note     all texts 30 times" in text
    slow = peaks.Accelerator("this one", 1 << 40, 1e5, 1e5)
    monkeypatch.setattr(peaks, "here", lambda device, size: slow)
    text = said("--steps", 60, "--out", tmp_path / "run", "--dry-run")
    assert re.search(r"note     [\d,]+ days are long", text) and "all texts" not in text
    assert "rate     0.005 after 2 steps of warmup, cosine to 0.00025" in text


def test_a_warmup_longer_than_the_run_is_said(said, tmp_path):
    text = said("--steps", 5, "--warmup-steps", 9, "--out", tmp_path / "run", "--dry-run")
    assert "the run ends before" in text


def test_a_home_that_is_not_there_is_no_obstacle(tmp_path):
    text = "x = 1\n" * 3000
    data = tmp_path / ("ㅎ" * 79 + ".txt")  # 241 bytes
    data.write_text(text)
    (tmp_path / "file").touch()
    for home in ({"HOME": str(tmp_path / "file")}, {}):
        kept = {k: v for k, v in environment(tmp_path).items() if k not in ("HOME",)}
        kept.update(home, XDG_CACHE_HOME="", TMPDIR=str(tmp_path))
        words = words_of(tmp_path, "--steps", 1, "--dry-run", anew=not home)
        line = [*words, "--data", str(data)]
        done = subprocess.run(line, env=kept, capture_output=True, text=True, cwd=str(tmp_path))
        assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("minigpt-data-*/*-bytes-*"))
