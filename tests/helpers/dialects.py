"""Checkpoints as they are found in the world: one small model, written in every dialect."""

import json

import torch
from safetensors.torch import save_file

from tests.helpers.reference import LAYERS, POSITIONS, VOCABULARY

SHAPE = (3, 51, 70, "gelu")


def converter_config(**more):
    """As the converter of Cerebras wrote it: 14 keys, no architectures, no dtype."""
    return {
        "model_type": "gpt2", "n_embd": 51, "tie_word_embeddings": True, "n_positions": POSITIONS,
        "vocab_size": VOCABULARY, "n_layer": LAYERS, "resid_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5, "n_head": 3, "scale_attn_weights": True, "attn_pdrop": 0.0,
        "n_inner": 70, "activation_function": "gelu", "embd_pdrop": 0.0, **more,
    }  # fmt: skip


def saved_config(**more):
    """As transformers 4.27 saved the 13B: GPT2Model, dtype, no tie_word_embeddings."""
    config = converter_config(architectures=["GPT2Model"], torch_dtype="float32",
                              bos_token_id=0, eos_token_id=0, reorder_and_upcast_attn=False,
                              scale_attn_by_inverse_layer_idx=False, **more)  # fmt: skip
    del config["tie_word_embeddings"]
    return config


def weights(model, prefix="transformer.", head=False, embedding=True, masks=None):
    """The state_dict of `model`, with or without prefix, head, embedding and mask buffers."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" or (name == "transformer.wte.weight" and not embedding):
            continue
        state[prefix + name[len("transformer.") :]] = tensor.clone()
    if head or not embedding:
        state["lm_head.weight"] = model.lm_head.weight.detach().clone()
    if masks is not None:
        for layer in range(LAYERS):
            mask = torch.ones(1, 1, POSITIONS, POSITIONS).tril().to(masks)
            state["%sh.%d.attn.bias" % (prefix, layer)] = mask
            state["%sh.%d.attn.masked_bias" % (prefix, layer)] = torch.tensor(-1e4)
    return state


def write(directory, state, config=None, kind="bin", shards=1, legacy=False, name=None):
    """`state` as files of `kind` (bin or safetensors) with config.json; returns the directory."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config or converter_config()))
    stem, suffix = {"bin": ("pytorch_model", "bin"), "safetensors": ("model", "safetensors")}[kind]

    def save(part, path):
        if kind == "bin":
            torch.save(part, str(path), _use_new_zipfile_serialization=not legacy)
        else:
            save_file({k: v.contiguous() for k, v in part.items()}, str(path), {"format": "pt"})

    if shards == 1:
        save(state, directory / (name or "%s.%s" % (stem, suffix)))
        return directory
    names = list(state)
    weight_map = {}
    for shard in range(shards):
        file = "%s-%05d-of-%05d.%s" % (stem, shard + 1, shards, suffix)
        part = {key: state[key] for key in names[shard::shards]}
        save(part, directory / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / ("%s.%s.index.json" % (stem, suffix))).write_text(json.dumps(index))
    return directory
