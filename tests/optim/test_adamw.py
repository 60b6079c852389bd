"""AdamW against torch's own, over many steps, however it is run."""

import copy

import pytest
import torch

from minigpt.model.gpt import GPT, GPTConfig
from minigpt.optim.adamw import AdamW, decay_groups
from minigpt.optim.execution import SLICE, compiled, in_slices, plain
from minigpt.optim.update import clip_scale

SHAPE = GPTConfig(vocab_size=3001, n_positions=16, n_layer=2, n_head=3, n_embd=102)
EXECUTIONS = [in_slices, plain] + ([compiled] if hasattr(torch, "compile") else [])


def pair(execution=in_slices):
    torch.manual_seed(0)
    ours = GPT(SHAPE)
    theirs = copy.deepcopy(ours)
    mine = AdamW(decay_groups(ours, 0.1), 1e-3, (0.9, 0.95), 1e-8, 0.1, execution)
    reference = torch.optim.AdamW(decay_groups(theirs, 0.1), 1e-3, (0.9, 0.95), 1e-8)
    return ours, theirs, mine, reference


def give_gradients(ours, theirs, size=1e-2):
    for mine, other in zip(ours.parameters(), theirs.parameters()):
        mine.grad = torch.randn_like(mine) * size
        other.grad = mine.grad.clone()


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_equals_torch_over_100_steps(execution):
    """To 1e-6, with a learning rate that changes every step, some tensors larger than a slice."""
    ours, theirs, mine, reference = pair(execution)
    assert max(p.numel() for p in ours.parameters()) > SLICE
    for step in range(100):
        give_gradients(ours, theirs)
        mine.set_lr(1e-3 / (1 + step))
        for group in reference.param_groups:
            group["lr"] = 1e-3 / (1 + step)
        mine.step()
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        assert (a - b).abs().max().item() <= 1e-6


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="PyTorch 2.0 and later")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_for_one_pair_of_betas_it_serves_another(dtype):
    """What the compiler keeps, in the process and on disk, must not bring the first ones back."""
    start, gradient = torch.randn(300, 300).to(dtype), torch.randn(300, 300).to(dtype)
    for betas in ((0.9, 0.95), (0.8, 0.999)):
        states = []
        for execution in (in_slices, compiled):
            weight = torch.nn.Parameter(start.clone())
            weight.grad = gradient.clone()
            optimizer = AdamW([weight], betas=betas, execution=execution)
            for _ in range(3):
                optimizer.step()
            states.append(optimizer.state[weight])
        for name in ("mean", "square"):
            eager, other = (state[name].float() for state in states)
            assert (other - eager).norm() <= 0.01 * eager.norm()


def test_decay_falls_on_matrices_and_embeddings_only():
    model = GPT(SHAPE)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed = {n for n, p in model.named_parameters() if p.dim() >= 2}
    for group in decay_groups(model, 0.1):
        members = {names[id(p)] for p in group["params"]}
        assert members <= decayed if group["weight_decay"] else not members & decayed
    assert "token_embedding.weight" in decayed
    assert "final_norm.weight" not in decayed


def test_a_parameter_without_gradient_does_not_move():
    ours, theirs, mine, _ = pair()
    give_gradients(ours, theirs)
    ours.final_norm.weight.grad = None
    before = ours.final_norm.weight.detach().clone()
    mine.step()
    assert torch.equal(before, ours.final_norm.weight)


def test_mup_groups_scale_the_rate_of_the_matrices_in_blocks():
    model = GPT(SHAPE)
    scales = {}
    for group in decay_groups(model, 0.1, hidden_lr_scale=0.25):
        scales.update({id(p): group["lr_scale"] for p in group["params"]})
    assert scales[id(model.blocks[0].mlp.up.weight)] == 0.25
    assert scales[id(model.blocks[0].mlp.up.bias)] == 1.0
    assert scales[id(model.token_embedding.weight)] == 1.0


@pytest.mark.parametrize("limit", [0.5, 1e9])
def test_clipping_equals_torch(limit):
    """The norm, and the step taken with the scale, are those of torch's clip_grad_norm_."""
    ours, theirs, mine, reference = pair()
    give_gradients(ours, theirs)
    norm, scale = clip_scale(ours.parameters(), limit)
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    mine.step(scale)
    reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        assert (a - b).abs().max().item() <= 1e-6


def test_no_limit_means_a_scale_of_one():
    ours, theirs, _, _ = pair()
    give_gradients(ours, theirs)
    assert clip_scale(ours.parameters(), 0.0)[1] == 1.0


def test_saved_and_loaded_as_any_optimizer_of_torch_it_goes_on_to_the_last_bit():
    ours, theirs, mine, _ = pair()
    other = AdamW(decay_groups(theirs, 0.1), 5.0)
    for step in range(4):
        give_gradients(ours, theirs)
        mine.step()
        if step < 2:
            for there, here in zip(theirs.parameters(), ours.parameters()):
                there.data.copy_(here.data)
            other.load_state_dict(copy.deepcopy(mine.state_dict()))
        else:
            other.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    assert other.param_groups[0]["step"] == 4


def test_a_rate_of_zero_moves_nothing_and_counts_the_step():
    ours, theirs, mine, _ = pair()
    give_gradients(ours, theirs)
    mine.set_lr(0.0)
    mine.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    assert mine.param_groups[0]["step"] == 1 and mine.state[ours.head_weight]["mean"].any()
