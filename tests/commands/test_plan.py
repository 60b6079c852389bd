"""`python -m minigpt plan` and the line that train.py prints first."""

import re

import pytest
import torch

from minigpt.__main__ import command
from minigpt.__main__ import command as minigpt
from minigpt.base.errors import UsageError
from minigpt.commands.cli import run
from minigpt.commands.flags import parse_settings
from minigpt.devices.device import Device, find_device
from minigpt.planning.memory import memory
from minigpt.training.config import TrainConfig
from minigpt.training.resolve import default_rows, job_of, one_line, resolve
from tests.helpers.runs import corpus
from tests.helpers.tuning import base, run_to_the_end, trainer_of


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


@pytest.mark.parametrize("said, share", [("", 0.97), ("0.5", 0.5), ("v.txt", 1), ("valid", 1)])
def test_what_is_held_out_is_no_part_of_an_epoch(capsys, tmp_path, said, share):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("x" * 96_000)
    other = tmp_path / ("data/valid.txt" if said == "valid" else "v.txt")
    other.write_text("x" * 48_000)
    words = ["--validation", said.replace("v.txt", str(other))] if said not in ("", "valid") else []
    data = str(tmp_path / "data")
    text = planned(capsys, "--data", data, "--epochs", "10", "--device", "h100", *words)
    tokens = int(re.search(r"([\d,]+) tokens, about 10.0 epochs", text)[1].replace(",", ""))
    assert tokens == 960_000 * share


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
    (tmp_path / "run.toml").write_text(f'init = "{start}"\nblock_size = 128\nbatch_size = 12\n')
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
        (["--config", "nowhere.toml"], "name a TOML file"),
        (["--memroy", "80GB"], "did you mean --memory"),
    ],
)
def test_bad_input_is_one_sentence(capsys, words, sentence):
    text = planned(capsys, *words, code=2)
    assert sentence in text and text.count("\n") == 1


def test_what_a_device_cannot_do_is_not_planned_for_it(capsys):
    text = planned(capsys, "--device", "moai", "--precision", "bf16", code=1)
    assert "a switch of its own" in text and text.count("\n") == 1


def verdict_of(words, device):
    """What train.py says first to these words."""
    config = parse_settings(TrainConfig, "train.py", words)
    return one_line(config, resolve(config, device), device)


def test_the_line_of_a_run_that_fits():
    verdict = verdict_of([], find_device("cpu"))
    assert verdict.fits and verdict.advice == ""
    assert re.match(r"plan +[\d.]+ MB at most \(.*\), .* free on the cpu: fits$", verdict.line)


def test_the_line_of_a_run_that_does_not(monkeypatch):
    monkeypatch.setattr(Device, "free_memory", lambda self: 20 * 10**6)
    verdict = verdict_of([], find_device("cpu"))
    assert not verdict.fits and "does not fit" in verdict.line
    assert "--micro-batch-size" in verdict.advice or "--recompute" in verdict.advice


# Advice that is followed ---------------------------------------------------------------------

ADVISED = {
    "from scratch": (["--model", "cerebras-111m"], 0.5),
    "with clipping": (["--model", "cerebras-111m", "--grad-clip", "1.0"], 0.4),
    "in micro-batches": (["--model", "cerebras-111m", "--micro-batch-size", "4"], 0.4),
    "tuned": (["--init", "cerebras-111m"], 0.3),
    "tuned, 16 bits": (["--init", "cerebras-111m", "--precision", "bf16"], 0.5),
    "some layers": (["--init", "cerebras-111m", "--freeze-layers", "6"], 0.6),
    "an adapter": (["--init", "cerebras-111m", "--lora-rank", "8"], 0.6),
    "on a run": (["--resume", "RUN"], 0.97),
    "of a file": (["--config", "RUN/config.toml"], 0.97),
}


@pytest.mark.parametrize("kind", ["cpu", "mps"])
@pytest.mark.parametrize("case", ADVISED)
def test_advice_can_be_followed(case, kind, tmp_path, monkeypatch):
    """To the letter: with the flags added, every check of train.py passes, and it fits."""
    (words, share), device = ADVISED[case], Device(kind, torch.device("cpu"))
    words = [word.replace("RUN", str(tmp_path / "run")) for word in words]
    if "run" in words[-1]:
        make_run(tmp_path)
    if device.precision_missing("bf16") and "bf16" in words:
        pytest.skip("which it has not")
    asked = resolve(parse_settings(TrainConfig, "train.py", words), device)
    room = int(share * memory(job_of(asked, device)).total)
    monkeypatch.setattr(Device, "free_memory", lambda self: room)
    verdict = verdict_of(words, device)
    assert not verdict.fits
    advised = re.sub(r" \([^)]*\)|,", "", verdict.advice).split()
    if not advised:  # nothing that this device has is enough
        assert kind == "mps" or find_device("cpu").fused_backward_missing()
        return
    assert verdict_of([*words, *advised], device).fits
    assert "--lora-rank" not in advised or asked.start not in (None, asked.resumes)


