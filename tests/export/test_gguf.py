"""llama.cpp's own converter makes a GGUF of an export, and gguf-py reads in it what we wrote."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from minigpt import load_tokenizer
from minigpt.data.template import TEMPLATES
from minigpt.hf.export import chat_template
from tests.helpers.exported import exported, to_gguf

pytestmark = pytest.mark.oracle
gguf = pytest.importorskip("gguf", reason="llama.cpp's converter needs Python 3.11")

# llama.cpp's names, gguf-py/gguf/constants.py; ours in the middle.
OUTSIDE = {
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "final_norm": "output_norm",
    "head": "output",
}
IN_BLOCK = {
    "attention_norm": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.out": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
NORMAL, CONTROL, UNUSED = 1, 3, 5  # gguf.TokenType


def their_name(ours):
    module, leaf = ours.rsplit(".", 1)
    if not module.startswith("blocks."):
        return "%s.%s" % (OUTSIDE[module], leaf)
    _, layer, module = module.split(".", 2)
    return "blk.%s.%s.%s" % (layer, IN_BLOCK[module], leaf)


def test_the_gguf_is_the_checkpoint(tmp_path, monkeypatch):
    """In several files, with a padded vocabulary; a head of its own is in test_llama_cpp.py."""
    exported(tmp_path, vocab_size=50304, shard_bytes=10**6)
    reader = gguf.GGUFReader(str(to_gguf(tmp_path, monkeypatch)))

    ours = load_file(str(tmp_path / "ours" / "model.safetensors"))
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert found.keys() == set(map(their_name, ours))
    for name, tensor in ours.items():
        assert np.array_equal(found[their_name(name)], tensor.numpy()), name

    values = {name: field.contents() for name, field in reader.fields.items()}
    shape = {
        "context_length": 64, "embedding_length": 24, "feed_forward_length": 96, "block_count": 2,
        "attention.head_count": 3, "attention.layer_norm_epsilon": np.float32(1e-5),
    }  # fmt: skip
    assert values["general.architecture"] == "gpt2"
    assert {name: values["gpt2." + name] for name in shape} == shape

    tokenizer = load_tokenizer("gpt2")
    told = {name[15:]: v for name, v in values.items() if name.startswith("tokenizer.ggml.")}
    assert (told["model"], told["pre"], told["add_bos_token"]) == ("gpt2", "gpt-2", False)
    assert told["bos_token_id"] == told["eos_token_id"] == tokenizer.eos_id
    by_id = sorted(json.loads(tokenizer.vocab_json).items(), key=lambda item: item[1])
    assert told["tokens"][:50257] == [token for token, _ in by_id]
    kinds = [NORMAL] * 50256 + [CONTROL] + [UNUSED] * 47
    assert told["token_type"] == kinds
    assert told["merges"] == tokenizer.merges.decode().splitlines()[1:]
    assert values["tokenizer.chat_template"] == chat_template(TEMPLATES["instruct"])


def test_what_llama_cpp_does_otherwise_is_said(tmp_path):
    (_, gelu, inner) = exported(tmp_path, activation="gelu", n_inner=70)
    assert "llama.cpp computes the tanh GELU" in gelu
    assert "does not load in llama.cpp: its inner width is 70, not 96" in inner
