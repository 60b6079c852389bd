"""Command lines from dataclasses: the flags are the fields, their help is the docstring under each.

tyro parses. What is ours is how it fails: by one sentence, with exit code 2 for a mistyped flag or
value, and 1 for another error of the user's.
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
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Type, TypeVar

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
    words = list(_words(kind, arguments))
    if "-h" in words or "--help" in words:
        shown: Any = kind
        tyro.cli(_grouped(shown), prog=prog, args=["--help"], config=(tyro.conf.OmitArgPrefixes,))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            config, unknown = tyro.cli(kind, prog=prog, args=words, return_unknown_args=True)
    except SystemExit:
        raise _explain(kind, prog, arguments, said.getvalue()) from None
    if not unknown:
        return config
    word = unknown[0]
    if word.startswith("-"):
        raise UsageError(f"there is no flag {word.split('=')[0]}", _nearest(word, kind, prog))
    raise UsageError(f"{word!r} belongs to no flag", "see --help")


def _words(kind: Type[Any], arguments: Sequence[str]) -> Iterator[str]:
    """`arguments` as tyro takes them: a text is joined by = to its flag, as it may begin with -."""
    hints, rest = get_type_hints(kind), list(arguments)
    while rest:
        word = rest.pop(0)
        name = word.replace("--no-", "--", 1).partition("=")[0][2:].replace("-", "_")
        hint = hints.get(name) if word.startswith("--") else None
        several, taken = getattr(hint, "__origin__", None) is tuple, False
        if hint in (bool, Optional[bool]):
            word = _switch(word, flag(name), rest, hint is bool)
        elif "=" not in word and (several or hint in (str, Optional[str])):
            while rest and not _FLAG.match(rest[0]) and not (taken and rest[0] == "-h"):
                yield f"{word}={rest.pop(0)}"
                taken = True
                if not several:
                    break
        if not taken:
            yield word


def _switch(word: str, name: str, rest: List[str], plain: bool) -> str:
    """--packing false as --no-packing, which tyro has for `plain` ones; others as --name=False."""
    value = word.partition("=")[2]
    if not value and rest and rest[0].lower() in ("true", "false"):
        value = rest.pop(0)
    if value.lower() not in ("", "true", "false"):
        raise UsageError(f"{name} cannot be {value}", "say true or false")
    yes = (value.lower() != "false") != word.startswith("--no-")
    if plain:
        return name if yes else "--no-" + name[2:]
    return f"{name}={yes}"


@lru_cache(maxsize=None)  # tyro remembers classes by their addresses, so these must stay
def _grouped(kind: Type[Any]) -> Type[Any]:
    """What --help shows of `kind`: its flags by group, without those that mean nothing there."""
    if not hasattr(kind, "groups"):
        return kind
    hints, title = get_type_hints(kind, include_extras=True), ""
    titles: Dict[str, str] = {}
    for one in fields(kind):
        title = titles[one.name] = kind.groups.get(one.name, title)
    parts: List[Any] = []
    for title in filter(None, dict.fromkeys(titles.values())):
        others = [(one.name, Annotated[hints[one.name], tyro.conf.Suppress], one.default)
                  for one in fields(kind) if titles[one.name] != title]  # fmt: skip
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
        print("error: there is no memory left; python -m minigpt plan says what fits",
              file=sys.stderr)  # fmt: skip
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Unread:
    """A stream whose reader may go away (head, a full disk): then what is written goes nowhere."""

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


def _nearest(word: str, kind: Type[Any], prog: str) -> str:
    """The flag that is meant by `word`, which may be another tool's for it."""
    ours: Dict[str, str] = {}
    for name in kind.__dataclass_fields__:
        ours.update((flag(n), flag(name)) for n in [name, *_ELSEWHERE.get(name, "").split()])
    said = word.split("=")[0].lower().replace("_", "-")
    close = difflib.get_close_matches(said, sorted(ours, key=len), 1, 0.7)
    return f"did you mean {ours[close[0]]}?" if close else f"see {prog} --help"


def _explain(kind: Type[Any], prog: str, arguments: Sequence[str], said: str) -> UsageError:
    """tyro says what is wrong in a box of many lines; the first flag in it is the one at fault."""
    flags, how = {flag(name) for name in kind.__dataclass_fields__}, f"see {prog} --help"
    named = next((word for word in re.findall(r"--[\w-]+", said) if word in flags), None)
    if named is None:
        return UsageError(f"{prog}: something required is missing", how)
    line = " ".join(arguments)
    parts = [re.split("[= ]", part, maxsplit=1) for part in re.split(" (?=--)", line)]
    given = [part[1:] for part in parts if part[0].replace("_", "-") == named]
    if not given:
        words = (part[0] for part in parts if part[0].startswith("--"))
        strange = [
            one for one in words if one.replace("_", "-").replace("--no-", "--") not in flags
        ]
        if strange:  # perhaps that was meant
            return UsageError(f"there is no flag {strange[0]}", _nearest(strange[0], kind, prog))
        return UsageError(f"{named} is missing", how)
    value = "".join(given[-1]) or "nothing"
    return UsageError(f"{named} cannot be {value}", f"{how} for what it takes")