def make_run(tmp_path):
    """A run of one step, with all that it records of itself."""
    settings = {"batch_size": 4, "block_size": 32, "steps": 1, "grad_clip": 1.0}
    places = {"init": str(base(tmp_path / "base")), "out": str(tmp_path / "run")}
    run_to_the_end(trainer_of(data=str(corpus(tmp_path / "corpus")), **settings, **places))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--fused-backward", "--grad-clip", "1"], "use --grad-clip 0"),
        (["--fused-backward", "--precision", "fp16-mixed"], "cannot take back a step"),
        (["--fused-backward", "--micro-batch-size", "2", "--device", "h100"],
         "say --micro-batch-size"),
        (["--lora-rank", "8"], "adapts a finished model"),
        (["--lora-alpha", "3"], "give it a --lora-rank"),
        (["--steps", "3", "--epochs", "2"], "give one of them"),
        (["--init", "cerebras-13b", "--freeze-layers", "100", "--device", "h100"],
         "the model has 40 layers"),
        (["--device", "4xlarge", "--recompute"], "--moai-activation-recomputation True"),
        (["--device", "moai", "--micro-batch-size", "2"], "say --micro-batch-size"),
        (["--device", "CUDA"], "did you mean cuda"),
        (["--device", "h100-141gb"], "is not known"),
        (["--memory", "9" * 400 + "GB"], "write it as 80GB"),
        (["--memory", "0.0000001MB"], "write it as 80GB"),
        (["--epochs", "inf"], "below a billion"),
        (["--seed", "1" + 30 * "0"], "below 2^63"),
        (["--batch-size", "99999999", "--block-size", "96"], "two billion tokens"),
    ],
)  # fmt: skip
def test_what_train_refuses_is_not_planned(capsys, words, sentence):
    text = planned(capsys, *words, code=2)
    assert sentence in text and text.count("\n") == 1


def test_flags_win_over_the_file_even_when_they_are_the_default(capsys, tmp_path):
    lines = ('model = "cerebras-111m"', 'precision = "bf16"', "recompute = true", 'device = "moai"')
    (tmp_path / "run.toml").write_text("\n".join(lines))
    words = ["--config", str(tmp_path / "run.toml"), "--precision", "fp32", "--no-recompute"]
    text = planned(capsys, *words, "--device", "h100")
    assert "at a time, fp32" in text and "H100 SXM" in text


def test_recomputation_on_moai_is_none_of_ours():
    words = ["--model", "cerebras-111m", "--moai-activation-recomputation", "True"]
    settings = resolve(parse_settings(TrainConfig, "train.py", words), None)
    cpu, moai = Device("cpu", torch.device("cpu")), Device("moai", torch.device("cuda"))
    assert not job_of(settings, cpu).recompute and job_of(settings, moai).recompute


def test_a_batch_is_divided_no_further_than_it_has_rows(capsys):
    """On 384 GCDs, a batch of 16 takes of each what one of 384 takes, and no 24th of it."""
    words = ["--init", "cerebras-13b", "--device", "48xlarge", "--block-size", "1024"]
    sizes = []
    for rows in ("16", "384"):
        text = planned(capsys, *words, "--batch-size", rows)
        line = next(line for line in text.splitlines() if line.startswith("48xLarge"))
        sizes.append(float(line.split()[2]))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_on_moai_the_platform_divides():
    verdict = verdict_of([], Device("moai", torch.device("cpu")))
    assert verdict.fits and "--device FLAVOR" in verdict.line


def test_rows_left_open_are_those_that_training_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trainer = trainer_of(data=str(corpus(tmp_path / "corpus")), out=str(tmp_path / "run"), steps=1)
    trainer.loader.close()
    job = job_of(trainer.settings, trainer.device)
    assert job.rows == trainer.settings.micro_batch_size and job.shape == trainer.model.config
    assert default_rows(batch_size=64, block_size=1024, vocab_size=50257) == 4


def step_seconds(text):
    return float(re.search(r"time +([\d.]+) s a step", text)[1])


def test_several_devices_are_planned_as_torchrun_would_start_them(monkeypatch, capsys):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")  # and put back afterwards
    words = ["--init", "cerebras-13b", "--device", "h100", "--batch-size", "64", "--gpus", "8"]
    minigpt(["plan", *words, "--precision", "bf16-mixed", "--recompute"])
    text = capsys.readouterr().out
    assert "8 devices, 8 rows each, --parallel fsdp, the model divided among 8" in text
    assert "fits      yes" in text and "gathered" in text
    assert re.search(
        r"sends +[\d.]+ GB a step from each, at 450 GB/s within machines: [\d.]+ s, ", text
    )
    alone = step_seconds(text)
    minigpt(["plan", *words, "--precision", "bf16-mixed", "--recompute", "--link", "10"])
    text = capsys.readouterr().out
    assert "at 10 GB/s" in text and step_seconds(text) > alone
    minigpt(["plan", *words, "--nodes", "2"])
    assert "say --network GB/s, or the time leaves that out" in capsys.readouterr().out
    minigpt(["plan", *words, "--nodes", "2", "--network", "50", "--parallel", "hsdp"])
    assert "at 450 GB/s within machines and 50 GB/s between" in capsys.readouterr().out
    minigpt(["plan", *words[:2], "--memory", "80GB", *words[4:]])
    text = capsys.readouterr().out
    assert "say --link GB/s" in text and "time      unknown without a --device" in text
    with pytest.raises(UsageError, match="--network is 0"):
        minigpt(["plan", *words, "--network", "0"])
    with pytest.raises(UsageError, match="leave out --gpus and --nodes"):
        minigpt(["plan", *words[:3], "moai", *words[4:]])
    with pytest.raises(UsageError, match="hsdp is for several machines"):
        minigpt(["plan", *words, "--parallel", "hsdp"])
