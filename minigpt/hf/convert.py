"""Hugging Face to minigpt: a checkpoint read and written one tensor at a time.

First everything is checked by names and shapes alone: which tensors there are, what each becomes,
that none is missing, unknown or of a wrong shape. Only then is the first byte written; the result
appears when it is whole.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from minigpt.checkpoint import manifest
from minigpt.checkpoint.lazy import LazyTensor
from minigpt.checkpoint.model_files import SHARD_BYTES, write_model
from minigpt.checkpoint.writer import TensorSpec
from minigpt.data.template import load_template, save_template
from minigpt.data.tokenizer import MERGES, VOCAB, GPT2Tokenizer, load_tokenizer
from minigpt.errors import CheckpointError
from minigpt.files import atomic_directory
from minigpt.hf import config as hf_config
from minigpt.hf import layout
from minigpt.hf.source import find_files, open_tensors, read_json
from minigpt.model.gpt import GPT, GPTConfig
from minigpt.text import size

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Progress = Callable[[int, int], None]  # bytes just written, bytes in all
_GPT2_TOKENS = 50257


@dataclass
class Plan:
    """What a conversion will do: for each of our tensors, the one of theirs it is made from."""

    config: GPTConfig
    tensors: Dict[str, LazyTensor]  # by our name
    dropped: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    room: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def specs(self, dtype: Optional[torch.dtype]) -> List[TensorSpec]:
        """Shapes and dtypes in our layout, in the model's order."""
        return [
            TensorSpec(name, dtype or tensor.dtype, _turned(name, tensor.shape))
            for name, tensor in self.tensors.items()
        ]

    def read(self, name: str, dtype: Optional[torch.dtype]) -> Tensor:
        """Our tensor `name`, valid until the next is read; CheckpointError if `dtype` cannot hold
        it.
        """
        source = layout.turn(name, self.tensors[name].read())
        if source.is_contiguous() and dtype in (None, source.dtype):
            return source
        tensor = self._room(dtype or source.dtype, source.numel()).view(source.shape)
        tensor.copy_(source)  # turns and casts in one pass
        if dtype == torch.float16 and not torch.isfinite(tensor).all():
            raise CheckpointError(
                "%s has numbers beyond what fp16 can hold (65504)" % name, "use --dtype bf16"
            )
        return tensor

    def _room(self, dtype: torch.dtype, numel: int) -> Tensor:
        """Memory used for one tensor after the other: new pages cost more than the copying
        itself.
        """
        size = numel * torch.empty(0, dtype=dtype).element_size()
        if self.room.numel() < size:
            self.room = torch.empty(size, dtype=torch.uint8)
        return self.room[:size].view(dtype)


def plan(directory: Path, stack: ExitStack, weights: Optional[str] = None) -> Plan:
    """Reads config and headers of `directory`, and decides; CheckpointError for what does not fit
    together.
    """
    config, notes = hf_config.read(
        read_json(directory / "config.json"), str(directory / "config.json")
    )
    theirs = open_tensors(find_files(directory, weights), stack)
    dropped = [name for name in theirs if layout.is_buffer(name)]
    ours: Dict[str, Tuple[str, LazyTensor]] = {}
    for name, tensor in theirs.items():
        if layout.is_buffer(name):
            continue
        mine = layout.to_ours(name)
        if mine is None or mine in ours:
            what = "is no tensor of a GPT-2" if mine is None else "comes with and without prefix"
            raise CheckpointError("%s: %s %s" % (directory, name, what), "check where it is from")
        ours[mine] = (name, tensor)
    config = _settle_head(directory, config, ours, notes)
    return Plan(config, _in_order(directory, config, ours), dropped, notes)


def _settle_head(
    directory: Path, config: GPTConfig, ours: Dict[str, Tuple[str, LazyTensor]], notes: List[str]
) -> GPTConfig:
    """A tied head may be stored as the embedding, as the head, or as both. Two that differ are
    not tied.
    """
    head, embedding = ours.get(layout.HEAD), ours.get(layout.EMBEDDING)
    if not config.tied_head:
        return config
    if head is None:
        return config
    if embedding is None:
        notes.append("the tied head %s is the token embedding too" % head[0])
        ours[layout.EMBEDDING] = ours.pop(layout.HEAD)
        return config
    if not _equal(head[1], embedding[1]):
        raise CheckpointError(
            "%s: %s and %s differ, yet config.json ties them" % (directory, head[0], embedding[0]),
            'set "tie_word_embeddings": false there if both are meant',
        )
    notes.append("%s equals the token embedding and is kept once" % head[0])
    del ours[layout.HEAD]
    return config


