"""Hugging Face to minigpt: a checkpoint read and written one tensor at a time.

First everything is checked by names and shapes alone: which tensors there are, what each becomes,
that none is missing, unknown or of a wrong shape, and that the vocabulary is one that we can read.
Only then is the first byte written; the result appears when it is whole.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from minigpt.base.errors import CheckpointError
from minigpt.base.files import require_free
from minigpt.base.text import size
from minigpt.checkpoint.manifest import write_checkpoint
from minigpt.checkpoint.model_files import DTYPES, SHARD_BYTES, write_model
from minigpt.checkpoint.safetensors import LazyTensor
from minigpt.data.template import load_template
from minigpt.hf import config as hf_config
from minigpt.hf import layout, nanogpt
from minigpt.hf.vocabulary import BESIDE, find_vocabulary
from minigpt.model.gpt import GPT, GPTConfig

HF, NANOGPT = KINDS = ("hf", "nanogpt")
USE_IT = "use it, remove it, or name another with --out"
Progress = Callable[[int, int], object]  # bytes just written, bytes in all
_ADAPTER = "adapter_config.json"
_OF_TWO_MODELS = "the weights and config.json are of different models"


def convert(
    directory: Path, out: Path, dtype: str = "keep", shard_bytes: int = SHARD_BYTES,
    weights: Optional[str] = None, progress: Progress = lambda written, total: None,
    tokenizer: str = BESIDE, kind: str = HF,
) -> List[str]:  # fmt: skip
    """Writes the minigpt checkpoint of `directory`, of nanoGPT's `kind` a file, to `out`; returns
    the lines of a short summary.

    `dtype` is keep, fp32, bf16 or fp16; `progress` is told of every tensor's bytes as they are
    written; `tokenizer` is beside (the weights), gpt2 (its own) or none.
    """
    require_free(out, USE_IT, directory)
    with ExitStack() as stack:
        config, theirs, said = check_source(directory, stack, weights, kind)
        find = find_vocabulary if kind == HF else nanogpt.find_tokenizer
        vocabulary, notes = find(directory, config.vocab_size, tokenizer)
        tensors = _as_ours(theirs, DTYPES[dtype], progress, notes)
        write = partial(write_model, config=config, tensors=tensors, shard_bytes=shard_bytes)
        template = load_template(directory)  # of a tuned model that was exported
        write_checkpoint(out, write, vocabulary, template)
    total = size(sum(tensor.nbytes for tensor in tensors.values()))
    return [*said, *(f"note     {note}" for note in notes), f"wrote    {out}: {total}"]


def check_source(
    directory: Path, stack: ExitStack, weights: Optional[str] = None, kind: str = HF
) -> Tuple[GPTConfig, Dict[str, LazyTensor], List[str]]:
    """(config, their tensors by our name in the model's order, what there is to say of them), from
    config and headers alone; CheckpointError for what does not fit together.
    """
    if (directory / _ADAPTER).is_file():
        what = f"{directory} has an adapter of PEFT ({_ADAPTER}), which is not a whole model"
        fix = "merge it into its base first (merge_and_unload and save_pretrained), or move it away"
        raise CheckpointError(what, fix)
    if kind == HF:
        where = directory / "config.json"
        values, theirs = layout.read_json(where), layout.open_weights(directory, stack, weights)
    else:
        where, (values, theirs) = directory, nanogpt.open_checkpoint(directory)
    config, notes = hf_config.read(values, str(where))
    kept = [name for name in theirs if not layout.is_buffer(name)]
    named: Dict[str, LazyTensor] = {}
    for name in kept:
        ours = layout.to_ours(name)
        if ours is None or ours in named:
            what = "is no tensor of a GPT-2" if ours is None else "comes with and without prefix"
            raise CheckpointError(f"{directory}: {name} {what}", "check where it is from")
        named[ours] = theirs[name]
    if config.tied_head and layout.HEAD in named:
        notes.append(_tie(directory, named))
    tensors, masks = _in_order(directory, config, named), len(theirs) - len(kept)
    said = [
        f"read     {directory}: {config.n_layer} layers, {config.n_head} heads, {config.n_embd}"
        f" wide, {config.activation}, {config.parameter_count():,} parameters",
        f"kept     {len(tensors)} tensors, {sum(map(layout.is_transposed, tensors))} of them"
        f" transposed, all renamed; head {'tied' if config.tied_head else 'of its own'}",
        f"dropped  {f'{masks} mask buffers' if masks else 'nothing'}",
        *(f"note     {note}" for note in notes),
    ]
    return config, tensors, said


def _tie(directory: Path, named: Dict[str, LazyTensor]) -> str:
    """A tied head may be stored as the embedding, the head, or both, which must then be equal."""
    head = named.pop(layout.HEAD)
    embedding = named.setdefault(layout.EMBEDDING, head)
    if embedding is head:
        return "the tied head lm_head.weight is the token embedding too"
    if head.shape != embedding.shape or not torch.equal(head.read(), embedding.read()):
        what = f"{directory}: lm_head.weight and wte.weight differ, yet config.json ties them"
        raise CheckpointError(what, 'set "tie_word_embeddings": false there if both are meant')
    return "lm_head.weight equals the token embedding and is kept once"


def _in_order(
    directory: Path, config: GPTConfig, named: Dict[str, LazyTensor]
) -> Dict[str, LazyTensor]:
    """All of the model's tensors, in its order, with exactly its shapes."""
    found = {}
    if config.n_layer > len(named):  # before so many are built
        what = f"{directory} has {len(named)} tensors for {config.n_layer} layers"
        raise CheckpointError(what, _OF_TWO_MODELS)
    for name, parameter in GPT(config, device=torch.device("meta")).named_parameters():
        theirs = layout.to_theirs(name)
        if name not in named:
            raise CheckpointError(f"{directory} lacks {theirs}", "get all files again")
        tensor, shape = named.pop(name), layout.other_shape(name, tuple(parameter.shape))
        if tensor.shape != shape or not tensor.dtype.is_floating_point:
            is_now = f"{directory}: {theirs} is {[*tensor.shape]} of {tensor.dtype}"
            what = f"{is_now} and config.json makes it {[*shape]} of floats"
            raise CheckpointError(what, _OF_TWO_MODELS)
        found[name] = tensor
    if named:
        extra = ", ".join(map(layout.to_theirs, sorted(named)[:3]))
        what = f"{directory} has tensors beyond its config.json: {extra}"
        raise CheckpointError(what, _OF_TWO_MODELS)
    return found


def _as_ours(
    theirs: Dict[str, LazyTensor],
    dtype: Optional[torch.dtype],
    progress: Progress,
    notes: List[str],
) -> Dict[str, LazyTensor]:
    """The tensors in our layout and `dtype` (None: theirs), each valid until the next is read;
    `notes` are told of what is in them.
    """
    sizes = {name: tensor.to(dtype).nbytes for name, tensor in theirs.items()}
    # For one tensor after the other: new pages cost more than the copying itself.
    room, total = torch.empty(max(sizes.values()), dtype=torch.uint8), sum(sizes.values())

    def read(name: str, wanted: torch.dtype) -> Tensor:
        tensor = _converted(name, theirs[name].read(), wanted, room[: sizes[name]])
        if not _is_finite(tensor):
            notes.append(f"{layout.to_theirs(name)} has numbers that are nan or infinite")
        progress(sizes[name], total)
        return tensor

    ours = {}
    for name, tensor in theirs.items():
        wanted, shape = dtype or tensor.dtype, layout.other_shape(name, tensor.shape)
        ours[name] = LazyTensor(wanted, shape, partial(read, name, wanted))
    return ours


def _converted(name: str, theirs: Tensor, dtype: torch.dtype, room: Tensor) -> Tensor:
    """Our tensor, in `room` if transposed or cast; CheckpointError if its dtype cannot hold it."""
    source = layout.other_layout(name, theirs)
    if source.is_contiguous() and source.dtype == dtype:
        return source
    tensor = room.view(dtype).view(source.shape)
    tensor.copy_(source)  # transposes and casts in one pass
    if not _is_finite(tensor) and _is_finite(source):
        what = f"{name} has numbers beyond what {dtype} can hold"
        raise CheckpointError(what, "use --dtype keep, or bf16 for fp16")
    return tensor


def _is_finite(tensor: Tensor) -> bool:
    """By its ends, which a nan would be: without another tensor of its size."""
    ends = [tensor.max(), tensor.min()] if tensor.numel() else []
    return all(math.isfinite(end.item()) for end in ends)
