"""What the objective computes, and in what: beside the numbers, which the ladder proves."""

from contextlib import nullcontext

import pytest
import torch

from minigpt.data.batch import IGNORE, Batch
from minigpt.decoding.generate import generate
from minigpt.devices.device import Device, find_device
from minigpt.model.gpt import GPT
from minigpt.training import fast_loss, objective
from minigpt.training.apply import COMPILES_BLOCKS, objective_for
from minigpt.training.fast_loss import (
    linear_cross_entropy,
    softmax_and_loss,
    softmax_and_loss_to_compile,
)
from minigpt.training.objective import cross_entropy_sum
from tests.helpers.reference import SHAPES, VOCABULARY, assert_close, config_of


def test_without_gradients_none_are_computed(monkeypatch):
    """Validation would wait longer for the head's gradient than for all the rest."""
    x, weight = torch.randn(5, 33), torch.randn(VOCABULARY, 33, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (5,))
    learning = linear_cross_entropy(x, weight, targets)
    monkeypatch.setattr(torch.Tensor, "addmm_", None)
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(x, weight, targets), learning.detach())
    with pytest.raises(TypeError):
        linear_cross_entropy(x, weight, targets)


def test_the_gradient_of_a_bf16_head_is_summed_in_fp32(monkeypatch):
    """A thousand pieces, each added to a sum a thousand times as large."""
    monkeypatch.setattr(fast_loss, "LOGITS_AT_A_TIME", VOCABULARY)
    x, weight = torch.rand(1000, 8), torch.randn(VOCABULARY, 8)
    targets = torch.zeros(1000, dtype=torch.int64)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        head = weight.to(dtype).requires_grad_()
        loss = linear_cross_entropy(x.to(dtype), head, targets, dtype)
        gradients.append(torch.autograd.grad(loss, head)[0].float())
    assert_close(gradients[1], gradients[0], 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", [0, 7])
def test_the_formula_for_a_compiler_is_the_one_in_place(dtype, padding):
    """The loss, and its gradient by autograd of the plain formula, with zeros in the padding."""
    V = VOCABULARY
    product = 5 * torch.randn(40, V + padding).to(dtype)
    targets = torch.randint(V, (40,)).masked_fill(torch.rand(40) < 0.3, IGNORE)
    logits = product[:, :V].float().requires_grad_()
    expected = cross_entropy_sum(logits, targets)
    (slope,) = torch.autograd.grad(expected, logits)
    for way in (softmax_and_loss, softmax_and_loss_to_compile):
        loss, found = way(product.clone(), targets, V)
        assert found.dtype == dtype and not found[:, V:].any()
        assert_close(loss, expected)
        assert_close(found[:, :V].float(), slope, 1e-5 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16-mixed", torch.bfloat16), ("fp16-mixed", torch.float16)],
)
def test_the_head_is_multiplied_in_the_dtype_of_the_precision(precision, dtype, monkeypatch):
    asked = []
    real = linear_cross_entropy

    def recorded(x, weight, targets, kind, softmax):
        asked.append(kind)
        return real(x, weight, targets, torch.float32)

    monkeypatch.setattr(objective, "linear_cross_entropy", recorded)
    monkeypatch.setattr(Device, "autocast", lambda self, precision: nullcontext())
    targets = torch.zeros(1, 3, dtype=torch.int64)
    batch = Batch(targets, targets, 3)
    model = GPT(config_of(SHAPES["8 a head, odd inner"]))
    objective_for(model, find_device("cpu"), precision)(batch)
    assert asked == [dtype]


@pytest.mark.skipif(not COMPILES_BLOCKS, reason="PyTorch 2.5 and later")
def test_a_model_that_is_compiled_for_training_decodes_without_the_compiler(monkeypatch):
    """Every layer's cache and every length would be compiled anew."""
    model = GPT(config_of(SHAPES["8 a head, odd inner"])).eval()
    plain = generate(model, [1, 2, 3], 5, 0.0)
    monkeypatch.setattr(torch, "compile", lambda function, **options: None)
    objective_for(model, find_device("cpu"), compiled=True)
    assert generate(model, [1, 2, 3], 5, 0.0) == plain
