"""What a kind of device says it can do, where it stands in for one that is not here."""

import importlib.util
import os

import pytest
import torch

from minigpt.commands.cli import run
from minigpt.devices import PRECISIONS
from minigpt.devices.device import Device, find_device

CUDA, CPU = Device("cuda", torch.device("cuda")), find_device("cpu")


@pytest.mark.parametrize(("version", "missing"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_a_gpu_that_only_imitates_bfloat16_has_none(version, missing, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: version)
    for precision in ("bf16", "bf16-mixed"):
        assert ("fp16-mixed" in CUDA.precision_missing(precision)) == missing
    assert CUDA.precision_missing("fp16-mixed") == CUDA.precision_missing("fp32") == ""


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="PyTorch 2.0 and later")
@pytest.mark.parametrize(("found", "says"), [(None, "needs the triton package"), (object(), "")])
def test_compiling_for_a_gpu_needs_triton(found, says, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    assert says in CUDA.compiler_missing()
    assert bool(says) == bool(CUDA.compiler_missing()) and CPU.compiler_missing() == ""


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_fp32_is_known_to_work_on_mps(precision):
    missing = Device("mps", torch.device("mps")).precision_missing(precision)
    assert bool(missing) == (precision != "fp32")


def test_a_gpu_has_random_states_and_a_memory_counter_of_its_own(monkeypatch):
    state = torch.ones(3, dtype=torch.uint8)
    given = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", given.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    assert set(CUDA.rng_state()) == {"cpu", "cuda"} and set(CPU.rng_state()) == {"cpu"}
    CUDA.set_rng_state(CUDA.rng_state())
    assert given == [state]
    assert CUDA.peak_memory() == 123 and CPU.peak_memory() is None


def test_determinism_is_asked_for_where_it_is_not_the_rule(monkeypatch):
    asked = []
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    CPU.be_deterministic()
    Device("moai", torch.device("cuda")).be_deterministic()
    assert asked == [] and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    CUDA.be_deterministic()
    assert asked == [True] and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_not_all_that_is_free_on_a_gpu_is_for_tensors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100 * 10**9, 141 * 10**9))
    assert 90 * 10**9 < CUDA.free_memory() < 100 * 10**9


def test_no_memory_anywhere_in_a_command_is_one_sentence(capsys):
    def full(arguments):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    assert run(full, []) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(RuntimeError):
        run(full, ["--debug"])


def test_other_failures_are_not_hidden():
    def broken(arguments):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        run(broken, [])
