"""`python -m minigpt devices` on this machine, on machines made up, and on a MoAI one where every
function of torch.cuda would allocate the cluster.
"""

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minigpt.base.errors import UsageError
from minigpt.commands import devices as command
from minigpt.commands.devices import DevicesConfig, describe, devices_command
from minigpt.devices import device as host
from tests.helpers import smi_samples as samples
from tests.helpers.runs import ROOT, environment
from tests.helpers.smi_samples import prints
from tests.helpers.warm import warm


def said(timeout=5):
    return "\n".join(("%-7s %s" % line).rstrip() for line in describe(timeout))


def test_the_command_itself(tmp_path):
    done = subprocess.run(
        warm("-m", "minigpt", "devices"),
        capture_output=True,
        text=True,
        cwd=str(ROOT),
        env=environment(tmp_path),
    )
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert {"python", "torch", "cpu", "mps", "moai", "auto"} <= {line.split()[0] for line in lines}
    assert "torch   %s" % torch.__version__ in lines
    assert lines[-1].startswith("auto    --device auto takes ")


def test_it_is_listed():
    done = subprocess.run([sys.executable, "-m", "minigpt"], capture_output=True, cwd=str(ROOT))
    assert b"\n  devices " in done.stdout


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_none(timeout):
    with pytest.raises(UsageError, match="--timeout is"):
        DevicesConfig(timeout)


def test_memory_that_nothing_tells_is_unknown(monkeypatch):
    monkeypatch.setattr(command, "host_memory", lambda: (None, None))
    assert "unknown of memory, unknown free" in said()


def test_memory_without_proc(monkeypatch):
    def missing(self, *arguments):
        raise FileNotFoundError(str(self))

    monkeypatch.setattr(Path, "read_text", missing)
    total, free = host.host_memory()
    assert total > 1 << 20 and free is None
    monkeypatch.delattr(host.os, "sysconf")
    assert host.host_memory() == (None, None)


def test_a_container_has_what_it_is_allowed(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal:  8000 kB\nMemFree: 1 kB\nMemAvailable:  5000 kB\n",
        "/sys/fs/cgroup/memory.max": "4096000\n",
        "/sys/fs/cgroup/memory.current": "3072000\n",
        "/sys/fs/cgroup/memory.stat": "active_file 7\ninactive_file 1024000\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda self: files[str(self)])
    assert host.host_memory() == (4096000, 2048000)
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert host.host_memory() == (8192000, 5120000)


@pytest.fixture
def stock(monkeypatch):
    """A PyTorch built for CUDA, with the GPUs that a test puts on its list."""
    gpus = []
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpus[index])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (30e9, gpus[index].total_memory))
    return gpus


def gpu(name, major):
    return SimpleNamespace(name=name, total_memory=80e9, major=major)


def test_cuda_devices(stock):
    stock += [gpu("Ampere", 8), gpu("Turing", 7)]
    text = said()
    assert "cuda    0: Ampere, 80.0 GB of memory, 30.0 GB free, bf16\n" in text
    assert "cuda    1: Turing, 80.0 GB of memory, 30.0 GB free, no bf16\n" in text
    assert "rocm    not here: this PyTorch is not built for it\n" in text
    assert text.endswith("takes cuda")


def test_a_gpu_that_another_program_holds(stock, monkeypatch):
    def refuse(index):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    stock.append(gpu("Hopper", 9))
    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    assert "0: Hopper, 80.0 GB of memory, unknown free, bf16" in said()


