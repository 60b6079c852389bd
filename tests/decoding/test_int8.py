"""Weights in 8 bits: what they are, that every way of multiplying by them gives the same, and what
the commands say.
"""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minigpt import load_model
from minigpt.__main__ import command as minigpt
from minigpt.base.errors import DeviceError, UsageError
from minigpt.decoding.generate import compiled_step, generate
from minigpt.devices.device import Device
from minigpt.model import int8
from minigpt.model.gpt import GPT, GPTConfig
from minigpt.model.int8 import Int8Linear, quantize
from tests.helpers.runs import corpus
from tests.helpers.tuning import base, run_to_the_end, tuning

DTYPES = [torch.float32, torch.bfloat16]


def test_each_weight_is_the_nearest_of_255_steps_of_its_row():
    linear = nn.Linear(300, 50)
    with torch.no_grad():
        linear.weight[3] = 0.0
        linear.weight[4] *= 1e-20
    held = Int8Linear(linear)
    assert held.q.dtype == torch.int8 and held.q.abs().amax(1)[[0, 1, 2, 4]].eq(127).all()
    error = (held.q * held.scale.unsqueeze(1) - linear.weight).abs().amax(1)
    assert (error <= 0.501 * linear.weight.abs().amax(1) / 127).all()
    assert (error[3], held(torch.randn(1, 300))[0, 3]) == (0, linear.bias[3])


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("width", [200, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_is_that_of_the_weights_written_out(dtype, width, rows):
    held = Int8Linear(nn.Linear(width, 50).to(dtype))
    x = torch.randn(rows, 1, width).to(dtype)
    whole = held.q.double() * held.scale.double().unsqueeze(1)
    expected = F.linear(x.double(), whole, held.bias.double())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert (held(x) - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch, "compile"), reason="no torch.compile")
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_it_is_the_same(dtype):
    held = Int8Linear(nn.Linear(200, 64).to(dtype))
    x = torch.randn(1, 1, 200).to(dtype)
    with torch.inference_mode():
        mine, plain = torch.compile(held)(x), held(x)
    assert (mine - plain).abs().max() <= (1e-5 if dtype == torch.float32 else 2e-2)


def test_a_model_is_nearly_what_it_was_and_a_quarter_in_size():
    model = GPT(GPTConfig(257, 128, 4, 4, 128)).eval()
    small = quantize(copy.deepcopy(model))
    tokens = torch.randint(257, (2, 60))
    logits = model(tokens)
    assert 0 < (small(tokens) - logits).norm() <= 0.02 * logits.norm()
    assert sum(isinstance(module, Int8Linear) for module in small.modules()) == 16
    blocks = [held_bytes(m.blocks) for m in (model, small)]
    assert blocks[1] <= 0.27 * blocks[0]


def held_bytes(module):
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


def test_loaded_it_is_what_the_whole_model_becomes(tmp_path):
    """One matrix at a time: none is there in full afterwards. An adapter comes merged."""
    run = run_to_the_end(tuning(tmp_path, lora_rank=2, steps=2))
    for path in (tmp_path / "base", run):
        mine, expected = load_model(path, int8=True), quantize(load_model(path))
        theirs = expected.state_dict()
        assert mine.state_dict().keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.state_dict().items())
        assert not any(isinstance(module, nn.Linear) for module in mine.blocks.modules())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch, "compile"), reason="no torch.compile")
def test_greedy_text_is_the_same_compiled():
    model = quantize(GPT(GPTConfig(257, 128, 2, 4, 128, init_std=0.1)).eval())
    texts = [generate(model, [1, 2, 3], 30, 0.0, step=step) for step in (None, compiled_step())]
    assert texts[0] == texts[1]


def test_the_commands_take_it_and_evaluate_says_what_it_costs(tmp_path, capsys):
    checkpoint, text = str(base(tmp_path / "base")), str(corpus(tmp_path / "corpus"))
    words = ["--checkpoint", checkpoint, "--quantize", "int8"]
    minigpt(["generate", *words, "--prompt", "def", "--max-new-tokens", "5", "--seed", "1"])
    assert capsys.readouterr().out.startswith("def")
    minigpt(["evaluate", *words, "--data", text, "--block-size", "64", "--eval-tokens", "2000"])
    said = capsys.readouterr().out
    small = float(re.search(r"loss ([\d.]+), perp", said).group(1))
    whole, more = re.search(r"without --quantize: loss ([\d.]+), ([+-][\d.]+) by it", said).groups()
    assert small - float(whole) == pytest.approx(float(more), abs=2e-4)
    with pytest.raises(UsageError, match="quantize is 'int4'"):
        minigpt(["generate", "--checkpoint", checkpoint, "--quantize", "int4"])


def test_what_does_not_fit_is_said_before_it_is_read(tmp_path, capsys, monkeypatch):
    """Of 13B on a card of 24 GB it is said what fits instead; of this model in proportion."""
    shape = GPTConfig(257, 128, 4, 4, 256)
    model, text = base(tmp_path / "base", shape=shape), str(corpus(tmp_path / "corpus"))
    whole = 4 * shape.parameter_count()
    words = ["--checkpoint", str(model)]
    more = ["--data", text, "--block-size", "64", "--eval-tokens", "1000"]
    weights, intact = model / "model.safetensors", (model / "model.safetensors").read_bytes()
    weights.write_bytes(bytes(len(intact)))  # who reads it says that it is damaged
    monkeypatch.setattr(Device, "free_memory", lambda device: whole // 2)
    said = r"the weights of \S+ take 13.0 MB, and 6.5 MB are free on cpu"
    for name, rest in (("generate", ["--prompt", "a"]), ("evaluate", more)):
        with pytest.raises(DeviceError, match=said) as error:
            minigpt([name, *words, *rest])
        assert error.value.fix == "--quantize int8 takes 3.6 MB"
    monkeypatch.setattr(Device, "free_memory", lambda device: whole // 5)
    with pytest.raises(DeviceError, match=r"take 3.6 MB, and 2.6 MB .* use another"):
        minigpt(["generate", *words, "--quantize", "int8"])
    weights.write_bytes(intact)
    monkeypatch.setattr(Device, "free_memory", lambda device: whole // 2)
    minigpt(["evaluate", *words, *more, "--quantize", "int8"])
    said = capsys.readouterr()
    assert "loss" in said.out and "is not known here: the weights of" in said.err


@pytest.mark.skipif(int8._PACKED is None, reason="this PyTorch has no kernel for it")
def test_pytorchs_kernel_is_used_for_few_rows_and_the_plain_product_for_many():
    held = Int8Linear(nn.Linear(64, 64).bfloat16())
    used = [held._has_kernel(torch.zeros(rows, 64).bfloat16(), rows) for rows in (1, 4, 5)]
    assert used == [True, True, False]
    odd = Int8Linear(nn.Linear(200, 64).bfloat16())  # it would read beyond its rows
    assert not odd._has_kernel(torch.zeros(1, 200).bfloat16(), 1)
