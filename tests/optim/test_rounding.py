"""bfloat16 weights that move as float32 ones do:  weight + carry = the weight,  E[round(x)] = x"""

import pytest
import torch

from minigpt.optim.adamw import AdamW
from minigpt.optim.execution import compiled, in_slices
from minigpt.optim.rounding import round_stochastically, split

needs_compiler = pytest.mark.skipif(not hasattr(torch, "compile"), reason="PyTorch 2.0 and later")


def test_rounding_by_chance_is_right_on_average():
    x = torch.full((200_000,), 1.0 + 0.25 / 128)  # a quarter of the way between two neighbours
    rounded = round_stochastically(x).float()
    assert set(rounded.tolist()) == {1.0, 1.0 + 1 / 128}
    assert abs((rounded.mean() - x.mean()).item()) < 3e-5


def test_rounding_by_chance_keeps_what_needs_no_rounding():
    x = torch.randn(1000).bfloat16().float()
    x[:3] = torch.tensor([0.0, -2.0, 1e-38])
    exact = x.bfloat16().float()
    assert torch.equal(round_stochastically(exact).float(), exact)


def test_negative_numbers_round_the_same_way():
    torch.manual_seed(1)
    x = -torch.rand(100_000)
    assert abs((round_stochastically(x).float() - x).mean().item()) < 1e-5


def test_a_weight_and_its_carry_hold_sixteen_bits():
    x = torch.randn(10_000)
    upper, lower = split(x)
    assert ((upper.float() + lower.float()) - x).abs().max() <= 2**-16 * x.abs().max()


def test_the_upper_half_is_the_nearest_bfloat16():
    x = torch.randint(-(2**31), 2**31 - 1, (200_000,), dtype=torch.int32).view(torch.float32)
    x = torch.cat([x[x.isfinite()], torch.tensor([0.0, -0.0, 3.4e38, -3.4e38, float("inf")])])
    assert torch.equal(split(x)[0], x.bfloat16())


def test_nan_stays_nan_whichever_bits_it_has():
    all_bits = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1], dtype=torch.int32).view(torch.float32)
    assert split(all_bits)[0].isnan().all() and round_stochastically(all_bits).isnan().all()


@needs_compiler
def test_a_compiler_does_not_drop_what_is_carried():
    x = torch.randn(1000)
    for mine, reference in zip(torch.compile(split)(x), split(x)):
        assert torch.equal(mine, reference) and reference.any()


def hundred_steps(optimizer, weight, start):
    """The path of a weight under gradients with a little signal in much noise."""
    generator = torch.Generator().manual_seed(7)
    signal = torch.randn(start.shape, generator=generator)
    for _ in range(100):
        noise = torch.randn(start.shape, generator=generator)
        weight.grad = (0.3 * signal + noise).mul(1e-3).to(weight.dtype)
        optimizer.step()
    return (weight.detach().float() - start).flatten()


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, 0).item()


@pytest.mark.parametrize("execution", [in_slices, pytest.param(compiled, marks=needs_compiler)])
def test_a_hundred_small_steps_go_where_float32_goes(execution):
    """lr 1e-5, weights of 0.02: plain bfloat16 moves one weight in six, and elsewhere."""
    torch.manual_seed(0)
    start = (0.02 * torch.randn(300, 300)).bfloat16().float()
    settings = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}

    def moved(kind, dtype, **more):
        weight = torch.nn.Parameter(start.to(dtype).clone())
        optimizer = kind([weight], **settings, **more)
        return hundred_steps(optimizer, weight, start), optimizer.state[weight]

    exact, _ = moved(AdamW, torch.float32)
    plain, _ = moved(torch.optim.AdamW, torch.bfloat16)
    ours, state = moved(AdamW, torch.bfloat16, execution=execution)
    assert cosine(plain, exact) < 0.5 and (plain != 0).float().mean() < 0.2
    assert cosine(ours, exact) > 0.99 and (ours != 0).float().mean() > 0.8
    assert cosine(ours + state["carry"].float().flatten(), exact) > 0.9999
    kinds = dict.fromkeys(("mean", "square", "carry"), torch.bfloat16)
    assert {name: tensor.dtype for name, tensor in state.items()} == kinds
