"""config.json in Hugging Face's dialects, to a GPTConfig and back. What cannot be represented is
refused, never guessed.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from minigpt.base.errors import CheckpointError
from minigpt.model.gpt import GPTConfig

_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_ACTIVATIONS = {"gelu": "gelu", **dict.fromkeys(_TANH, "gelu_tanh")}
_THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new"}

# Settings that change what is computed, with the one value this model has.
_REQUIRED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
_MUP_REQUIRED = {"position_embedding_type": "learned", "alibi_scaling": None, **_REQUIRED}


def read(values: Dict[str, Any], where: str) -> Tuple[GPTConfig, List[str]]:
    """The GPTConfig that `values`, their config.json, describes, and notes. CheckpointError for
    another architecture, or one with a part that this model lacks.
    """
    kind = values.get("model_type", "gpt2")
    if kind not in ("gpt2", "btlm"):
        raise _refuse(where, f"is a {kind} model")
    for name, needed in (_MUP_REQUIRED if kind == "btlm" else _REQUIRED).items():
        if values.get(name, needed) != needed:
            raise _refuse(where, f"has {name} = {values[name]!r}")
    activation = values.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        raise _refuse(where, f"has the activation {activation!r}")
    notes: List[str] = []
    try:
        scales = _mup_scales(values, notes) if kind == "btlm" else {}
        config = GPTConfig(activation=_ACTIVATIONS[activation], **_shape(values), **scales)
    except (KeyError, TypeError, ValueError) as error:
        raise _refuse(where, f"lacks or garbles {error}") from None
    return config, notes


def _shape(values: Dict[str, Any]) -> Dict[str, Any]:
    n_embd = int(values["n_embd"])
    inner = int(values.get("n_inner") or 4 * n_embd)
    return {
        "vocab_size": int(values.get("vocab_size", 50257)),
        "n_positions": int(values.get("n_positions", 1024)),
        "n_layer": int(values["n_layer"]),
        "n_head": int(values["n_head"]),
        "n_embd": n_embd,
        "n_inner": None if inner == 4 * n_embd else inner,  # as the zoo's shapes say it
        "layer_norm_eps": float(values.get("layer_norm_epsilon", 1e-5)),
        "dropout": float(values.get("resid_pdrop", 0.1)),
        "tied_head": bool(values.get("tie_word_embeddings", True)),
    }


def _mup_scales(values: Dict[str, Any], notes: List[str]) -> Dict[str, Any]:
    """muP's three numbers. The first 111M upload forgot the width scale: always 256 / n_embd."""
    width = values.get("mup_width_scale")
    if width is None:
        width = 256 / int(values["n_embd"])
        notes.append(f"mup_width_scale is missing: 256 / n_embd = {width:.4f} is used")
    head_dim = int(values["n_embd"]) // int(values["n_head"])
    power = 1.0 if values.get("mup_scale_qk_dot_by_d", False) else 0.5
    return {
        "embedding_scale": float(values.get("mup_embeddings_scale", 1.0)),
        "output_scale": float(values.get("mup_output_alpha", 1.0)) * float(width),
        "attention_scale": head_dim**-power,
    }


def write(config: GPTConfig, dtype: str, eos_id: Optional[int] = None) -> Dict[str, Any]:
    """The config.json of `config`, a GPT-2 (muP's scales are folded), as transformers reads it,
    with what llama.cpp's converter (n_ctx) and vLLM (the flags of attention) ask for besides.
    `eos_id` is the vocabulary's; None where there is none.
    """
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": _THEIR_ACTIVATIONS[config.activation],
        "vocab_size": config.vocab_size,
        "n_positions": config.n_positions,
        "n_ctx": config.n_positions,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.inner,
        "layer_norm_epsilon": config.layer_norm_eps,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
        "tie_word_embeddings": config.tied_head,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "torch_dtype": dtype,
    }


def _refuse(where: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{where} {what}, which this GPT cannot represent", "convert a GPT-2 or Cerebras-GPT"
    )
