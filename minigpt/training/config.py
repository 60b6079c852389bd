"""Every setting of a run: the flags of train.py, the keys of a TOML file, and what `config.toml`
records.

A setting left open (None) follows the model: a published shape trained from scratch takes its
published recipe, and loaded weights are fine-tuned gently (`FINE_TUNING`).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional

import tyro
from typing_extensions import Annotated

from minigpt.base.errors import DeviceError, UsageError
from minigpt.base.files import write_text
from minigpt.base.text import nearest
from minigpt.data.template import find_template
from minigpt.devices.device import PRECISIONS, Device
from minigpt.model.lora import LoRAConfig
from minigpt.model.zoo import Recipe
from minigpt.optim.schedule import SCHEDULES

if sys.version_info >= (3, 11):
    import tomllib as toml
else:
    import tomli as toml

FINE_TUNING = Recipe(
    lr=1e-5, min_lr=1e-6, warmup_steps=20, steps=500, batch_size=16, block_size=1024, beta2=0.999
)
# An adapter starts at nothing and bears, and needs, larger steps (Hu et al. 2021, table 11).
LORA_TUNING = replace(FINE_TUNING, lr=2e-4, min_lr=2e-5, weight_decay=0.01)


def _open(metavar: str, default: str = "the recipe's") -> Any:
    """How --help shows a setting that may be left open."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: %s)" % default)


# An open setting is None until `filled`; it is typed as what it is from then on, for all who use
# it.
OPEN: Any = None
if TYPE_CHECKING:
    OpenInt = int
    OpenFloat = float
    OpenStr = str
    OpenBool = bool
else:
    OpenInt = Annotated[Optional[int], _open("INT")]
    OpenFloat = Annotated[Optional[float], _open("FLOAT")]
    OpenStr = Annotated[Optional[str], _open("NAME")]
    OpenBool = Annotated[Optional[bool], _open("BOOL")]

_ABOVE_ZERO = (
    "steps", "epochs", "batch_size", "micro_batch_size", "block_size", "lr", "eps",
    "hidden_lr_scale", "moai_num_stages", "moai_num_micro_batches",
)  # fmt: skip
_AT_LEAST_ONE = ("log_every", "keep")
_NOT_NEGATIVE = (
    "eval_every", "eval_tokens", "sample_every", "save_every", "seed", "min_lr", "warmup_steps",
    "weight_decay", "grad_clip", "lora_rank", "freeze_layers", "patience",
)  # fmt: skip


