"""What a person can ask of a run (TrainConfig), and the run, settled (Settings). What is left open
(None) follows the model, the data or the run's length: resolve.py decides.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Dict, Mapping, Optional, Tuple, Union

import tyro
from typing_extensions import Annotated

from minigpt.base.errors import DeviceError, UsageError, flag, require_known
from minigpt.base.text import word
from minigpt.data.sources import Names
from minigpt.data.template import TEMPLATES, Template, find_template
from minigpt.devices import PRECISIONS
from minigpt.model.config import ACTIVATIONS, GPTConfig, LoRAConfig
from minigpt.optim.schedule import SCHEDULES

if TYPE_CHECKING:  # the flags are read before PyTorch is loaded
    from minigpt.devices.device import Device


def left_open(metavar: str, default: str = "the recipe's") -> Any:
    """How --help shows a setting that may be left open."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


OpenInt = Annotated[Optional[int], left_open("INT")]
OpenFloat = Annotated[Optional[float], left_open("FLOAT")]
OpenName = Annotated[Optional[str], left_open("NAME")]
_Fifth = Annotated[Optional[int], left_open("INT", "a fifth of the run")]
_Shape = Annotated[Optional[int], left_open("INT", "the model's")]
_MoaiInt = Annotated[Optional[int], left_open("INT", "the platform's choice")]
_MoaiBool = Annotated[Optional[bool], left_open("BOOL", "the platform's choice")]

_SIZES = ("n_layer", "n_head", "n_embd", "n_inner", "n_positions")
SHAPE = (*_SIZES, "activation", "tied_head")  # of a model from scratch
_LIMITS: Tuple[Tuple[str, Callable[[float], bool], Tuple[str, ...]], ...] = (
    ("above 0 and below a billion", lambda value: 0 < value < 1e9, (
        "steps", "epochs", "batch_size", "micro_batch_size", "block_size", "lr", "eps",
        "hidden_lr_scale", "moai_num_stages", "moai_num_micro_batches", *_SIZES)),
    ("at least 1", lambda value: value >= 1, ("log_every", "keep")),
    ("0 or more, and below 2^63", lambda value: 0 <= value < 2**63, (
        "eval_every", "eval_tokens", "sample_every", "save_every", "seed", "min_lr",
        "warmup_steps", "weight_decay", "grad_clip", "lora_rank", "freeze_layers", "patience")),
    ("at least 0 and below 1", lambda value: 0 <= value < 1, ("beta1", "beta2", "dropout")),
)  # fmt: skip
_KNOWN = {
    "activation": ACTIVATIONS, "precision": PRECISIONS, "schedule": SCHEDULES,
    "template": TEMPLATES,
}  # fmt: skip
_OF_THE_START = (
    "init", "model", *SHAPE, "tokenizer",
    "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "freeze_layers",
)  # fmt: skip


@dataclass
class ReadingFlags:
    """How data are read, by every command that does."""

    validation: Annotated[Optional[Names], left_open("SHARE|FILE|DIR", "0.03, or as named")] = None
    """What to hold out: a share of the data, or files or directories. Open: those of the data that
    are named valid, val or dev, else a share.
    """
    text_key: Annotated[Optional[str], left_open("KEY", "text or content")] = None
    """Where the text of a .jsonl, .json or .parquet is."""
    special_tokens: bool = False
    """Read <|endoftext|> and <|startoftext|>, where they are written, as the end of a document."""
    template: Annotated[Optional[str], left_open("NAME", "the checkpoint's, or instruct")] = None
    """How records become text: instruct, or moai (the MoAI tutorial's, faults included)."""
    record_keys: Annotated[Optional[str], left_open("A,B", "recognised")] = None
    """Their names in the records, if unusual; A,INPUT,B with an input, A for a list of messages."""
    strict: bool = False
    """Stop at the first unusable text or record instead of leaving it out."""

    def reading(self) -> Dict[str, Any]:
        """The same for `open_datasets`, but for the template, which may be the checkpoint's."""
        names = [one.name for one in fields(ReadingFlags) if one.name != "template"]
        return {name: getattr(self, name) for name in names}