def test_rocm_devices(stock, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.3")
    stock.append(gpu("MI250", 9))
    text = said()
    assert "rocm    0: MI250, 80.0 GB of memory, 30.0 GB free, bf16\n" in text
    assert "cuda    not here" in text and text.endswith("takes rocm")


def test_why_there_is_no_gpu_is_in_pytorchs_words(stock, monkeypatch):
    def warn():
        warnings.warn("The driver is too old (found 11040). Please update it.", stacklevel=2)
        return False

    assert "cuda    not here: no GPU is found\n" in said()
    monkeypatch.setattr(torch.cuda, "is_available", warn)
    assert "cuda    not here: The driver is too old (found 11040)\n" in said()


def test_an_apple_gpu(monkeypatch):
    backend = SimpleNamespace(is_built=lambda: True, is_available=lambda: True)
    monkeypatch.setattr(torch.backends, "mps", backend)
    assert "mps     here; its memory is the CPU's\n" in said()
    backend.is_available = lambda: False
    assert "mps     not here: no Apple GPU is found\n" in said()


def test_the_wrong_environment_is_pointed_out(tool):
    tool("moreh-smi", "exit 1")
    assert "this PyTorch is not Moreh's; but /" in said()


@pytest.fixture
def moai(monkeypatch):
    """Moreh's PyTorch. Whatever is called of torch.cuda is written down, and fails."""
    calls = []

    def forbid(name):
        def function(*arguments, **keywords):
            calls.append(name)
            raise AssertionError("torch.cuda.%s allocates the cluster" % name)

        return function

    for name in dir(torch.cuda):
        value = getattr(torch.cuda, name)
        if callable(value) and not isinstance(value, type) and not name.startswith("__"):
            monkeypatch.setattr(torch.cuda, name, forbid(name))
    monkeypatch.setattr(torch, "moreh", SimpleNamespace(), raising=False)
    monkeypatch.setattr(torch.version, "moreh", "24.5.0", raising=False)
    for name in command._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield
    assert calls == []


def test_moai_with_a_program_running(moai, tool, capsys):
    tool("moreh-smi", prints(samples.TUTORIAL))
    devices_command(DevicesConfig(timeout=5))
    lines = capsys.readouterr().out.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("moai"))
    shown = ["        " + line for line in samples.TUTORIAL.splitlines()]
    assert lines[start : start + 6] == ["moai    MoAI framework 24.5.0", *shown]
    expected = """\
        4xLarge.2048GB: 32 GCDs, 2,096,640 MiB: 16 MI250, nodes: 4 (as on KT's cloud)
        another flavor: moreh-switch-model, but not while a program runs, as one does
auto    --device auto takes moai"""
    assert lines[start + 6 :] == expected.splitlines()


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (samples.IDLE, "Large.256GB: 4 GCDs, 262,080 MiB: 2 MI250, nodes: 1 (as"),
        (samples.IDLE, "moreh-switch-model, but not while a program runs\nauto "),
        (samples.IDLE.replace("Large", "1.5xLarge"), "how many GPUs that is, is not published"),
        (samples.IDLE.replace("Large.256", "1.5xLarge.768"), "nodes: 2 (inferred from the name)"),
        (samples.TRIAL, "micro: how many GPUs that is, is not published"),
        (samples.SLIP, "8xLarge.2048GB: 64 GCDs, by the total memory"),
        (samples.UNSET, "4 (as on KT's cloud)\n        another flavor"),
        ("The server is away.\n", "The server is away.\n        moreh-smi shows no accelerator\n"),
    ],
)
def test_flavors_on_moai(moai, tool, sample, expected):
    tool("moreh-smi", prints(sample))
    assert expected in said()


def test_moai_of_2025(moai, tool, monkeypatch):
    monkeypatch.setenv("ACCELERATOR_PLATFORM_FLAVOR", "flavor-default-8")
    monkeypatch.setenv("MOREH_SDA_TOKEN", "secret")
    tool("ap-smi", prints(samples.AP_SMI))
    text = said()
    assert "\n        |      0  |  1779   |  flavor-default-8      |  43            |" in text
    assert "another flavor: ACCELERATOR_PLATFORM_FLAVOR=NAME before the command" in text
    assert "\n        ACCELERATOR_PLATFORM_FLAVOR=flavor-default-8\n" in text
    assert "secret" not in text


def test_what_moai_says_cannot_move_the_cursor(moai, tool, monkeypatch):
    monkeypatch.setenv("MOREH_VISIBLE_DEVICE", "0\r\x1b[2J")
    tool(
        "moreh-smi",
        prints(
            samples.IDLE.replace("MoAI Acc", "\x1b[31mMoAI\x07\u202e").replace("Large", "\x9bL")
        ),
    )
    text = said()
    assert r"\x1b[31mMoAI\x07\u202e" in text and r"\x9bL.256GB: how many" in text
    assert r"MOREH_VISIBLE_DEVICE=0\r\x1b[2J" in text
    assert all(line.isprintable() for line in text.split("\n"))


def test_moai_whose_tool_hangs_is_one_sentence(moai, tool):
    tool("moreh-smi", "exec sleep 60")
    text = said(timeout=1)
    assert "\n        moreh-smi gave no answer within 1 s; try it by itself\nauto " in text


def test_moai_without_a_tool_or_a_version(moai, tool, monkeypatch):
    monkeypatch.delattr(torch.version, "moreh")
    text = said()
    assert "MoAI framework unknown: torch.version.moreh is missing\n" in text
    assert "neither moreh-smi nor ap-smi is on the PATH\n" in text
