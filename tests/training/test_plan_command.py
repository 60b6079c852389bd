"""`python -m minigpt plan` and the line that train.py prints first."""

import re

import pytest
import torch

from minigpt.__main__ import command
from minigpt.cli import run
from minigpt.devices import peaks
from minigpt.devices.device import Device, find_device
from minigpt.model.gpt import GPTConfig
from minigpt.training.config import TrainConfig, write_config
from minigpt.training.plan_command import default_rows, find_shape, one_line
from minigpt.training.setup import build
from tests.training.runs import corpus
from tests.training.tuning import base


def planned(capsys, *words, code=0):
    assert run(command, ["plan", *words]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return err if code else out


def test_13b_does_not_fit_in_full_precision_and_it_says_what_does(capsys):
    text = planned(capsys, "--init", "cerebras-13b", "--device", "h200")
    assert "12,853,386,240 parameters" in text
    assert re.search(r"optimizer states +102\.8 GB", text)
    assert "fits      no: " in text and "--precision bf16 (" in text
    assert "assumed 40% of a peak of 989.4 TFLOP/s" in text


def test_13b_fits_141_gb_in_bf16_with_the_step_in_the_backward_pass(capsys):
    words = ("--precision", "bf16", "--fused-backward", "--recompute", "--block-size", "1024")
    text = planned(capsys, "--init", "cerebras-13b", "--device", "h200", *words)
    assert "fits      yes" in text


def test_an_adapter_of_13b_fits_40_gb(capsys):
    words = ("--precision", "bf16", "--lora-rank", "16", "--micro-batch-size", "1")
    text = planned(capsys, "--init", "cerebras-13b", "--device", "h100", "--memory", "40GB", *words)
    assert "fits      yes" in text


def test_every_moai_flavor_is_computed_and_the_published_ones_are_known(capsys):
    text = planned(capsys, "--init", "cerebras-13b", "--device", "moai")
    assert "computed, not known" in text
    rows = {
        line.split()[0]: line for line in text.splitlines() if "Large." in line or "64GB" in line
    }
    assert rows["Small.64GB"].endswith("no")
    assert rows["xLarge.512GB"].endswith("if spread evenly")
    assert "published: 1,764,955 MiB in all, 57.8 on each" in rows["4xLarge.2048GB"]
    assert len(re.findall(r"^\d*\.?\d*(?:x?Large|Small|Medium|xLarge)\.", text, re.M)) == 13


def test_one_flavor_has_a_table_and_a_time(capsys):
    text = planned(capsys, "--init", "cerebras-13b", "--device", "4xlarge", "--batch-size", "16")
    assert "at one time" in text and "8% of a peak of 5794 TFLOP/s" in text


def test_this_machine_is_measured(capsys):
    text = planned(capsys, "--device", "cpu", "--steps", "3")
    assert "cpu of this machine, as measured" in text and "fits      yes" in text


def test_memory_alone_is_enough(capsys):
    text = planned(capsys, "--init", "cerebras-1.3b", "--memory", "80GB")
    assert "fits      yes" in text and "time      unknown without a --device" in text


def test_a_checkpoint_and_a_file_of_settings_are_read(capsys, tmp_path):
    start = base(tmp_path / "base")
    write_config(tmp_path / "run.toml", TrainConfig(init=str(start), block_size=128, batch_size=12))
    text = planned(capsys, "--config", str(tmp_path / "run.toml"), "--batch-size", "6")
    assert "2 layers, 2 heads, 32 wide" in text and "6 x 128 tokens" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--device", "h20"], "did you mean h200"),
        (["--memory", "80"], "write it as 80GB"),
        (["--init", "cerebas-13b"], "did you mean cerebras-13b"),
        (["--model", "gpt3"], "there is no model"),
        (["--block-size", "999999", "--device", "h100"], "use --block-size 96"),
        (["--device", "4xlarge", "--memory", "3GB"], "leave out --memory"),
        (["--device", "moai", "--precision", "bf16"], "not MoAI's way"),
        (["--config", "nowhere.toml"], "name a TOML file"),
        (["--memroy", "80GB"], "did you mean --memory"),
    ],
)
def test_bad_input_is_one_sentence(capsys, words, sentence):
    text = planned(capsys, *words, code=2)
    assert sentence in text and text.count("\n") == 1


def test_the_line_of_a_run_that_fits():
    verdict = one_line(TrainConfig(), find_device("cpu"))
    assert verdict.fits and verdict.advice == ""
    assert re.match(r"plan +[\d.]+ MB at most \(.*\), .* free on the cpu: fits$", verdict.line)


def test_the_line_of_a_run_that_does_not(monkeypatch):
    monkeypatch.setattr(peaks, "free_memory", lambda device: 20 * 10**6)
    verdict = one_line(TrainConfig(), find_device("cpu"))
    assert not verdict.fits and "does not fit" in verdict.line
    assert "--micro-batch-size" in verdict.advice or "--recompute" in verdict.advice


def test_on_moai_the_platform_divides():
    verdict = one_line(TrainConfig(), Device("moai", torch.device("cpu")))
    assert verdict.fits and "--device FLAVOR" in verdict.line


def test_rows_left_open_are_those_that_training_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = TrainConfig(data=str(corpus(tmp_path / "corpus")), out=str(tmp_path / "run"), steps=1)
    trainer = build(config)
    trainer.loader.close()
    assert default_rows(trainer.config, trainer.model.config) == trainer.config.micro_batch_size
    wide = TrainConfig(batch_size=64, block_size=1024)
    assert default_rows(wide, GPTConfig()) == 4
    assert find_shape(config)[0] == trainer.model.config
