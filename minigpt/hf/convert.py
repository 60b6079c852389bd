"""Hugging Face to minigpt: a checkpoint read and written one tensor at a time.

First everything is checked by names and shapes alone: which tensors there are, what each becomes,
that none is missing, unknown or of a wrong shape. Only then is the first byte written; the result
appears when it is whole.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional

import torch
from torch import Tensor

from minigpt.base.errors import CheckpointError
from minigpt.base.files import atomic_directory, require_free
from minigpt.base.text import size
from minigpt.checkpoint import manifest
from minigpt.checkpoint.model_files import SHARD_BYTES, write_model
from minigpt.checkpoint.safetensors import LazyTensor, TensorSpec
from minigpt.data.template import load_template, save_template
from minigpt.data.tokenizer import MERGES, VOCAB, GPT2Tokenizer, Tokenizer, load_tokenizer
from minigpt.hf import config as hf_config
from minigpt.hf import layout
from minigpt.hf.source import find_files, open_tensors, read_json
from minigpt.model.gpt import GPT, GPTConfig

USE_IT = "use it, remove it, or name another with --out"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Progress = Callable[[int, int], None]  # bytes just written, bytes in all
_GPT2_TOKENS = 50257


@dataclass
class Plan:
    """What a conversion will do: for each of our tensors, the one of theirs it is made from."""

    config: GPTConfig
    tensors: Dict[str, LazyTensor]  # by our name, in the model's order
    masks: int  # buffers that are dropped
    notes: List[str]


def plan(directory: Path, stack: ExitStack, weights: Optional[str] = None) -> Plan:
    """Decides from config and headers alone; CheckpointError for what does not fit together."""
    path = directory / "config.json"
    config, notes = hf_config.read(read_json(path), str(path))
    theirs = open_tensors(find_files(directory, weights), stack)
    kept = [name for name in theirs if not layout.is_buffer(name)]
    ours: Dict[str, LazyTensor] = {}
    for name in kept:
        mine = layout.to_ours(name)
        if mine is None or mine in ours:
            what = "is no tensor of a GPT-2" if mine is None else "comes with and without prefix"
            raise CheckpointError("%s: %s %s" % (directory, name, what), "check where it is from")
        ours[mine] = theirs[name]
    if config.tied_head and layout.HEAD in ours:
        notes.append(_tie(directory, ours))
    return Plan(config, _in_order(directory, config, ours), len(theirs) - len(kept), notes)


def _tie(directory: Path, ours: Dict[str, LazyTensor]) -> str:
    """A tied head may be stored as the embedding, the head, or both, which must then be equal."""
    head = ours.pop(layout.HEAD)
    embedding = ours.setdefault(layout.EMBEDDING, head)
    if embedding is head:
        return "the tied head lm_head.weight is the token embedding too"
    if head.shape != embedding.shape or not torch.equal(head.read(), embedding.read()):
        raise CheckpointError(
            "%s: lm_head.weight and wte.weight differ, yet config.json ties them" % directory,
            'set "tie_word_embeddings": false there if both are meant',
        )
    return "lm_head.weight equals the token embedding and is kept once"


def _in_order(
    directory: Path, config: GPTConfig, ours: Dict[str, LazyTensor]
) -> Dict[str, LazyTensor]:
    """All of the model's tensors, in its order, with exactly its shapes."""
    found = {}
    for name, parameter in GPT(config, device=torch.device("meta")).named_parameters():
        theirs = layout.to_theirs(name)
        if name not in ours:
            raise CheckpointError("%s lacks %s" % (directory, theirs), "get all files again")
        tensor, shape = ours.pop(name), layout.turned(name, tuple(parameter.shape))
        if tensor.shape != shape or not tensor.dtype.is_floating_point:
            raise CheckpointError(
                "%s: %s is %s of %s and config.json makes it %s of floats"
                % (directory, theirs, [*tensor.shape], tensor.dtype, [*shape]),
                _OF_TWO_MODELS,
            )
        found[name] = tensor
    if ours:
        extra = ", ".join(map(layout.to_theirs, sorted(ours)[:3]))
        raise CheckpointError(
            "%s has tensors beyond its config.json: %s" % (directory, extra), _OF_TWO_MODELS
        )
    return found