@dataclass
class TrainConfig:
    """Trains a GPT, or goes on training one. With no flags: a small one, on Python's library."""

    init: str = "scratch"
    """Where the weights come from: scratch, a model's name (cerebras-13b), or a checkpoint."""
    model: str = "mini"
    """The shape to train from scratch: mini, small, medium, words, gpt2, cerebras-111m, ..."""
    data: Annotated[OpenStr, _open("DATA", "stdlib; with --init stdlib-functions")] = OPEN
    """What to learn from: stdlib, stdlib-functions, a file (.txt .py .jsonl .json .parquet) or a
    directory of texts. Records of instruction and answer are recognised.
    """
    template: Annotated[OpenStr, _open("NAME", "the checkpoint's, or instruct")] = OPEN
    """How records become text: instruct, or moai (the MoAI tutorial's, faults included)."""
    packing: bool = True
    """Put several records into a row, each attending to itself only."""
    record_keys: Annotated[Optional[str], _open("A,B", "recognised")] = None
    """Unusual names of instruction and answer in the records; A,INPUT,B with an input between them,
    or A alone for a list of messages.
    """
    strict: bool = False
    """Stop at the first unusable record instead of leaving it out."""
    tokenizer: Annotated[Optional[str], _open("NAME", "the model's")] = None
    """bytes or gpt2, when training from scratch."""
    out: Annotated[Optional[str], _open("DIR", "runs/MODEL-DATE-TIME")] = None
    """Directory of the run."""
    resume: Annotated[Optional[str], _open("DIR", "none")] = None
    """A run directory to go on with, exactly where it stopped."""
    config: Annotated[Optional[str], _open("FILE", "none")] = None
    """A TOML file of these settings; flags beside it win."""
    device: str = "auto"
    """auto, cpu, cuda, mps or moai."""
    precision: str = "fp32"
    """fp32; bf16-mixed or fp16-mixed: fp32 weights, 16-bit arithmetic; bf16: weights, gradients and
    optimizer in bfloat16, with what rounding drops carried on.
    """
    recompute: bool = False
    """Keep each block's input only and compute the rest again in the backward pass: less memory, a
    third more time.
    """
    fused_backward: bool = False
    """Step on each weight in the backward pass and free its gradient: no copy of all gradients, no
    clipping, no micro-batches (PyTorch 2.1 and later).
    """
    compile: bool = False
    """Compile the model and the optimizer step with torch.compile, where PyTorch has it."""
    deterministic: bool = False
    """On a GPU: only kernels that give the same bits every time, so that a resumed run does. CPUs
    always do.
    """
    steps: OpenInt = OPEN
    """Optimizer steps."""
    epochs: Annotated[Optional[float], _open("FLOAT", "none")] = None
    """Passes over the training data, instead of --steps."""
    batch_size: OpenInt = OPEN
    """Sequences per optimizer step, over all devices."""
    micro_batch_size: OpenInt = OPEN
    """Sequences on a device at a time; the result is the same. Open: as fit 1 GB of logits."""
    block_size: OpenInt = OPEN
    """Tokens per sequence, at most the model's positions."""
    lr: OpenFloat = OPEN
    """Peak learning rate."""
    min_lr: OpenFloat = OPEN
    """Learning rate at the end."""
    warmup_steps: OpenInt = OPEN
    """Steps of linear warmup."""
    schedule: OpenStr = OPEN
    """Shape of the learning rate after warmup: cosine, linear, constant or wsd."""
    weight_decay: OpenFloat = OPEN
    """Decoupled decay of matrices and embeddings."""
    beta1: OpenFloat = OPEN
    """AdamW's memory of the gradient."""
    beta2: OpenFloat = OPEN
    """AdamW's memory of its square."""
    eps: OpenFloat = OPEN
    """AdamW's guard against division by zero."""
    hidden_lr_scale: OpenFloat = OPEN
    """Learning rate of the matrices inside blocks, relative to the others; below 1 in muP."""
    grad_clip: OpenFloat = OPEN
    """Largest global gradient norm, 0 for no limit."""
    lora_rank: int = 0
    """Train a LoRA adapter of this rank instead of the weights, 0 for the weights."""
    lora_alpha: float = LoRAConfig.alpha
    """The adapter is multiplied by this over its rank."""
    lora_dropout: float = LoRAConfig.dropout
    """Dropout before the adapter."""
    lora_targets: str = ",".join(LoRAConfig.targets)
    """The matrices that get one, of qkv, out, up and down."""
    freeze_layers: Annotated[Optional[int], _open("INT", "none")] = None
    """Keep the embeddings and the first so many layers as they are."""
    patience: int = 0
    """Stop after so many validations without a better loss, 0 for never."""
    log_every: int = 10
    """Steps between log lines; the loss leaves the device only then."""
    eval_every: Annotated[OpenInt, _open("INT", "a fifth of the run")] = OPEN
    """Steps between validations, 0 for none before the end."""
    eval_tokens: int = 1_000_000
    """Validation tokens used, spread evenly over the validation set, 0 for all."""
    sample_every: Annotated[OpenInt, _open("INT", "a fifth of the run")] = OPEN
    """Steps between samples written to samples.md, 0 for none."""
    sample_prompt: str = "def "
    """What the samples start with; of records, the instruction is a held-out one."""
    save_every: Annotated[OpenInt, _open("INT", "a fifth of the run")] = OPEN
    """Steps between checkpoints, 0 for one at the end only."""
    keep: int = 2
    """Newest checkpoints to keep, besides the best."""
    seed: int = 1337
    """Of the weights, the data order and dropout."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run directory (pip install tensorboard)."""
    moai_parallelization: bool = True
    """On MoAI: let the platform divide the work among its GPUs."""
    moai_num_stages: Annotated[OpenInt, _open("INT", "the platform's choice")] = OPEN
    """On MoAI: pipeline stages at most."""
    moai_num_micro_batches: Annotated[OpenInt, _open("INT", "the platform's choice")] = OPEN
    """On MoAI: parts of a batch in the pipeline."""
    moai_pipeline_parallel: Annotated[OpenBool, _open("BOOL", "the platform's choice")] = OPEN
    """On MoAI: whether to cut the model into stages."""
    moai_activation_recomputation: Annotated[OpenBool, _open("BOOL", "the platform's choice")] = (
        OPEN
    )
    """On MoAI: what --recompute is elsewhere."""
    moai_distribute_parameter: Annotated[OpenBool, _open("BOOL", "the platform's choice")] = OPEN
    """On MoAI: spread weights and gradients over the GPUs of a stage."""
    moai_mixed_precision: Annotated[OpenBool, _open("BOOL", "the platform's choice")] = OPEN
    """On MoAI: compute in bfloat16."""
    force: bool = False
    """Start even if the plan says that it does not fit."""
    dry_run: bool = False
    """Resolve everything, build one batch, say what would be done, and stop."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        for name in _ABOVE_ZERO:
            self._require(name, 0 < _of(self, name) < 1e9, "above 0 and below a billion")
        for name in _AT_LEAST_ONE:
            self._require(name, _of(self, name) >= 1, "at least 1")
        for name in _NOT_NEGATIVE:
            self._require(name, 0 <= _of(self, name) < 2**63, "0 or more, and below 2^63")
        for name in ("beta1", "beta2"):
            self._require(name, 0 <= _of(self, name, 0) < 1, "at least 0 and below 1")
        self._require_known("precision", PRECISIONS)
        self._require_known("schedule", SCHEDULES)
        if self.template is not None:
            find_template(self.template)
        self.lora()

    def check_together(self) -> None:
        """UsageError when settings that are each possible make no sense together."""
        if self.steps is not None and self.epochs is not None:
            raise UsageError("--steps and --epochs both say when to stop", "give one of them")
        if self.patience and self.eval_every == 0:
            raise UsageError("--patience counts validations, and there are none", "--eval-every N")
        self._check_fused_backward()
        self._check_adapter()

    def check_on(self, device: Device) -> None:
        """DeviceError or UsageError when `device` cannot do what these settings ask of it."""
        device.check_precision(self.precision)
        if self.fused_backward and device.fused_backward_missing():
            raise DeviceError(
                "--fused-backward: %s" % device.fused_backward_missing(), "train without it"
            )
        if self.recompute and device.recompute_missing():
            raise UsageError(
                f"--recompute: {device.recompute_missing()}",
                "use --moai-activation-recomputation True",
            )

    def in_one_piece(self) -> TrainConfig:
        """With the batch, which is filled in, as its only micro-batch."""
        if self.micro_batch_size not in (None, self.batch_size):
            raise UsageError(
                "the batch must be whole here, and --micro-batch-size is %d of %d"
                % (self.micro_batch_size, self.batch_size),
                "say --micro-batch-size %d" % self.batch_size,
            )
        return replace(self, micro_batch_size=self.batch_size)

    def _check_adapter(self) -> None:
        unused = {"lora_alpha", "lora_dropout", "lora_targets"}
        unused = {name for name in unused if getattr(self, name) != getattr(TrainConfig, name)}
        if unused and not self.lora_rank:
            raise UsageError(
                "%s without an adapter" % flag(sorted(unused)[0]), "give it a --lora-rank"
            )
        if self.lora_rank and self.freeze_layers is not None:
            raise UsageError("--lora-rank freezes all layers", "leave out --freeze-layers")
        if self.resume or self.init != "scratch":
            return
        if self.lora_rank:
            raise UsageError("--lora-rank adapts a finished model", "name one with --init")
        if self.freeze_layers is not None:
            raise UsageError("--freeze-layers keeps what a model knows", "name one with --init")

    def _check_fused_backward(self) -> None:
        if not self.fused_backward:
            return
        if self.grad_clip:
            raise UsageError(
                "--fused-backward is done with a gradient before all norms are known",
                "use --grad-clip 0",
            )
        if self.precision == "fp16-mixed":
            raise UsageError("--fused-backward cannot take back a step", "use another --precision")

    def moai_options(self) -> Dict[str, Any]:
        """The arguments for `devices.moai.start`, None where the platform is to choose."""
        names = (
            "num_stages", "num_micro_batches", "pipeline_parallel", "activation_recomputation",
            "distribute_parameter", "mixed_precision",
        )  # fmt: skip
        return {name: getattr(self, "moai_" + name) for name in names}

    def filled(self, recipe: Recipe, n_positions: int) -> TrainConfig:
        """This config with every open setting that `recipe` has an opinion on taken from it."""
        names = {field.name for field in fields(Recipe)} & {field.name for field in fields(self)}
        values = {n: getattr(recipe, n) for n in names if getattr(self, n) is None}
        if self.epochs is not None:
            values.pop("steps", None)
        if self.fused_backward:
            values["grad_clip"] = 0.0
        if self.block_size is None:
            values["block_size"] = min(recipe.block_size, n_positions)
        if self.min_lr is None and self.lr is not None:
            values["min_lr"] = self.lr * recipe.min_lr / recipe.lr
        return replace(self, **values)

    def lora(self) -> Optional[LoRAConfig]:
        """The adapter asked for, if one is."""
        if not self.lora_rank:
            return None
        targets = tuple(part.strip() for part in self.lora_targets.split(","))
        return LoRAConfig(self.lora_rank, self.lora_alpha, self.lora_dropout, targets)

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            value = getattr(self, name)
            raise UsageError("%s is %s" % (flag(name), value), "it must be %s" % what)

    def _require_known(self, name: str, known: Any) -> None:
        value = getattr(self, name)
        if value is not None and value not in known:
            raise UsageError("%s is %r" % (flag(name), value), nearest(value, known))


def check_block(block_size: int, n_positions: int) -> None:
    """UsageError when a row of `block_size` tokens has more than there are positions."""
    if block_size > n_positions:
        raise UsageError(
            f"--block-size {block_size} is more than the model's {n_positions} positions",
            f"use --block-size {n_positions}",
        )


def flag(name: str) -> str:
    """batch_size -> --batch-size"""
    return "--" + name.replace("_", "-")


def _of(config: TrainConfig, name: str, default: float = 1) -> float:
    value = getattr(config, name)
    return default if value is None else value


def read_config(path: Path) -> TrainConfig:
    """The TrainConfig in a TOML file; UsageError naming the first key that is none of ours, or of
    a wrong type.
    """
    values = _read_toml(path)
    known = {field.name: field.type for field in fields(TrainConfig)}
    for name, value in values.items():
        if name not in known:
            raise UsageError("%s: unknown setting %s" % (path, name), nearest(name, known))
        if not _fits(value, str(known[name])):
            raise UsageError(
                "%s: %s is %r" % (path, name, value), "it must be %s" % _kind(str(known[name]))
            )
    return TrainConfig(**values)


def write_config(path: Path, config: TrainConfig) -> None:
    """Writes the settings that have a value, as TOML. Where and how to start is not a setting."""
    values = {k: v for k, v in asdict(config).items() if v is not None and k not in _OF_ONE_START}
    write_text(path, "".join(line + "\n" for line in toml_lines(values)))


_OF_ONE_START = ("config", "resume", "dry_run", "debug", "out", "force")


def toml_lines(values: Dict[str, Any]) -> List[str]:
    """`key = value` lines. JSON's strings, numbers and booleans are TOML's."""
    return ["%s = %s" % (key, json.dumps(value)) for key, value in values.items()]


def _read_toml(path: Path) -> Dict[str, Any]:
    try:
        return toml.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            "cannot read %s: %s" % (path, error.strerror), "name a TOML file"
        ) from None
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            "%s is not TOML: %s" % (path, error), "write lines such as lr = 3e-5"
        ) from None


def _kind(annotation: str) -> str:
    """The TOML type of a setting, from its annotation."""
    for word, kind in (("bool", "true or false"), ("float", "a number"), ("int", "a whole number")):
        if word in annotation.split(",")[0].lower():  # what follows is prose
            return kind
    return "a string"


def _fits(value: Any, annotation: str) -> bool:
    kinds: Dict[str, Any] = {"a number": (int, float), "a whole number": int, "a string": str}
    kind = _kind(annotation)
    if isinstance(value, bool) or kind == "true or false":
        return isinstance(value, bool) and kind == "true or false"
    return isinstance(value, kinds[kind])