@dataclass
class StartFlags:
    """What training begins with."""

    init: str = "scratch"
    """Where the weights come from: scratch, a model's name (cerebras-13b), or a checkpoint."""
    model: str = "mini"
    """The shape to train from scratch: mini, small, medium, words, gpt2, cerebras-111m, ..."""
    n_layer: _Shape = None
    """Layers. This and the next flags change the shape of --model, from scratch."""
    n_head: _Shape = None
    """Heads of attention, which divide the width."""
    n_embd: _Shape = None
    """Width. The deviation of fresh weights, and of a wider model the rate, are fitted to it."""
    n_inner: _Shape = None
    """Width inside the MLP. Open: in proportion to the other."""
    n_positions: _Shape = None
    """The longest context."""
    activation: Annotated[Optional[str], left_open("NAME", "the model's")] = None
    """gelu (exact) or gelu_tanh (GPT-2's)."""
    tied_head: Annotated[Optional[bool], left_open("BOOL", "the model's")] = None
    """Whether the output projection is the token embedding."""
    dropout: Annotated[Optional[float], left_open("FLOAT", "the model's")] = None
    """Part of the activations that is dropped in training; for a checkpoint of --init, too."""
    data: Annotated[Optional[Names], left_open("DATA", "stdlib; --init: stdlib-functions")] = None
    """What to learn from: stdlib, stdlib-functions, files (.txt .py .jsonl .json .parquet) or
    directories of them. Records of instruction and answer are recognised.
    """
    packing: bool = True
    """Put several records into a row, each attending to itself only."""


