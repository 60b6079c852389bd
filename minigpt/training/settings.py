"""A run, settled: one frozen record that the plan, the dry run, build and the trainer read.

Nothing in it is open: what the flags left open has been decided (resolve.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional, Union

from minigpt.data.sources import Names
from minigpt.data.template import Template, find_template
from minigpt.model.gpt import GPTConfig
from minigpt.model.lora import LoRAConfig
from minigpt.training.config import TrainConfig


@dataclass(frozen=True)
class Settings:
    """A run, settled. A name that is also a flag's means what the flag's help says."""

    asked: TrainConfig = field(compare=False)
    # where it begins
    init: str
    model: str
    tokenizer: Optional[str]  # as --tokenizer named it; `vocabulary` is what is used
    start: Optional[Path]  # the checkpoint that gives the weights; None: they are drawn
    resumes: Optional[Path]  # the same, where it is of this run, which goes on
    vocabulary: Union[str, Path]  # what load_tokenizer opens: a name, or a checkpoint
    shape: GPTConfig
    run: Path  # the run's directory
    # the data
    data: Names
    validation: Optional[Names]
    text_key: Optional[str]
    special_tokens: bool
    template: Optional[str]  # as --template named it, or as the records were rendered
    tuned: Optional[Template]  # that `start` was tuned with
    packing: bool
    record_keys: Optional[str]
    strict: bool
    # where and how it computes
    device: str
    precision: str
    recompute: bool
    fused_backward: bool
    compile: bool
    deterministic: bool
    # steps
    steps: int
    batch_size: int
    micro_batch_size: int
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
    seed: int
    # what learns
    lora: Optional[LoRAConfig]  # None: the weights do
    freeze_layers: Optional[int]  # None: none are frozen, not even the embeddings
    # what happens every so often
    patience: int
    log_every: int
    eval_every: int
    eval_tokens: int
    sample_every: int
    sample_prompt: str
    save_every: int
    keep: int
    tensorboard: bool
    # what MoAI is told; None: the platform chooses
    moai_parallelization: bool
    moai_num_stages: Optional[int]
    moai_num_micro_batches: Optional[int]
    moai_pipeline_parallel: Optional[bool]
    moai_activation_recomputation: Optional[bool]
    moai_distribute_parameter: Optional[bool]
    moai_mixed_precision: Optional[bool]

    @property
    def rendering(self) -> Template:
        """How records become text, if the data are records."""
        if self.template is None and self.tuned is not None:
            return self.tuned
        return find_template(self.template or "instruct")

    @property
    def moai_options(self) -> Dict[str, Any]:
        """The arguments for `devices.moai.enable`."""
        names = [name for name in vars(self) if name.startswith("moai_")]
        return {n[len("moai_") :]: getattr(self, n) for n in names if n != "moai_parallelization"}
