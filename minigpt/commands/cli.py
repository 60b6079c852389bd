"""Command lines from dataclasses: the flags are the fields, their help is the docstring under each.

tyro parses. What is ours is how it fails: by one sentence and no traceback, with exit code 2 for a
mistyped flag or value and 1 for another error of the user's.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
from dataclasses import field, fields, make_dataclass
from functools import lru_cache, partial
from itertools import takewhile
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Type, TypeVar

import tyro
from typing_extensions import Annotated, get_type_hints

from minigpt.base.errors import MinigptError, UsageError, flag

Config = TypeVar("Config")
_FLAG = re.compile(r"--\w[\w-]*(=|$)")
# What other tools call them: Hugging Face's, nanoGPT, Megatron, llama.cpp, vLLM.
_ELSEWHERE = {
    "init": "model-name-or-path pretrained-model base-model init-from", "lora_rank": "lora-r",
    "data": "dataset dataset-name train-file data-path input-file", "out": "output-dir output",
    "resume": "resume-from-checkpoint", "lr": "learning-rate", "min_lr": "min-learning-rate",
    "warmup_steps": "warmup-iters num-warmup-steps", "schedule": "lr-scheduler-type",
    "steps": "max-steps max-iters num-steps train-iters", "epochs": "num-train-epochs num-epochs",
    "batch_size": "train-batch-size global-batch-size gradient-accumulation-steps",
    "micro_batch_size": "per-device-train-batch-size", "grad_clip": "max-grad-norm clip-grad",
    "block_size": "max-seq-length max-seq-len sequence-length max-length context-length cutoff-len",
    "beta1": "adam-beta1", "beta2": "adam-beta2", "eps": "adam-epsilon", "keep": "save-total-limit",
    "precision": "bf16 fp16 dtype torch-dtype amp mixed-precision", "device": "gpu cuda cpu",
    "recompute": "gradient-checkpointing activation-checkpointing", "compile": "torch-compile",
    "log_every": "logging-steps log-interval", "eval_every": "eval-steps eval-interval",
    "eval_tokens": "eval-iters", "save_every": "save-steps save-interval",
    "tensorboard": "report-to wandb-log", "lora_targets": "target-modules lora-target-modules",
    "n_layer": "num-layers num-hidden-layers layers depth", "n_head": "num-attention-heads heads",
    "n_embd": "hidden-size d-model embed-dim width", "n_inner": "intermediate-size d-ff",
    "n_positions": "max-position-embeddings n-ctx", "activation": "hidden-act activation-function",
    "dropout": "resid-pdrop attn-pdrop", "tied_head": "tie-word-embeddings", "seed": "random-seed",
    "tokenizer": "vocab-size", "checkpoint": "model ckpt model-name-or-path",
    "samples": "num-samples num-return-sequences", "temperature": "temp do-sample",
    "max_new_tokens": "max-tokens num-tokens n-predict max-length", "workers": "num-workers",
}  # fmt: skip


def parse(kind: Type[Config], prog: str, arguments: Sequence[str]) -> Config:
    """`arguments` as a `kind`, a dataclass. UsageError names what cannot be parsed."""
    words = _joined(kind, arguments)
    if "-h" in words or "--help" in words:
        shown: Any = kind
        tyro.cli(_grouped(shown), prog=prog, args=["--help"], config=(tyro.conf.OmitArgPrefixes,))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            words = list(_plain(kind, words))
            config, unknown = tyro.cli(kind, prog=prog, args=words, return_unknown_args=True)
    except SystemExit:
        raise _explain(kind, prog, arguments, said.getvalue()) from None
    if not unknown:
        return config
    word = unknown[0]
    if word.startswith("-"):
        raise UsageError(f"there is no flag {word.split('=')[0]}", _nearest(word, kind, prog))
    raise UsageError(f"{word!r} belongs to no flag", "see --help")


def _plain(kind: Type[Any], arguments: Sequence[str]) -> Iterator[str]:
    """`arguments`, with what is true or false as tyro takes it: --packing false as --no-packing,
    --no-tied-head as --tied-head=False.
    """
    types = {flag(f.name): str(f.type) for f in fields(kind) if "bool" in str(f.type).lower()}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, _, value = word.replace("--no-", "--", 1).partition("=")
        name = name.replace("_", "-")
        if name in types and not value and rest and rest[0].lower() in ("true", "false"):
            value = rest.pop(0)
        if name in types and value.lower() in ("", "true", "false"):
            yes = (value.lower() != "false") != word.startswith("--no-")
            word = f"{name}={yes}"
            if types[name] == "bool":
                word = name if yes else "--no-" + name[2:]
        yield word


def _hidden(default: Any) -> Any:
    # By its type, since tyro takes 0 and False of Any for the same.
    kind = type(default) if isinstance(default, (bool, int, float, str)) else Any
    return Annotated[kind, tyro.conf.Suppress]


@lru_cache(maxsize=None)  # tyro remembers classes by their addresses, so these must stay
def _grouped(kind: Type[Any]) -> Type[Any]:
    """What --help shows of `kind`: its flags by group, without those that mean nothing there."""
    if not hasattr(kind, "groups"):
        return kind
    flags, title = fields(kind), ""
    shown: Dict[str, Set[str]] = {}
    for one in flags:
        title = kind.groups.get(one.name, title)
        shown.setdefault(title, set()).add(one.name)
    shown.pop("", None)
    parts: List[Any] = []
    for title, names in shown.items():
        others = [(one.name, _hidden(one.default), one.default) for one in flags
                  if one.name not in names]  # fmt: skip
        view = make_dataclass(title, others, bases=(kind,), namespace={"__doc__": ""})
        parts.append((title, view, field(default_factory=view)))
    return make_dataclass(kind.__name__, parts, namespace={"__doc__": kind.__doc__})


def run(command: Callable[[List[str]], Optional[int]], arguments: Sequence[str]) -> int:
    """Runs `command(arguments)`; returns the exit code. `--debug` lets tracebacks through."""
    debug = "--debug" in arguments
    for name in ("stdin", "stdout", "stderr"):  # what has no character is spelled out
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        elif stream is None:  # closed before we began
            setattr(sys, name, io.StringIO())
    try:
        return command(list(arguments)) or 0
    except MinigptError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except RuntimeError as error:
        from minigpt.devices.device import is_out_of_memory  # not for every --help

        if debug or not is_out_of_memory(error):
            raise
        what = "there is no memory left; python -m minigpt plan says what fits"
        print(f"error: {what}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Unread:
    """A stream whose reader may go away (head, a closed terminal, a full disk): from then on what
    is written goes nowhere, and the work goes on.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.stream, name)
        return partial(self._try, value) if name in ("write", "flush") else value

    def _try(self, do: Callable[..., Any], *text: str) -> None:
        try:
            do(*text)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            print("nobody can read the output any more; the run goes on", file=sys.stderr)


