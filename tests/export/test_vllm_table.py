"""What vLLM reads of a GPT-2, as a table: it needs a GPU and does not run here.

From vllm/model_executor/models/gpt2.py and transformers_utils/config.py, as of 2025: the parameters
that its classes make, the layout that load_weights expects, the settings that are read or asserted.
"""

import json
import struct

import pytest

from tests.helpers.exported import exported

V, P, C, L = 50257, 64, 24, 2
# Of load_weights: Conv1D matrices are transposed on loading, so that the files have [in, out].
TENSORS = {
    "transformer.wte.weight": [V, C],
    "transformer.wpe.weight": [P, C],
    "transformer.ln_f.weight": [C],
    "transformer.ln_f.bias": [C],
}
IN_BLOCK = {
    "ln_1.weight": "C", "ln_1.bias": "C", "ln_2.weight": "C", "ln_2.bias": "C",
    "attn.c_attn.weight": "C 3C", "attn.c_attn.bias": "3C",
    "attn.c_proj.weight": "C C", "attn.c_proj.bias": "C",
    "mlp.c_fc.weight": "C I", "mlp.c_fc.bias": "I",
    "mlp.c_proj.weight": "I C", "mlp.c_proj.bias": "C",
}  # fmt: skip
# Names of get_act_fn, vllm/model_executor/layers/activation.py.
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new"}


def expected(inner, tied):
    sizes = {"C": C, "3C": 3 * C, "I": inner}
    shapes = {name: [sizes[axis] for axis in axes.split()] for name, axes in IN_BLOCK.items()}
    blocks = {f"transformer.h.{i}.{name}": shapes[name] for i in range(L) for name in shapes}
    return {**TENSORS, **blocks, **({} if tied else {"lm_head.weight": [V, C]})}


@pytest.mark.parametrize(
    "activation, inner, tied", [("gelu_tanh", None, True), ("gelu", 70, False)]
)
def test_what_vllm_reads(tmp_path, activation, inner, tied):
    exported(tmp_path, activation=activation, n_inner=inner, tied_head=tied)
    out = tmp_path / "theirs"
    header = (out / "model.safetensors").read_bytes()
    tensors = json.loads(header[8 : 8 + struct.unpack("<Q", header[:8])[0]])
    assert tensors.pop("__metadata__")["format"] == "pt"  # asked for when loading
    shapes = {name: tensor["shape"] for name, tensor in tensors.items()}
    assert shapes == expected(inner or 4 * C, tied)
    assert {tensor["dtype"] for tensor in tensors.values()} == {"F32"}

    config = json.loads((out / "config.json").read_text())
    read = {
        "architectures": ["GPT2LMHeadModel"],  # the model's class
        "model_type": "gpt2",
        "vocab_size": V,
        "n_positions": P,  # max_position_embeddings: the longest request
        "n_embd": C,  # hidden_size
        "n_layer": L,  # num_hidden_layers
        "n_head": 3,  # num_attention_heads
        "n_inner": inner or 4 * C,
        "activation_function": ACTIVATIONS[activation],
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": tied,  # whether lm_head.weight is the embedding
        "torch_dtype": "float32",  # of `--dtype auto`
        "eos_token_id": 50256,
        "scale_attn_weights": True,  # its attention always divides by the square root
        "scale_attn_by_inverse_layer_idx": False,  # asserted, as is the next
        "reorder_and_upcast_attn": False,
    }
    assert {name: config[name] for name in read} == read
    assert not config.get("add_cross_attention", False)  # asserted

    # What sampling takes from the model, and what its chat endpoint renders.
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 50256
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == (out / "chat_template.jinja").read_text()
    assert settings["tokenizer_class"] == "GPT2Tokenizer"