def _equal(a: LazyTensor, b: LazyTensor) -> bool:
    return a.shape == b.shape and torch.equal(a.read(), b.read())


def _in_order(
    directory: Path, config: GPTConfig, ours: Dict[str, Tuple[str, LazyTensor]]
) -> Dict[str, LazyTensor]:
    """All of the model's tensors, in its order, with exactly its shapes."""
    model = GPT(config, device=torch.device("meta"))
    found = {}
    for name, parameter in model.named_parameters():
        if name not in ours:
            raise CheckpointError(
                "%s lacks %s" % (directory, layout.to_theirs(name)), "get all files again"
            )
        theirs, tensor = ours.pop(name)
        if _turned(name, tensor.shape) != tuple(parameter.shape):
            raise CheckpointError(
                "%s: %s is %s and config.json makes it %s"
                % (directory, theirs, [*tensor.shape], [*_turned(name, tuple(parameter.shape))]),
                "the weights and config.json are of different models",
            )
        if not tensor.dtype.is_floating_point:
            raise CheckpointError(
                "%s: %s is %s" % (directory, theirs, tensor.dtype), "get it again"
            )
        found[name] = tensor
    if ours:
        extra = sorted(theirs for theirs, _ in ours.values())
        raise CheckpointError(
            "%s has tensors beyond its config.json: %s" % (directory, ", ".join(extra[:3])),
            "the weights and config.json are of different models",
        )
    return found


def _turned(name: str, shape: Tuple[int, ...]) -> Tuple[int, ...]:
    return shape[::-1] if layout.is_transposed(name) else shape


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
    target = DTYPES.get(dtype)
    with ExitStack() as stack:
        made = plan(directory, stack, weights)
        specs = made.specs(target)
        total = sum(spec.nbytes for spec in specs)

        def fetch(name: str) -> Tensor:
            tensor = made.read(name, target)
            if progress is not None:
                progress(tensor.numel() * tensor.element_size(), total)
            return tensor

        with atomic_directory(out) as partial:
            records = write_model(partial, made.config, specs, fetch, shard_bytes)
            made.notes.extend(_copy_tokenizer(directory, partial, made.config))
            template = load_template(directory)  # of a tuned model that was exported
            if template is not None:
                save_template(partial, template)
            manifest.write_manifest(partial, records)
    return _summary(directory, out, made, specs)


def _copy_tokenizer(directory: Path, out: Path, config: GPTConfig) -> List[str]:
    """The vocabulary beside the weights or, for GPT-2's own, wherever it is found."""
    if (directory / VOCAB).is_file() and (directory / MERGES).is_file():
        tokenizer = GPT2Tokenizer(
            (directory / VOCAB).read_bytes(), (directory / MERGES).read_bytes()
        )
        tokenizer.save(out)
        if tokenizer.vocab_size > config.vocab_size:
            raise CheckpointError(
                "%s has %d tokens and the model %d"
                % (directory / VOCAB, tokenizer.vocab_size, config.vocab_size),
                "get the vocabulary that belongs to the weights",
            )
        return []
    if config.vocab_size < _GPT2_TOKENS:
        return [
            "there is no vocabulary beside the weights, and GPT-2's own is too large: none kept"
        ]
    load_tokenizer("gpt2").save(out)
    return ["there is no vocabulary beside the weights: GPT-2's own is used"]


def _summary(directory: Path, out: Path, made: Plan, specs: List[TensorSpec]) -> List[str]:
    turned = sum(layout.is_transposed(spec.name) for spec in specs)
    config = made.config
    count = format(config.parameter_count(), ",")
    shape = (config.n_layer, config.n_head, config.n_embd, config.activation, count)
    return [
        "read     %s: %d layers, %d heads, %d wide, %s, %s parameters" % (directory, *shape),
        "kept     %d tensors, %d of them transposed, all renamed; head %s"
        % (len(specs), turned, "tied" if config.tied_head else "of its own"),
        "dropped  %s" % ("%d mask buffers" % len(made.dropped) if made.dropped else "nothing"),
        *("note     %s" % note for note in made.notes),
        "wrote    %s: %s" % (out, size(sum(spec.nbytes for spec in specs))),
    ]
