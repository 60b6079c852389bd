"""m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
w = w - lr decay w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

(Loshchilov & Hutter 2019, algorithm 2, with the decay multiplied by the rate, as torch has it.)
"""

import math

import pytest
import torch

from minigpt.optim.adamw import AdamW, decay_groups
from tests.helpers.reference import assert_close, every_shape, pair, tokens
from tests.parity.test_08_gradients import backward, laid_out

LR, BETA1, BETA2, EPS, DECAY = 1e-3, 0.9, 0.95, 1e-8, 0.1


def random_steps(shape, count=20):
    """Weights, and gradients for `count` steps, of every size from 1e-6 to 1e3."""
    weight = torch.randn(shape)
    return weight, [torch.randn(shape) * 10.0 ** torch.randint(-6, 4, shape) for _ in range(count)]


def test_equals_the_formula():
    start, gradients = random_steps((7, 11))
    weight = torch.nn.Parameter(start.clone())
    optimizer = AdamW([weight], LR, (BETA1, BETA2), EPS, DECAY)
    w, m, v = start.double(), torch.zeros(7, 11).double(), torch.zeros(7, 11).double()
    for t, gradient in enumerate(gradients, 1):
        weight.grad = gradient.clone()
        optimizer.step()
        g = gradient.double()
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g**2
        m_hat, v_hat = m / (1 - BETA1**t), v / (1 - BETA2**t)
        w = w - LR * DECAY * w - LR * m_hat / (v_hat.sqrt() + EPS)
        assert_close(weight.detach().double(), w)


def test_equals_torchs():
    start, gradients = random_steps((64, 33))
    mine, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    ours = AdamW([mine], LR, (BETA1, BETA2), EPS, DECAY)
    theirs = torch.optim.AdamW([other], LR, (BETA1, BETA2), EPS, DECAY)
    for gradient in gradients:
        mine.grad, other.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
        assert_close(mine.detach(), other.detach(), 1e-6)
    moved = (mine.detach() - start).abs().mean().item()
    assert math.isclose(moved, 20 * LR, rel_tol=0.9)  # it has gone somewhere


@pytest.mark.oracle
@every_shape
def test_a_step_of_training_equals_theirs_under_torchs_adamw(shape):
    """Adam's first step divides a gradient by itself, so eps here is above the rounding of
    gradients near zero.
    """
    ours, theirs = pair(shape)
    mine = AdamW(decay_groups(ours, 0.1), 1e-3, (0.9, 0.95), 1e-4, 0.1)
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, 1e-3, (0.9, 0.95), 1e-4)
    backward(ours, theirs, tokens())
    before = ours.final_norm.weight.detach().clone()
    mine.step()
    reference.step()
    assert not torch.equal(before, ours.final_norm.weight)
    for _, a, b in laid_out(ours, theirs, lambda p: p.detach()):
        assert_close(a, b)
