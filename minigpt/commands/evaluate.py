"""`python -m minigpt evaluate`: a checkpoint's loss on held-out data, or its programs' success."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set

import torch

from minigpt.base.errors import DeviceError, UsageError
from minigpt.checkpoint import manifest
from minigpt.checkpoint.model_files import load_model, read_config
from minigpt.checkpoint.run_files import resolve
from minigpt.coding import humaneval
from minigpt.coding.humaneval import Problem, Results
from minigpt.coding.sandbox import sandbox_missing
from minigpt.commands.generate import note, require_room, tuned_template
from minigpt.commands.options import EvaluateConfig
from minigpt.data.datasets import open_datasets
from minigpt.data.sources import FUNCTIONS, Names, listed, said
from minigpt.data.template import Template, load_template
from minigpt.data.tokenizer import Tokenizer, load_tokenizer
from minigpt.decoding.generate import Sampling, pieces, stream
from minigpt.devices.device import find_device
from minigpt.model.gpt import GPT
from minigpt.training.apply import objective_for
from minigpt.training.config import TrainConfig, check_block
from minigpt.training.config_file import CONFIG, read_values
from minigpt.training.validation import Validation, validate

# What every completion and verdict depends on, beside the checkpoint and the problems.
_SETTINGS = (
    "instruct", "samples", "temperature", "max_new_tokens", "seed", "timeout", "memory",
    "batch_size",
)  # fmt: skip


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
    int8 = config.quantize is not None
    require_room(directory, device, dtype, int8)  # before data are read, too
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

    result = measured(int8)
    kind = "tokens"
    if found.template is not None:
        kind = "tokens of prompt and answer" if found.template.whole else "answer tokens"
    total = found.validation.token_count + (0 if how["whole"] else found.train.token_count)
    print(
        f"{directory} on {said(names)}: loss {result.loss:.4f},"
        f" perplexity {result.shown_perplexity},"
        f" {result.bits_per_byte:.4f} bits per byte ({result.tokens:,} {kind}) of {total:,} in all;"
        f" measured on {found.held_out}",
        flush=True,
    )
    if int8:
        try:
            require_room(directory, device, dtype)
        except DeviceError as error:
            note(f"what --quantize does to the loss is not known here: {error.what}")
            return
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
    device = find_device(config.device)
    require_room(directory, device, int8=int8)
    model = load_model(directory, device.torch_device, int8=int8)
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
    sampling = Sampling(config.temperature)

    def complete(problems: Sequence[Problem], start: int) -> List[str]:
        texts = [_text(problem, template) for problem in problems]
        prompts = [tokenizer.prompt(text) for text in texts]
        ended = [False] * len(prompts)
        new, eos, seed = config.max_new_tokens, tokenizer.eos_id, config.seed + start
        steps = stream(model, prompts, new, ended, sampling, eos, seed)
        answers = ["".join(row) for row in zip(*pieces(steps, ended, stops, tokenizer))]
        if template is None:
            return answers
        return [problem.completion(answer) for problem, answer in zip(problems, answers)]

    return complete


def _text(problem: Problem, template: Optional[Template]) -> str:
    """What is given to the model. An instruction ends as those of stdlib-functions do."""
    return problem.prompt if template is None else template.prompt(problem.prompt.rstrip())
