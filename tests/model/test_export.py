"""The model is plain torch: what others make graphs of it with can see it whole."""

import pytest
import torch
from torch import nn

from minigpt.model.gpt import GPT
from tests.helpers.reference import POSITIONS, SHAPES, assert_close, config_of, every_shape, tokens

needs_export = pytest.mark.skipif(
    not hasattr(getattr(torch, "export", None), "Dim"), reason="PyTorch before 2.1 has no export"
)


@needs_export
@every_shape
def test_exported_with_any_number_of_rows_and_positions(shape):
    model = GPT(config_of(shape)).eval()
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length", min=2, max=POSITIONS)
    exported = torch.export.export(model, (tokens(2, 5),), dynamic_shapes=({0: rows, 1: length},))
    graph = exported.module()
    for size in ((1, 2), (2, 5), (7, POSITIONS), (3, 11)):
        ids = tokens(*size)
        assert_close(graph(ids), model(ids))


@every_shape
def test_traced(shape):
    model, ids = GPT(config_of(shape)).eval(), tokens()
    with pytest.warns(torch.jit.TracerWarning):
        traced = torch.jit.trace(model, ids)
    other = tokens()
    assert_close(traced(other), model(other))


def test_every_matrix_is_a_linear_layer_that_others_can_quantize():
    model = GPT(config_of(SHAPES["17 a head, odd inner"])).eval()
    matrices = [module for module in model.modules() if type(module) is nn.Linear]
    assert len(matrices) == 4 * len(model.blocks)
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is nn.Linear for module in small.modules())
    ids = tokens()
    loss = (small(ids) - model(ids)).abs().max()
    assert 0 < loss < 0.1 * model(ids).abs().max()
