"""minigpt to Hugging Face: a directory that transformers, and what reads its files, opens as it is.

A muP model has three scales that GPT-2 has not. They can be folded into the weights, exactly but
for rounding: the embeddings take the embedding scale, the keys the ratio of the attention scales,
and the head the output scale, so that it is no longer tied and takes a matrix of its own.
"""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import List, Optional

from torch import Tensor

from minigpt.base.errors import CheckpointError
from minigpt.base.files import atomic_directory, require_free, write_json, write_text
from minigpt.base.text import size
from minigpt.checkpoint.model_files import SHARD_BYTES, open_weights, read_config
from minigpt.checkpoint.run_files import resolve
from minigpt.checkpoint.safetensors import LazyTensor, write_sharded
from minigpt.data.template import Template, load_template, save_template
from minigpt.data.tokenizer import MARKER, MERGES, VOCAB, GPT2Tokenizer, load_tokenizer
from minigpt.hf import config as hf_config
from minigpt.hf import layout
from minigpt.hf.vocabulary import FAST, SETTINGS, fast, settings
from minigpt.model.config import GPTConfig

# A template as Hugging Face's tokenizers have it: Jinja, from a list of messages to a text. An
# answer follows all that was said since the one before it, as in data/records.py. A question that
# has no answer yet ends in what comes before one, whether a prompt for it is asked for or not.
_CHAT = r"""
{%- set ns = namespace(asked='') -%}
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}
        {{- before + ns.asked + between + message['content'] + after -}}
        {%- set ns.asked = '' -%}
    {%- elif message['content'].strip() -%}
        {%- set ns.asked = ns.asked + ('\n\n' if ns.asked else '') + message['content'] -%}
    {%- endif -%}
{%- endfor -%}
{%- if messages[-1]['role'] != 'assistant' -%}
    {{- before + ns.asked + between -}}
{%- endif -%}
"""


def chat_template(template: Template) -> str:
    """The Jinja source that gives the text whose tokens `template.render` makes."""
    end = " + eos_token" if template.eos and not template.whole else ""
    text = ""
    for name in ("before", "between", "after"):
        said = json.dumps(getattr(template, name), ensure_ascii=False)
        text += f"{{%- set {name} = {said}{end if name == 'after' else ''} -%}}\n"
    return text.rstrip() + _CHAT


def export(
    checkpoint: Path, out: Path, fold: bool = False, shard_bytes: int = SHARD_BYTES
) -> List[str]:
    """Writes the Hugging Face directory of our checkpoint to `out`; returns a summary's lines.
    A muP model is refused unless `fold` is asked for. A LoRA checkpoint is merged on the way.
    """
    directory = resolve(checkpoint)
    require_free(out, source=directory)
    config, template = read_config(directory), load_template(directory)
    plain = _without_scales(config)
    if (directory / MARKER).exists():
        what = f"{directory} has the bytes tokenizer, which transformers does not know"
        raise CheckpointError(what, "train with --tokenizer gpt2 to export a model")
    if plain != config and not fold:
        what = f"{directory} is a muP model, whose scales GPT-2 has not"
        raise CheckpointError(what, "fold them into the weights with --fold-mup")
    with ExitStack() as stack:
        ours = open_weights(directory, stack)
        if not plain.tied_head:
            ours.setdefault(layout.HEAD, ours[layout.EMBEDDING])
        if plain != config:
            ours = {n: replace(t, read=partial(_folded, n, t, config)) for n, t in ours.items()}
        theirs = {layout.to_theirs(name): layout.turned(name, t) for name, t in ours.items()}
        with atomic_directory(out) as place:
            eos_id = None
            if (directory / VOCAB).exists():  # not where what was converted had none
                eos_id = _write_tokenizer(directory, place, config.n_positions, template)
            write_sharded(place, theirs, shard_bytes)
            dtype = str(ours[layout.EMBEDDING].dtype).replace("torch.", "")
            write_json(place / "config.json", hf_config.write(plain, dtype, eos_id))
            # GPT-2 has nothing to pad with but its EOS; transformers says so where this does not.
            ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), eos_id)
            write_json(place / "generation_config.json", ends)
            if template is not None:  # of no use to others, and needed on the way back
                save_template(place, template)
    total = size(sum(tensor.nbytes for tensor in theirs.values()))
    what = f"{len(theirs)} tensors, {total}, opens in transformers as it is"
    return [f"wrote    {out}: {what}", *_what_llama_cpp_does(plain)]


def _write_tokenizer(
    directory: Path, out: Path, n_positions: int, template: Optional[Template]
) -> int:
    """The vocabulary's files, the settings and, of a tuned model, its chats; returns the EOS."""
    tokenizer = load_tokenizer(directory)
    assert isinstance(tokenizer, GPT2Tokenizer)
    (out / VOCAB).write_bytes(tokenizer.vocab_json)
    (out / MERGES).write_bytes(tokenizer.merges)
    write_json(out / FAST, fast(tokenizer))
    values = settings(tokenizer, n_positions)
    if template is not None:  # in the settings for readers from before 2025
        jinja = values["chat_template"] = chat_template(template)
        write_text(out / "chat_template.jinja", jinja)
    write_json(out / SETTINGS, values)
    return tokenizer.eos_id


def _what_llama_cpp_does(config: GPTConfig) -> List[str]:
    """Notes on a GPT-2 that is not the one kind its converter and its code know."""
    notes, usual = [], 4 * config.n_embd
    if config.activation != "gelu_tanh":
        notes.append("llama.cpp computes the tanh GELU in place of this model's exact one")
    if config.inner != usual:
        what = f"its inner width is {config.inner}, not {usual}"
        notes.append(f"a GGUF of it does not load in llama.cpp: {what}")
    return [f"note     {note} (docs/export.md)" for note in notes]


def _without_scales(config: GPTConfig) -> GPTConfig:
    """The GPT-2 that computes the same: `config` itself if no scale differs from GPT-2's own."""
    usual = math.isclose(config.qk_scale, config.head_dim**-0.5)
    if usual and config.embedding_scale == config.output_scale == 1.0:
        return config
    plain = replace(config, embedding_scale=1.0, output_scale=1.0, attention_scale=None)
    return replace(plain, tied_head=False)


def _folded(name: str, ours: LazyTensor, config: GPTConfig) -> Tensor:
    tensor = ours.read()
    if name in (layout.EMBEDDING, "position_embedding.weight"):
        return tensor * config.embedding_scale
    if name == layout.HEAD:
        return tensor * config.output_scale
    if ".attention.qkv." in name:
        tensor, C = tensor.clone(), config.n_embd
        tensor[C : 2 * C] *= config.qk_scale * math.sqrt(config.head_dim)
    return tensor
