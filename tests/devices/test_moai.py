"""Training on MoAI as far as it can be known without one: a fake of Moreh's additions to PyTorch,
on a CPU. What the platform asks of a program is counted, not assumed.
"""

import json
from types import SimpleNamespace

import pytest
import torch

from minigpt.base.errors import DeviceError, UsageError
from minigpt.devices.device import Device, device_of, find_device
from minigpt.model.attention import Attention, explicit_attention
from minigpt.model.gpt import GPT
from minigpt.optim.execution import plain
from minigpt.training.build import create_run
from minigpt.training.closing import closing_report
from tests.helpers.runs import corpus, records
from tests.helpers.tuning import base, instructions, trainer_of

QUIET = {"log_every": 100, "eval_every": 0, "save_every": 0, "sample_every": 0}


@pytest.fixture
def platform(monkeypatch):
    """The fake; a list of what it was asked for."""
    calls = []

    def enable(**options):
        calls.append(options)

    moreh = SimpleNamespace(option=SimpleNamespace(enable_advanced_parallelization=enable))
    monkeypatch.setattr(torch, "moreh", moreh, raising=False)
    monkeypatch.setattr(torch.version, "moreh", "24.5.0", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # as some builds say
    monkeypatch.setattr("minigpt.devices.device._MOAI", "cpu")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return calls


@pytest.fixture
def trainer(tmp_path, monkeypatch, platform):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(name="run", **settings):
        values = {"batch_size": 4, "block_size": 32, "steps": 12, "warmup_steps": 1, "seed": 5}
        values.update(log_every=1, eval_tokens=320, out=str(tmp_path / name))
        if "init" not in settings:
            values["data"] = str(corpus(tmp_path / "corpus"))
        return trainer_of(**{**values, **settings})

    return make


def tuned(tmp_path, trainer, **settings):
    data = instructions(tmp_path / "functions.jsonl")
    values = {"init": str(base(tmp_path / "base")), "data": str(data), "block_size": 1024}
    return trainer(**{**values, **settings})


def test_found_by_itself_and_told_once_before_the_model_is_built(trainer, platform, monkeypatch):
    real, order = GPT.__init__, []

    def built(self, *args, **kwargs):
        order.append(len(platform))
        real(self, *args, **kwargs)

    monkeypatch.setattr(GPT, "__init__", built)
    run = trainer()
    assert run.device.kind == "moai" and platform == [{}]
    assert order and set(order) == {1}


def test_only_what_the_user_set_is_passed_on(trainer, platform):
    trainer(moai_num_stages=4, moai_distribute_parameter=True, moai_mixed_precision=False)
    assert platform == [{"num_stages": 4, "distribute_parameter": True, "mixed_precision": False}]
    trainer("without", moai_parallelization=False)
    assert len(platform) == 1


@pytest.mark.parametrize("kind", ["text", "packed", "adapter", "the tutorial's"])
def test_nothing_is_pulled_between_two_log_lines(tmp_path, trainer, monkeypatch, kind):
    """Every way to get a number out of a tensor, counted over five steps."""
    if kind == "text":
        run = trainer(**QUIET, steps=8)
    else:
        template = "moai" if kind == "the tutorial's" else "instruct"
        rank = 2 if kind == "adapter" else 0
        run = tuned(tmp_path, trainer, template=template, lora_rank=rank, **QUIET, steps=8)
    create_run(run)
    pulls = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu"):
        real = getattr(torch.Tensor, name)

        def counted(self, *args, _real=real, _name=name, **kwargs):
            if 1 < run.state.step < 7:
                pulls.append(_name)
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    run.train()
    assert run.state.step == 8 and pulls == []


def test_shapes_never_change_and_the_batch_comes_whole(tmp_path, trainer, monkeypatch):
    """In training and in validation, though the last batch of that is smaller."""
    run = tuned(tmp_path, trainer, steps=4, eval_every=2, eval_tokens=0, batch_size=4)
    assert run.settings.micro_batch_size == 4
    shapes, features = set(), run.model.features

    def seen(tokens, positions=None, documents=None, cache=None):
        shapes.add((tokens.shape, positions.shape, documents.shape))
        return features(tokens, positions, documents, cache)

    vars(run.model)["features"] = seen
    assert len(run.validation) % 4
    create_run(run)
    run.train()
    assert shapes == {(torch.Size([4, 1024]),) * 3}


def test_filling_up_does_not_change_what_validation_finds(tmp_path, trainer, monkeypatch):
    run = tuned(tmp_path, trainer, eval_tokens=0)
    filled = run.validate()
    run.objective.same_shapes = run.objective.masked = False
    plain = run.validate()
    assert filled.tokens == plain.tokens and filled.nats == pytest.approx(plain.nats, rel=1e-6)


def test_it_computes_what_a_cpu_computes(trainer, tmp_path):
    here = trainer("moai", eval_every=0)
    there = trainer("cpu", eval_every=0, device="cpu")
    for run in (here, there):
        create_run(run)
        run.train()
    assert list(records(here.run).values()) == pytest.approx(
        list(records(there.run).values()), rel=1e-4
    )


def test_explicit_attention_fp32_weights_no_autocast_a_plain_optimizer(trainer, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("not on MoAI")

    monkeypatch.setattr(torch, "autocast", refuse)
    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    if hasattr(torch, "compile"):
        monkeypatch.setattr(torch, "compile", refuse)
    run = trainer(compile=True, steps=2)
    create_run(run)
    run.train()
    layers = [module for module in run.model.modules() if isinstance(module, Attention)]
    assert layers and all(layer.attend is explicit_attention for layer in layers)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert run.optimizer.execution is plain


def test_a_loss_is_printed_with_the_digits_it_has(trainer, capsys):
    run = trainer(steps=1, eval_every=0)
    create_run(run)
    run.train()
    line = next(line for line in capsys.readouterr().out.splitlines() if "warm-up" in line)
    loss = line.split("loss ")[1].split()[0]
    assert len(loss.replace(".", "")) <= 3
    for line in closing_report(run).splitlines():
        if line.startswith("held out"):
            assert len(line.split("loss ")[1].split()[0].replace(".", "")) <= 3
    assert "loss" in json.loads((run.run / "metrics.jsonl").read_text().splitlines()[0])


def test_no_sample_makes_a_graph_for_every_token(trainer, monkeypatch):
    run = trainer(steps=2, sample_every=1)
    monkeypatch.setattr(run, "sample", lambda *_: pytest.fail("a sample"))
    create_run(run)
    run.train()
    assert not (run.run / "samples.md").exists()


@pytest.mark.parametrize(
    "settings, error, says",
    [
        ({"recompute": True}, UsageError, "--moai-activation-recomputation True"),
        ({"precision": "bf16-mixed"}, DeviceError, "by a switch of its own"),
        ({"precision": "fp16-mixed"}, DeviceError, "by a switch of its own"),
        ({"fused_backward": True}, DeviceError, "one graph of its own"),
        ({"micro_batch_size": 2}, UsageError, "say --micro-batch-size"),
    ],
)
def test_what_moai_cannot_have(settings, error, says, trainer):
    with pytest.raises(error, match=says):
        trainer(**settings)


@pytest.mark.parametrize("settings", [{}, {"moai_parallelization": False}])
@pytest.mark.parametrize("world", ["2", "4", "many"])
def test_torchrun_is_refused(world, settings, trainer, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(DeviceError, match="start one with: python"):
        trainer(**settings)


def test_one_process_of_torchrun_is_not(trainer, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert str(trainer().device) == "moai"


def test_cuda_is_called_by_its_name_there(platform):
    with pytest.raises(DeviceError, match="use --device moai"):
        find_device("cuda")


def test_a_framework_without_parallelization_is_named(trainer, monkeypatch):
    monkeypatch.setattr(torch, "moreh", SimpleNamespace(), raising=False)
    with pytest.raises(DeviceError, match="--no-moai-parallelization"):
        trainer()


def test_weights_leave_the_device_one_tensor_at_a_time(trainer, monkeypatch):
    from minigpt.checkpoint import safetensors

    run, moved = trainer(steps=1), []
    real = safetensors.as_bytes

    def counted(tensor):
        moved.append(tensor.numel())
        return real(tensor)

    monkeypatch.setattr(safetensors, "as_bytes", counted)
    create_run(run)
    run.train()
    sizes = sorted(p.numel() for p in run.model.parameters())
    assert sorted(moved)[-1] == sizes[-1] and len(moved) == 3 * len(sizes)


def test_what_each_kind_of_device_says_of_itself(monkeypatch):
    monkeypatch.setattr("minigpt.devices.device.is_moai", lambda: False)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    cpu, cuda = device_of(torch.device("cpu")), device_of(torch.device("cuda"))
    assert (cpu.kind, cpu.on_cpu, cpu.generator_device.type) == ("cpu", True, "cpu")
    assert (cuda.kind, cuda.on_cpu, cuda.generator_device.type) == ("cuda", False, "cuda")
    assert not cpu.static_shapes and not cuda.static_shapes and not cuda.recompute_missing()
    monkeypatch.setattr(torch.version, "hip", "6.0", raising=False)
    assert device_of(torch.device("cuda")).kind == "rocm"
    monkeypatch.setattr("minigpt.devices.device.is_moai", lambda: True)
    moai = device_of(torch.device("cuda"))
    assert (moai.kind, moai.on_cpu, moai.generator_device.type) == ("moai", False, "cpu")
    assert not moai.fused_attention and moai.static_shapes and moai.recompute_missing()
    assert moai.free_memory() is moai.peak_memory() is None and moai.gpu_name() == ""
    assert device_of(torch.device("mps")).generator_device.type == "cpu"


@pytest.mark.parametrize(("kind", "times"), [("cuda", 1), ("cpu", 0), ("moai", 0)])
def test_what_is_sent_arrives_through_locked_memory_where_there_is_some(kind, times, monkeypatch):
    pinned = []

    def pin(tensor):
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    numbers = torch.arange(5)
    sent = Device(kind, torch.device("cpu")).send(numbers)
    assert torch.equal(sent, numbers) and len(pinned) == times
