"""Each kind of step against torch.optim.AdamW with torch's own clipping."""

import copy

import pytest
import torch
from torch import nn

from minigpt.optim.adamw import AdamW
from minigpt.optim.update import Clipped, InBackward, Scaled, Update

needs_hook = pytest.mark.skipif(
    not hasattr(torch.Tensor, "register_post_accumulate_grad_hook"), reason="PyTorch 2.1 and later"
)
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))


def micro_batches(step, count=2):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(4, 6, generator=generator) for _ in range(count)]


def take_steps(model, update, steps, count=2):
    norms = []
    for step in steps:
        for rows in micro_batches(step, count):
            update.backward(model(rows).square().mean() / count)
        norms.append(update.finish())
        assert all(p.grad is None for p in model.parameters())
    assert all(norm.dim() == 0 and norm.dtype == torch.float32 for norm in norms)
    return [norm.item() for norm in norms]


def torchs(steps, limit, count=2):
    """The model after these steps of PyTorch's own, and the norms of the gradients."""
    model, norms = network(), []
    optimizer = torch.optim.AdamW(model.parameters(), **SETTINGS)
    for step in steps:
        for rows in micro_batches(step, count):
            (model(rows).square().mean() / count).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit or float("inf"))
        norms.append(norm.item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model, norms


def assert_same(mine, theirs, tolerance=1e-6):
    for a, b in zip(mine.parameters(), theirs.parameters()):
        assert (a - b).abs().max().item() <= tolerance


def kinds(model, limit):
    optimizer = AdamW(model.parameters(), **SETTINGS)
    yield Clipped(optimizer, model.parameters(), limit)
    yield Scaled(optimizer, model.parameters(), limit, 2.0**10)


@pytest.mark.parametrize("kind", [0, 1], ids=["Clipped", "Scaled"])
@pytest.mark.parametrize("limit", [0.0, 0.05, 1e9])
def test_equals_torch_with_its_clipping(kind, limit):
    model = network()
    update = list(kinds(model, limit))[kind]
    norms = take_steps(model, update, range(20))
    theirs, reference = torchs(range(20), limit)
    assert norms == pytest.approx(reference, rel=1e-4)
    assert_same(model, theirs)


def test_frozen_weights_are_left_alone():
    model = network()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], **SETTINGS)
    take_steps(model, Clipped(optimizer, model.parameters(), 1.0), range(3))
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model[2].weight, before[2].weight)


# float16's loss scale ------------------------------------------------------------------------


def overflow(update, model, value=float("inf")):
    update.backward(model(micro_batches(0)[0]).sum() * value)
    return update.finish().item()


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
def test_a_step_that_overflows_is_skipped_and_halves_the_scale(value):
    model = network()
    optimizer = AdamW(model.parameters(), **SETTINGS)
    update = Scaled(optimizer, model.parameters(), 1.0, 2.0**10, clean_steps=7)
    assert overflow(update, model, value) == 0.0  # there was no norm before
    assert_same(model, network(), 0.0)
    assert update.saved() == {"loss_scale": 2.0**9, "clean_steps": 0, "skipped_steps": 1}
    assert optimizer.param_groups[0]["step"] == 0
    last = take_steps(model, update, range(3))[-1]
    assert overflow(update, model, value) == last
    assert update.saved() == {"loss_scale": 2.0**8, "clean_steps": 0, "skipped_steps": 2}
    assert_same(model, torchs(range(3), 1.0)[0])


def test_an_overflow_in_one_micro_batch_spoils_the_step():
    model = network()
    update = list(kinds(model, 1.0))[1]
    update.backward(model(micro_batches(0)[0]).sum() * float("inf"))
    update.backward(model(micro_batches(0)[1]).sum())
    update.finish()
    assert update.saved()["skipped_steps"] == 1
    assert_same(model, network(), 0.0)


def test_the_scale_doubles_after_2000_clean_steps():
    model = network()
    optimizer = AdamW(model.parameters(), **SETTINGS)
    update = Scaled(optimizer, model.parameters(), 1.0, 8.0, clean_steps=1998, skipped_steps=3)
    take_steps(model, update, [0])
    assert update.saved() == {"loss_scale": 8.0, "clean_steps": 1999, "skipped_steps": 3}
    take_steps(model, update, [1])
    assert update.saved() == {"loss_scale": 16.0, "clean_steps": 0, "skipped_steps": 3}


def test_what_is_saved_starts_the_next_one_where_this_one_was():
    whole, half = network(), network()
    update = list(kinds(whole, 1.0))[1]
    overflow(update, whole)
    take_steps(whole, update, range(4))
    optimizer = AdamW(half.parameters(), **SETTINGS)
    first = Scaled(optimizer, half.parameters(), 1.0, 2.0**10)
    overflow(first, half)
    take_steps(half, first, range(2))
    second = Scaled(optimizer, half.parameters(), 1.0, **first.saved())
    take_steps(half, second, range(2, 4))
    assert second.saved() == update.saved()
    assert_same(whole, half, 0.0)


def test_the_others_have_nothing_to_save():
    model = network()
    assert next(kinds(model, 1.0)).saved() == Update().saved() == {}


# Inside the backward pass --------------------------------------------------------------------


@needs_hook
def test_in_backward_equals_plain_steps_without_clipping():
    model, other = network(), network()
    norms = take_steps(model, InBackward(AdamW(model.parameters(), **SETTINGS)), range(20), 1)
    clipped = next(kinds(other, 0.0))
    assert norms == pytest.approx(take_steps(other, clipped, range(20), 1))
    assert_same(model, other, 0.0)
    assert_same(model, torchs(range(20), 0.0, 1)[0])


def slowing_down(in_backward):
    """A model of two groups after five steps at a falling rate."""
    model = network()
    groups = [
        {"params": list(model[0].parameters()), "weight_decay": 0.0, "lr_scale": 0.5},
        {"params": list(model[2].parameters())},
    ]
    optimizer = AdamW(groups, **SETTINGS)
    update = InBackward(optimizer) if in_backward else Clipped(optimizer, model.parameters(), 0.0)
    optimizer.load_state_dict(optimizer.state_dict())  # puts new groups in place of the old
    for step in range(5):
        optimizer.set_lr(1e-2 / (1 + step))
        take_steps(model, update, [step], 1)
    assert [group["step"] for group in optimizer.param_groups] == [5, 5]
    return model


@needs_hook
def test_in_backward_uses_each_groups_own_settings_and_the_rate_of_the_moment():
    assert_same(slowing_down(True), slowing_down(False), 0.0)


@needs_hook
def test_in_backward_a_second_micro_batch_is_refused():
    model = network()
    update = InBackward(AdamW(model.parameters(), **SETTINGS))
    first, second = micro_batches(0)
    update.backward(model(first).square().mean())
    with pytest.raises(AssertionError, match="one micro-batch"):
        update.backward(model(second).square().mean())


@needs_hook
def test_in_backward_no_two_layers_have_gradients_at_once():
    width, depth = 50, 10
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(depth)))
    optimizer, most = AdamW(model.parameters(), **SETTINGS), []
    real = optimizer.step_weight

    def counted(*arguments):
        most.append(sum(p.grad is not None for p in model.parameters()))
        real(*arguments)

    optimizer.step_weight = counted
    update = InBackward(optimizer)
    update.backward(model(torch.randn(2, width)).square().mean())
    assert len(most) == depth and max(most) == 1
