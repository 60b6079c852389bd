"""The oracle of the ladder: a small random GPT-2 of transformers, and our GPT with the very same
weights.

Biases and LayerNorms are random too. As they are initialised, 0 and 1, they would hide every
mistake made with them.
"""

import pytest
import torch

from minigpt.model.gpt import GPT, GPTConfig

TOLERANCE = 1e-5

# What the running test has compared: (largest difference over largest magnitude, what is allowed).
COMPARED = []

# name: (heads, width, n_inner, activation). Head sizes 64, 17 and 8; inner widths 4C and not.
SHAPES = {
    "64 a head, tanh gelu": (2, 128, None, "gelu_tanh"),
    "64 a head, exact gelu": (2, 128, None, "gelu"),
    "17 a head, odd inner": (3, 51, 70, "gelu"),
    "8 a head, odd inner": (5, 40, 33, "gelu_tanh"),
}
VOCABULARY, POSITIONS, LAYERS = 97, 24, 3

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def config_of(shape, **more):
    heads, width, inner, activation = shape
    return GPTConfig(
        VOCABULARY, POSITIONS, LAYERS, heads, width, n_inner=inner, activation=activation, **more
    )


def oracle(shape, tied=True):
    """A transformers GPT2LMHeadModel with random weights everywhere, in eval mode."""
    transformers = pytest.importorskip("transformers")
    heads, width, inner, activation = shape
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=width, n_layer=LAYERS, n_head=heads,
        n_inner=inner, activation_function={"gelu": "gelu", "gelu_tanh": "gelu_new"}[activation],
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=tied,
        attn_implementation="eager", bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    return model


# Ours on the left; a transposed one is a Conv1D, [in, out], over there and a Linear, [out, in],
# here.
OUTSIDE = {
    "token_embedding.weight": "transformer.wte.weight",
    "position_embedding.weight": "transformer.wpe.weight",
    "final_norm.weight": "transformer.ln_f.weight",
    "final_norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
}
IN_BLOCK = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}


def their_name(name):
    """blocks.3.attention.qkv.weight -> transformer.h.3.attn.c_attn.weight"""
    if not name.startswith("blocks."):
        return OUTSIDE[name]
    _, layer, rest = name.split(".", 2)
    module, leaf = rest.rsplit(".", 1)
    return "transformer.h.%s.%s.%s" % (layer, IN_BLOCK[module], leaf)


def theirs_as_ours(name, tensor):
    """A weight, or a gradient, of theirs laid out as ours called `name`."""
    conv1d = name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name
    return tensor.t() if conv1d else tensor


def twin(model, shape, **more):
    """Our GPT with the weights of `model`, in eval mode."""
    ours = GPT(config_of(shape, **more)).eval()
    their_parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(theirs_as_ours(name, their_parameters[their_name(name)]))
    return ours


def pair(shape):
    model = oracle(shape)
    return twin(model, shape), model


def tokens(rows=2, length=POSITIONS):
    return torch.randint(0, VOCABULARY, (rows, length))


def assert_close(ours, theirs, tolerance=TOLERANCE):
    """Within `tolerance` of the largest magnitude. 1e-3 would not see the wrong GELU; 1e-5 does."""
    assert ours.shape == theirs.shape
    difference, largest = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    apart = difference / largest if largest else difference
    COMPARED.append((apart, tolerance))
    assert difference <= tolerance * largest, "%.1e apart, allowed: %.0e" % (apart, tolerance)


def assert_same(ours, theirs, why=""):
    """Equal to the last bit; `why` is said where they are not."""
    COMPARED.append((float(ours != theirs), 0.0))
    assert ours == theirs, why


def random_gpt(shape):
    """Our GPT with random weights everywhere, in eval mode."""
    model = GPT(config_of(shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    return model
