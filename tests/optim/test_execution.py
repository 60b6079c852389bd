"""Every way to run a step gives the same numbers."""

import pytest
import torch

from minigpt.optim.adamw import AdamW
from minigpt.optim.execution import SLICE, WIDE_SLICE, Scalars, compiled, in_slices, plain

needs_compiler = pytest.mark.skipif(not hasattr(torch, "compile"), reason="PyTorch 2.0 and later")
SHAPES = [(), (1,), (7, 5), (SLICE,), (SLICE + 1,), (300, 2000)]


def moved(execution, shapes=SHAPES, transpose=False):
    generator = torch.Generator().manual_seed(1)

    def random(shape):
        x = torch.randn(shape, generator=generator)
        return x.t() if transpose else x

    weights = [torch.nn.Parameter(random(shape)) for shape in shapes]
    optimizer = AdamW(weights, lr=1e-2, execution=execution)
    for step in range(5):
        for weight, shape in zip(weights, shapes):
            weight.grad = random(shape)
        optimizer.step(torch.tensor(0.5) if step % 2 else None)
    return weights


@pytest.mark.parametrize("transpose", [False, True])
def test_slices_change_no_bit(transpose):
    shapes = SHAPES[2:3] + SHAPES[-1:] if transpose else SHAPES
    results = [moved(way, shapes, transpose) for way in (in_slices, plain)]
    assert all(torch.equal(a, b) for a, b in zip(*results))


@needs_compiler
@pytest.mark.parametrize("transpose", [False, True])
def test_compiled_computes_the_same(transpose):
    shapes = SHAPES[2:3] + SHAPES[-1:] if transpose else SHAPES
    results = [moved(way, shapes, transpose) for way in (in_slices, compiled)]
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(*results))


def sizes_of(execution, **options):
    sizes, weight = [], torch.empty(5000, 8000, **options)
    execution(lambda piece, scale: sizes.append(piece.numel()), [weight], Scalars((), ()), None)
    assert sum(sizes) == weight.numel()
    return sizes


def test_only_a_cpu_has_small_slices_and_only_bfloat16_has_large_ones():
    assert max(sizes_of(in_slices)) == SLICE
    assert sizes_of(in_slices, device="meta") == sizes_of(plain) == [40_000_000]
    for execution in (in_slices, plain):
        assert max(sizes_of(execution, device="meta", dtype=torch.bfloat16)) == WIDE_SLICE


def test_plain_gives_the_step_numbers_of_python():
    seen, weight = [], torch.ones(3)
    scalars = Scalars((0.1,), (0.25, None))
    plain(lambda *arguments: seen.extend(arguments[1:]), [weight], scalars, None)
    assert seen == [0.1, 0.25, None, None] and not any(isinstance(s, torch.Tensor) for s in seen)
