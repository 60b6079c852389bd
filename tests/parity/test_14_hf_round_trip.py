"""ours -> Hugging Face's files -> transformers: the same logits;  and back -> ours, bit for bit"""

import pytest
import torch
from safetensors.torch import load_file

from minigpt.checkpoint.model_files import load_model
from minigpt.hf.convert import convert
from minigpt.hf.export import export
from minigpt.model.gpt import GPTConfig
from tests.helpers.reference import assert_close, their_name
from tests.helpers.tuning import base

SHAPES = [
    GPTConfig(50257, 24, 2, 3, 51, n_inner=70, activation="gelu", init_std=0.2),
    GPTConfig(50257, 24, 2, 1, 64, activation="gelu_tanh", tied_head=False, init_std=0.2),
]


@pytest.mark.oracle
@pytest.mark.parametrize("shape", SHAPES)
def test_out_and_back(tmp_path, shape):
    transformers = pytest.importorskip("transformers")
    ours = load_model(base(tmp_path / "ours", "gpt2", shape=shape))
    export(tmp_path / "ours", tmp_path / "theirs")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "theirs")).eval()
    ids = torch.randint(0, 50257, (2, 24))
    with torch.no_grad():
        assert_close(ours(ids), theirs(ids).logits)
    theirs.save_pretrained(str(tmp_path / "saved by them"))
    for place in ("theirs", "saved by them"):
        convert(tmp_path / place, tmp_path / ("back from " + place))
        back = load_file(str(tmp_path / ("back from " + place) / "model.safetensors"))
        mine = load_file(str(tmp_path / "ours" / "model.safetensors"))
        assert back.keys() == mine.keys()
        assert all(torch.equal(back[name], mine[name]) for name in mine)


def test_the_matrices_of_a_block_are_turned_and_nothing_else_is(tmp_path):
    """Also the square one, which would fit either way; by the files alone."""
    base(tmp_path / "ours", "gpt2", shape=SHAPES[1])
    export(tmp_path / "ours", tmp_path / "theirs")
    mine = load_file(str(tmp_path / "ours" / "model.safetensors"))
    theirs = load_file(str(tmp_path / "theirs" / "model.safetensors"))
    turned = {"attention.qkv.weight", "attention.out.weight", "mlp.up.weight", "mlp.down.weight"}
    for name, tensor in mine.items():
        ours = tensor.t() if name.partition(".")[2].partition(".")[2] in turned else tensor
        assert_close(theirs[their_name(name)], ours, 0.0)