@dataclass
class TrainConfig(ReadingFlags, StartFlags):
    """Trains a GPT, or goes on training one. With no flags: a small one, on Python's library."""

    groups: ClassVar[Dict[str, str]] = {  # of flags in --help, by the first of each
        "init": "model", "data": "data", "out": "run", "device": "memory", "steps": "optimizer",
        "lora_rank": "adapter", "patience": "saving", "moai_parallelization": "MoAI",
    }  # fmt: skip

    tokenizer: Annotated[Optional[str], left_open("NAME", "the model's")] = None
    """bytes or gpt2, when training from scratch."""
    out: Annotated[Optional[str], left_open("DIR", "runs/MODEL-DATE-TIME")] = None
    """Directory of the run."""
    resume: Annotated[Optional[str], left_open("DIR", "none")] = None
    """A run directory to go on with, exactly where it stopped."""
    config: Annotated[Optional[str], left_open("FILE", "none")] = None
    """A TOML file of these settings; flags beside it win."""
    force: bool = False
    """Start even if the plan says that it does not fit."""
    dry_run: bool = False
    """Resolve everything, build one batch, say what would be done, and stop."""
    debug: bool = False
    """Show the traceback of an error."""
    device: str = "auto"
    """auto, cpu, cuda, mps or moai."""
    precision: str = "fp32"
    """fp32; bf16-mixed, fp16-mixed: 16-bit arithmetic on fp32 weights; bf16: all in 16 bits."""
    recompute: bool = False
    """Compute again in the backward pass, and keep less for it: less memory, a third more time."""
    fused_backward: bool = False
    """Step inside the backward pass: no copy of all gradients, no clipping, no micro-batches."""
    compile: bool = False
    """Compile the model and the optimizer step with torch.compile, where PyTorch has it."""
    deterministic: bool = False
    """On a GPU: only kernels that give the same bits every time, as CPUs always do."""
    parallel: Annotated[Optional[str], left_open("NAME", "ddp where that fits, else fsdp")] = None
    """Under torchrun. ddp: each process has the model; fsdp: each a part; hsdp: each machine."""
    steps: OpenInt = None
    """Optimizer steps."""
    epochs: Annotated[Optional[float], left_open("FLOAT", "none")] = None
    """Passes over the training data, instead of --steps."""
    batch_size: OpenInt = None
    """Sequences per optimizer step, over all devices."""
    micro_batch_size: OpenInt = None
    """Sequences on a device at a time; the result is the same. Open: what suits it and fits."""
    block_size: OpenInt = None
    """Tokens per sequence, at most the model's positions."""
    lr: OpenFloat = None
    """Peak learning rate."""
    min_lr: OpenFloat = None
    """Learning rate at the end."""
    warmup_steps: OpenInt = None
    """Steps of linear warmup."""
    schedule: OpenName = None
    """Shape of the learning rate after warmup: cosine, linear, constant or wsd."""
    weight_decay: OpenFloat = None
    """Decoupled decay of matrices and embeddings."""
    beta1: OpenFloat = None
    """AdamW's memory of the gradient."""
    beta2: OpenFloat = None
    """AdamW's memory of its square."""
    eps: OpenFloat = None
    """AdamW's guard against division by zero."""
    hidden_lr_scale: OpenFloat = None
    """Learning rate of the matrices inside blocks, relative to the others; below 1 in muP."""
    grad_clip: OpenFloat = None
    """Largest global gradient norm, 0 for no limit."""
    lora_rank: int = 0
    """Train a LoRA adapter of this rank instead of the weights, 0 for the weights."""
    lora_alpha: float = LoRAConfig.alpha
    """The adapter is multiplied by this over its rank."""
    lora_dropout: float = LoRAConfig.dropout
    """Dropout before the adapter."""
    lora_targets: str = ",".join(LoRAConfig.targets)
    """The matrices that get one, of qkv, out, up and down."""
    freeze_layers: Annotated[Optional[int], left_open("INT", "none")] = None
    """Keep the embeddings and the first so many layers as they are."""
    patience: int = 0
    """Stop after so many validations without a better loss, 0 for never."""
    log_every: int = 10
    """Steps between log lines; the loss leaves the device only then."""
    eval_every: _Fifth = None
    """Steps between validations, 0 for none before the end."""
    eval_tokens: Annotated[Optional[int], left_open("INT", "a tenth of the work")] = None
    """Validation tokens used, spread evenly over the validation set, 0 for all."""
    sample_every: _Fifth = None
    """Steps between samples written to samples.md, 0 for none."""
    sample_prompt: str = "def "
    """What samples start with. Left out: an instruction of records, the beginning of other text."""
    save_every: _Fifth = None
    """Steps between checkpoints, 0 for one at the end only."""
    keep: int = 2
    """Newest checkpoints to keep, besides the best."""
    seed: int = 1337
    """Of the weights, the data order and dropout."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run directory (pip install tensorboard)."""
    moai_parallelization: bool = True
    """On MoAI: let the platform divide the work among its GPUs."""
    moai_num_stages: _MoaiInt = None
    """On MoAI: pipeline stages at most."""
    moai_num_micro_batches: _MoaiInt = None
    """On MoAI: parts of a batch in the pipeline."""
    moai_pipeline_parallel: _MoaiBool = None
    """On MoAI: whether to cut the model into stages."""
    moai_activation_recomputation: _MoaiBool = None
    """On MoAI: what --recompute is elsewhere."""
    moai_distribute_parameter: _MoaiBool = None
    """On MoAI: spread weights and gradients over the GPUs of a stage."""
    moai_mixed_precision: _MoaiBool = None
    """On MoAI: compute in bfloat16."""

    def __post_init__(self) -> None:
        for what, holds, names in _LIMITS:
            for name in names:
                value = getattr(self, name)
                if value is not None and not holds(value):
                    raise UsageError(f"{flag(name)} is {value}", f"it must be {what}")
        for name, known in _KNOWN.items():
            require_known(name, getattr(self, name), known)
        self.lora_targets = ",".join(part.strip() for part in self.lora_targets.split(","))
        self.lora()

    def check_together(self) -> None:
        """UsageError when settings that are each possible make no sense together."""
        fresh = self.init == "scratch" and not self.resume
        adapts, frozen = self.lora_rank > 0, self.freeze_layers is not None
        refuse(
            (self.steps is not None and self.epochs is not None,
             "--steps and --epochs both say when to stop", "give one of them"),
            (self.patience and self.eval_every == 0,
             "--patience counts validations, and there are none", "--eval-every N"),
            (self.fused_backward and self.grad_clip,
             "--fused-backward is done with a gradient before all norms are known",
             "use --grad-clip 0"),
            (self.fused_backward and self.precision == "fp16-mixed",
             "--fused-backward cannot take back a step", "use another --precision"),
            (adapts and frozen, "--lora-rank freezes all layers", "leave out --freeze-layers"),
            (adapts and fresh, "--lora-rank adapts a finished model", "name one with --init"),
            (frozen and fresh, "--freeze-layers keeps what a model knows", "name one with --init"),
        )  # fmt: skip
        for name in ("lora_alpha", "lora_dropout", "lora_targets"):
            if not self.lora_rank and getattr(self, name) != getattr(TrainConfig, name):
                raise UsageError(f"{flag(name)} without an adapter", "give it a --lora-rank")

    def check_on(self, device: Device) -> None:
        """DeviceError or UsageError when `device` cannot do what these settings ask of it."""
        device.check_precision(self.precision)
        missing = device.fused_backward_missing()
        if self.fused_backward and missing:
            raise DeviceError(f"--fused-backward: {missing}", "train without it")
        missing = device.recompute_missing()
        if self.recompute and missing:
            raise UsageError(f"--recompute: {missing}", "use --moai-activation-recomputation True")

    def check_goes_on(self, before: Mapping[str, Any]) -> None:
        """UsageError when this asks for another start, place or weights than the run `before`."""
        anew = f"start a new run with --init {word(str(self.resume))}"
        for name, value in (("config", self.config), ("out", self.out)):
            if value is not None and Path(value).resolve() != Path(self.resume or "").resolve():
                what = f"{flag(name)} is for a new run, and --resume goes on with one"
                raise UsageError(what, "leave one of them out")
        for name in _OF_THE_START:
            was = before.get(name, getattr(TrainConfig, name))
            if was != getattr(self, name):
                what = f"{flag(name)} was {was}, and a run goes on with what it trains"
                raise UsageError(what, anew)
        was = before.get("precision", TrainConfig.precision)
        if (was == "bf16") != (self.precision == "bf16"):  # the weights are in 16 bits
            raise UsageError(f"--precision {self.precision} keeps other weights than {was}", anew)

    def lora(self) -> Optional[LoRAConfig]:
        """The adapter asked for, if one is."""
        if not self.lora_rank:
            return None
        targets = tuple(self.lora_targets.split(","))
        return LoRAConfig(self.lora_rank, self.lora_alpha, self.lora_dropout, targets)

    def moai_options(self) -> Optional[Dict[str, Any]]:
        """What Device.start takes."""
        moai = {name: value for name, value in vars(self).items() if name.startswith("moai_")}
        wanted = moai.pop("moai_parallelization")
        return {name[len("moai_") :]: value for name, value in moai.items()} if wanted else None


