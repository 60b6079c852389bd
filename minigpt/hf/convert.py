"""Hugging Face to minigpt: a checkpoint read and written one tensor at a time.

First everything is checked by names and shapes alone: which tensors there are, what each becomes,
that none is missing, unknown or of a wrong shape, and that the vocabulary is one that we can read.
Only then is the first byte written; the result appears when it is whole.

nanoGPT's ckpt.pt (github.com/karpathy/nanoGPT) is the same with other matrices: nn.Linear's, not
Conv1D's. Its GELU is the exact one, and with bias=False there are no biases, which means zeros.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from minigpt.base.errors import CheckpointError
from minigpt.base.files import require_free
from minigpt.base.text import size
from minigpt.checkpoint.manifest import write_checkpoint
from minigpt.checkpoint.model_files import DTYPES, SHARD_BYTES, write_model
from minigpt.checkpoint.safetensors import LazyTensor
from minigpt.data.template import load_template
from minigpt.hf import BESIDE, HF, NANOGPT, layout
from minigpt.hf import config as hf_config
from minigpt.hf.torch_pickle import saved_beside
from minigpt.hf.vocabulary import find_vocabulary
from minigpt.model.config import GPTConfig
from minigpt.model.gpt import GPT

USE_IT = "use it, remove it, or name another with --out"
Progress = Callable[[int, int], object]  # bytes just written, bytes in all
_ADAPTER = "adapter_config.json"
_OF_TWO_MODELS = "the weights and config.json are of different models"


def convert(
    source: Path, out: Path, dtype: str = "keep", shard_bytes: int = SHARD_BYTES,
    weights: Optional[str] = None, progress: Progress = lambda written, total: None,
    tokenizer: str = BESIDE, kind: str = HF,
) -> List[str]:  # fmt: skip
    """Writes the minigpt checkpoint of `source`, a directory, of nanoGPT's `kind` a file, to `out`;
    returns the lines of a short summary.

    `dtype` is keep, fp32, bf16 or fp16; `progress` is told of every tensor's bytes as they are
    written; `tokenizer` is beside (the weights), gpt2 (its own) or none.
    """
    require_free(out, USE_IT, source)
    with ExitStack() as stack:
        config, theirs, said = _checked(source, stack, weights, kind)
        vocabulary, notes = find_vocabulary(source, config.vocab_size, tokenizer)
        tensors = _as_ours(theirs, DTYPES[dtype], progress, notes)
        write = partial(write_model, config=config, tensors=tensors, shard_bytes=shard_bytes)
        template = load_template(source)  # beside a tuned model that was exported
        if template is None and _has_chat_template(source):
            left = "its chat template is not taken over: generate takes prompts as they are"
            notes.append(f"{left}, and chat wants a model tuned with train.py")
        write_checkpoint(out, write, vocabulary, template)
    total = size(sum(tensor.nbytes for tensor in tensors.values()))
    return [*said, *(f"note     {note}" for note in notes), f"wrote    {out}: {total}"]


def _has_chat_template(source: Path) -> bool:
    """Whether conversations are put by a program of the model's own, in Jinja."""
    config = source / "tokenizer_config.json"
    said = config.is_file() and layout.read_json(config).get("chat_template")
    return bool(said) or (source / "chat_template.jinja").is_file()


def _checked(
    source: Path, stack: ExitStack, weights: Optional[str], kind: str
) -> Tuple[GPTConfig, Dict[str, LazyTensor], List[str]]:
    """(config, their tensors by our name in the model's order, what there is to say of them), from
    config and headers alone; CheckpointError for what does not fit together.
    """
    if (source / _ADAPTER).is_file():
        what = f"{source} has an adapter of PEFT ({_ADAPTER}), which is not a whole model"
        fix = "merge it into its base first (merge_and_unload and save_pretrained), or move it away"
        raise CheckpointError(what, fix)
    if kind == HF:
        where = source / "config.json"
        values, theirs = layout.read_json(where), layout.open_weights(source, stack, weights)
    else:
        where, values = source, _model_args(source)
        theirs = layout.open_weights(source.parent, stack, source.name)
    config, notes = hf_config.read(values, str(where))
    named = {name: tensor for name, tensor in theirs.items() if not layout.MASK.fullmatch(name)}
    masks = len(theirs) - len(named)
    notes += _tie(source, named) if config.tied_head else []
    tensors = _in_order(source, config, named, kind)
    said = [
        f"read     {source}: {config.n_layer} layers, {config.n_head} heads, {config.n_embd}"
        f" wide, {config.activation}, {config.parameter_count():,} parameters",
        f"kept     {len(tensors)} tensors, {sum(map(layout.is_transposed, tensors))} of them"
        f" transposed, all renamed; head {'tied' if config.tied_head else 'of its own'}",
        f"dropped  {f'{masks} mask buffers' if masks else 'nothing'}",
        *(f"note     {note}" for note in notes),
    ]
    return config, tensors, said


