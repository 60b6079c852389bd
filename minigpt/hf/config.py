"""config.json in Hugging Face's dialects, to a GPTConfig and back. What cannot be represented is
refused, never guessed.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from minigpt.base.errors import CheckpointError
from minigpt.base.files import as_dataclass
from minigpt.model.config import GPTConfig

_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate")
_ACTIVATIONS = {"gelu": "gelu", "gelu_python": "gelu", **dict.fromkeys(_TANH, "gelu_tanh")}

# Our name of a setting: theirs, and what it is for transformers where a file does not say it.
_FIELDS: Dict[str, Tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 50257), "n_positions": ("n_positions", 1024),
    "n_layer": ("n_layer", 12), "n_head": ("n_head", 12), "n_embd": ("n_embd", 768),
    "layer_norm_eps": ("layer_norm_epsilon", 1e-5), "dropout": ("resid_pdrop", 0.1),
    "tied_head": ("tie_word_embeddings", True),
}  # fmt: skip
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
        shape = {o: type(usual)(values.get(t, usual)) for o, (t, usual) in _FIELDS.items()}
        inner = int(values.get("n_inner") or 0)
        if inner != 4 * shape["n_embd"]:  # the usual width is left out, as the zoo does
            shape["n_inner"] = inner or None
        shape["activation"] = _ACTIVATIONS[activation]
        return as_dataclass(GPTConfig, {**shape, **scales}), notes
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise _refuse(where, f"lacks or garbles {error}") from None


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
        "activation_function": "gelu" if config.activation == "gelu" else "gelu_new",
        **{theirs: getattr(config, ours) for ours, (theirs, _) in _FIELDS.items()},
        "n_ctx": config.n_positions,
        "n_inner": config.inner,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop"), config.dropout),
        **_REQUIRED,
        "reorder_and_upcast_attn": False,
        **dict.fromkeys(("bos_token_id", "eos_token_id"), eos_id),
        "torch_dtype": dtype,
    }


def _refuse(where: str, what: str) -> CheckpointError:
    fix = "convert a GPT-2 or Cerebras-GPT"
    return CheckpointError(f"{where} {what}, which this GPT cannot represent", fix)