_OF_TWO_MODELS = "the weights and config.json are of different models"


def convert(
    directory: Path,
    out: Path,
    dtype: str = "keep",
    shard_bytes: int = SHARD_BYTES,
    weights: Optional[str] = None,
    progress: Optional[Progress] = None,
) -> List[str]:
    """Writes the minigpt checkpoint of `directory` to `out`; returns the lines of a short summary.

    `dtype` is keep, fp32, bf16 or fp16; `progress` is told of every tensor's bytes as they are
    written.
    """
    require_free(out, USE_IT, directory)
    with ExitStack() as stack:
        made = plan(directory, stack, weights)
        specs = {
            name: TensorSpec(name, DTYPES.get(dtype, t.dtype), layout.turned(name, t.shape))
            for name, t in made.tensors.items()
        }
        total = sum(spec.nbytes for spec in specs.values())
        # For one tensor after the other: new pages cost more than the copying itself.
        room = torch.empty(max(spec.nbytes for spec in specs.values()), dtype=torch.uint8)

        def fetch(name: str) -> Tensor:
            tensor = _read(made.tensors[name], specs[name], room)
            if progress is not None:
                progress(specs[name].nbytes, total)
            return tensor

        with atomic_directory(out) as partial:
            records = write_model(partial, made.config, [*specs.values()], fetch, shard_bytes)
            made.notes.extend(_copy_tokenizer(directory, partial, made.config))
            template = load_template(directory)  # of a tuned model that was exported
            if template is not None:
                save_template(partial, template)
            manifest.write_manifest(partial, records)
    return _summary(directory, out, made, total)


def _read(theirs: LazyTensor, spec: TensorSpec, room: Tensor) -> Tensor:
    """Our tensor, in `room` where it has to be turned or cast, so valid until the next is read;
    CheckpointError if its dtype cannot hold it.
    """
    source = layout.turn(spec.name, theirs.read())
    if source.is_contiguous() and source.dtype == spec.dtype:
        return source
    tensor = room[: spec.nbytes].view(spec.dtype).view(spec.shape)
    tensor.copy_(source)  # turns and casts in one pass
    narrowed = spec.dtype == torch.float16 and source.dtype != torch.float16
    if narrowed and not torch.isfinite(tensor).all():
        raise CheckpointError(
            "%s has numbers beyond what fp16 can hold (65504)" % spec.name, "use --dtype bf16"
        )
    return tensor


def _copy_tokenizer(directory: Path, out: Path, config: GPTConfig) -> List[str]:
    """The vocabulary beside the weights or, for GPT-2's own, wherever it is found."""
    note = "there is no vocabulary beside the weights"
    beside = (directory / VOCAB).is_file() and (directory / MERGES).is_file()
    if not beside and config.vocab_size < _GPT2_TOKENS:
        return [note + ", and GPT-2's own is too large: none kept"]
    # Read as files: by its name, a directory called bytes would be the bytes tokenizer.
    tokenizer = _beside(directory) if beside else load_tokenizer("gpt2")
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            "%s has %d tokens and the model %d"
            % (directory / VOCAB, tokenizer.vocab_size, config.vocab_size),
            "get the vocabulary that belongs to the weights",
        )
    tokenizer.save(out)
    return [] if beside else [note + ": GPT-2's own is used"]


def _beside(directory: Path) -> Tokenizer:
    return GPT2Tokenizer((directory / VOCAB).read_bytes(), (directory / MERGES).read_bytes())


def _summary(directory: Path, out: Path, made: Plan, total: int) -> List[str]:
    config = made.config
    count = format(config.parameter_count(), ",")
    shape = (config.n_layer, config.n_head, config.n_embd, config.activation, count)
    turned = sum(map(layout.is_transposed, made.tensors))
    return [
        "read     %s: %d layers, %d heads, %d wide, %s, %s parameters" % (directory, *shape),
        "kept     %d tensors, %d of them transposed, all renamed; head %s"
        % (len(made.tensors), turned, "tied" if config.tied_head else "of its own"),
        "dropped  %s" % ("%d mask buffers" % made.masks if made.masks else "nothing"),
        *("note     %s" % note for note in made.notes),
        "wrote    %s: %s" % (out, size(total)),
    ]