@contextlib.contextmanager
def going_on_unread() -> Iterator[None]:
    """While the block lasts, output that cannot be written is no error."""
    out: Any = _Unread(sys.stdout)
    err: Any = _Unread(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def _joined(kind: Type[Any], arguments: Sequence[str]) -> List[str]:
    """The arguments, with a text joined by = to the flag before it, since it may begin with a dash;
    each to the flag where that takes several.
    """
    hints = get_type_hints(kind)
    words: List[str] = []
    taker, several = "", False  # the flag that takes the next word
    for word in arguments:
        first = bool(words) and words[-1] == taker
        if taker and not _FLAG.match(word) and (first or (several and word != "-h")):
            words[len(words) - first :] = [f"{taker}={word}"]
        else:
            hint = hints.get(word[2:].replace("-", "_")) if word.startswith("--") else None
            several = getattr(hint, "__origin__", None) is tuple
            taker = word if several or hint in (str, Optional[str]) else ""
            words.append(word)
    return words


def _nearest(word: str, kind: Type[Any], prog: str) -> str:
    """The flag that is meant by `word`, which may be another tool's for it."""
    ours = {name: name for name in _flags(kind)}
    for name in kind.__dataclass_fields__:
        ours.update(("--" + other, flag(name)) for other in _ELSEWHERE.get(name, "").split())
    said = word.split("=")[0].lower().replace("_", "-")
    close = difflib.get_close_matches(said, sorted(ours, key=len), 1, 0.7)
    return f"did you mean {ours[close[0]]}?" if close else f"see {prog} --help"


def _flags(kind: Type[Any]) -> List[str]:
    return [flag(field) for field in kind.__dataclass_fields__]


def _explain(kind: Type[Any], prog: str, arguments: Sequence[str], said: str) -> UsageError:
    """tyro says what is wrong in a box of many lines; the first flag in it is the one at fault."""
    named = [word for word in re.findall(r"--[\w-]+", said) if word in _flags(kind)]
    how = f"see {prog} --help"
    if not named:
        return UsageError(f"{prog}: something required is missing", how)
    given = _given(named[0], arguments)
    if given is None:
        return UsageError(f"{named[0]} is missing", how)
    return UsageError(f"{named[0]} cannot be {given or 'nothing'}", f"{how} for what it takes")


def _given(name: str, arguments: Sequence[str]) -> Optional[str]:
    """What follows the last flag called `name`; None when there is none."""
    found = None
    for place, word in enumerate(arguments):
        said, sign, value = word.partition("=")
        if said.replace("_", "-") == name:
            following = takewhile(lambda w: not w.startswith("--"), arguments[place + 1 :])
            found = value if sign else " ".join(following)
    return found