def _model_args(path: Path) -> Dict[str, Any]:
    """What nanoGPT's file says of the shape, in the words of config.json."""
    shape = saved_beside(path, "model_args")
    names = ("n_layer", "n_head", "n_embd", "vocab_size", "block_size")
    if type(shape) is not dict or any(type(shape.get(name)) is not int for name in names):
        what = f"{path} is no checkpoint of nanoGPT: it has no model_args"
        raise CheckpointError(what, "convert a directory in Hugging Face's layout without --from")
    values = {"n_positions": shape["block_size"], "resid_pdrop": shape.get("dropout", 0.0)}
    return {**{name: shape[name] for name in names}, **values, "activation_function": "gelu"}


def _tie(source: Path, named: Dict[str, LazyTensor]) -> List[str]:
    """A tied head may be stored as the embedding, the head, or both, which must then be equal."""
    if "lm_head.weight" not in named:
        return []
    head = named.pop("lm_head.weight")
    embedding = named.setdefault("wte.weight", head)
    if embedding is head:
        return ["the tied head lm_head.weight is the token embedding too"]
    if head.shape != embedding.shape or not torch.equal(head.read(), embedding.read()):
        what = f"{source}: lm_head.weight and wte.weight differ, yet config.json ties them"
        raise CheckpointError(what, 'set "tie_word_embeddings": false there if both are meant')
    return ["lm_head.weight equals the token embedding and is kept once"]


def _in_order(
    source: Path, config: GPTConfig, named: Dict[str, LazyTensor], kind: str
) -> Dict[str, LazyTensor]:
    """All of the model's tensors, in its order, with exactly its shapes."""
    found: Dict[str, LazyTensor] = {}
    if config.n_layer > len(named):  # before so many are built
        what = f"{source} has {len(named)} tensors for {config.n_layer} layers"
        raise CheckpointError(what, _OF_TWO_MODELS)
    for name, parameter in GPT(config, device=torch.device("meta")).named_parameters():
        theirs, shape = layout.to_theirs(name), layout.other_shape(name, tuple(parameter.shape))
        tensor = named.pop(layout.unwrapped(theirs), None)
        if kind == NANOGPT and tensor is not None:
            tensor = layout.turned(name, tensor)
        elif kind == NANOGPT and name.endswith(".bias"):
            dtype = found[layout.EMBEDDING].dtype
            tensor = LazyTensor(dtype, shape, partial(torch.zeros, shape, dtype=dtype))
        if tensor is None:
            raise CheckpointError(f"{source} lacks {theirs}", "get all files again")
        if tensor.shape != shape or not tensor.dtype.is_floating_point:
            is_now = f"{source}: {theirs} is {[*tensor.shape]} of {tensor.dtype}"
            what = f"{is_now} and config.json makes it {[*shape]} of floats"
            raise CheckpointError(what, _OF_TWO_MODELS)
        found[name] = tensor
    if named:
        what = f"{source}: {min(named)} is no tensor of a GPT-2 of {config.n_layer} layers"
        raise CheckpointError(what, _OF_TWO_MODELS)
    return found


def _as_ours(
    theirs: Dict[str, LazyTensor], dtype: Optional[torch.dtype], progress: Progress,
    notes: List[str],
) -> Dict[str, LazyTensor]:  # fmt: skip
    """The tensors in our layout and `dtype` (None: theirs), each valid until the next is read;
    `notes` are told of what is in them.
    """
    turned = {name: layout.turned(name, tensor) for name, tensor in theirs.items()}
    sizes = {name: tensor.to(dtype).nbytes for name, tensor in turned.items()}
    # For one tensor after the other: new pages cost more than the copying itself.
    room, total = torch.empty(max(sizes.values()), dtype=torch.uint8), sum(sizes.values())

    def read(name: str, wanted: torch.dtype) -> Tensor:
        source = tensor = turned[name].read()
        if not source.is_contiguous() or source.dtype != wanted:  # both in one pass
            tensor = room[: sizes[name]].view(wanted).view(source.shape).copy_(source)
        if not _is_finite(tensor):
            if _is_finite(source):
                what = f"{name} has numbers beyond what {wanted} can hold"
                raise CheckpointError(what, "use --dtype keep, or bf16 for fp16")
            notes.append(f"{layout.to_theirs(name)} has numbers that are nan or infinite")
        progress(sizes[name], total)
        return tensor

    kinds = {name: dtype or tensor.dtype for name, tensor in turned.items()}
    return {n: LazyTensor(kinds[n], t.shape, partial(read, n, kinds[n])) for n, t in turned.items()}


def _is_finite(tensor: Tensor) -> bool:
    """By its ends, which a nan would be: without another tensor of its size."""
    ends = [tensor.max(), tensor.min()] if tensor.numel() else []
    return all(math.isfinite(end.item()) for end in ends)