@dataclass(frozen=True)
class Settings:
    """A run, settled: nothing in it is open. A name that is also a flag's means what the flag's
    help says; those flags that cannot be left open are read where they were `asked`.
    """

    asked: TrainConfig
    run: Path  # the run's directory
    start: Optional[Path]  # the checkpoint that gives the weights; None: they are drawn
    resumes: Optional[Path]  # the same, where it is of this run, which goes on
    vocabulary: Union[str, Path]  # what load_tokenizer opens: a name, or a checkpoint
    shape: GPTConfig
    lora: Optional[LoRAConfig]  # what learns; None: the weights
    data: Names
    template: Optional[str]  # as --template named it, or as the records were rendered
    tuned: Optional[Template]  # that `start` was tuned with
    steps: int
    batch_size: int
    micro_batch_size: int
    division: str  # among processes, as --parallel names it; of one process, none
    block_size: int
    lr: float
    min_lr: float
    warmup_steps: int
    schedule: str
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    hidden_lr_scale: float
    grad_clip: float
    eval_every: int
    eval_tokens: int
    sample_every: int
    save_every: int

    @property
    def rendering(self) -> Template:
        """How records become text, if the data are records."""
        if self.template is None and self.tuned is not None:
            return self.tuned
        return find_template(self.template or "instruct")


def refuse(*cases: Tuple[object, str, str]) -> None:
    """UsageError for the first of the cases (whether, what is wrong, what to do) that holds."""
    for holds, what, fix in cases:
        if holds:
            raise UsageError(what, fix)


def check_block(block_size: int, n_positions: int, longer: str = "") -> None:
    """UsageError when a row of `block_size` tokens has more than there are positions."""
    if block_size > n_positions:
        what = f"--block-size {block_size} is more than the model's {n_positions} positions"
        raise UsageError(what, f"use --block-size {n_positions}{longer}")
