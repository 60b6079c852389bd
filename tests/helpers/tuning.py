"""A small checkpoint and a file of instructions made of real functions: fine-tuning, for tests."""

import json

import torch

from minigpt.checkpoint.manifest import write_checkpoint
from minigpt.checkpoint.model_files import save_model
from minigpt.commands.flags import parse_settings
from minigpt.data.records import functions
from minigpt.data.tokenizer import load_tokenizer
from minigpt.devices.device import find_device
from minigpt.model.gpt import GPT, GPTConfig
from minigpt.training.build import build, create_run, open_data
from minigpt.training.config import TrainConfig
from minigpt.training.config_file import flag_words
from minigpt.training.resolve import resolve
from tests.helpers.runs import ROOT

SETTINGS = {
    "batch_size": 4, "steps": 6, "warmup_steps": 1, "lr": 1e-3, "seed": 5, "log_every": 1,
    "eval_every": 2, "sample_every": 0, "save_every": 2,
}  # fmt: skip


def base(directory, tokenizer="bytes", positions=1024, shape=None):
    """A checkpoint with random weights, large enough to learn something in a few steps."""
    torch.manual_seed(3)
    known = load_tokenizer(tokenizer)
    model = GPT(shape or GPTConfig(known.vocab_size, positions, 2, 2, 32, init_std=0.1))
    write_checkpoint(directory, lambda partial: save_model(partial, model), known)
    return directory


def instructions(path):
    """The documented functions of this package as a .jsonl file of instruction and output."""
    with path.open("w") as file:
        for source in sorted((ROOT / "minigpt" / "model").glob("*.py")):
            for exercise in functions(source.read_text(), source.name):
                record = {"instruction": exercise.head, "output": exercise.body}
                file.write(json.dumps(record) + "\n")
    return path


def tuning(tmp_path, name="run", tokenizer="bytes", **settings):
    """A Trainer that fine-tunes `base` on `instructions`."""
    start = tmp_path / "base"
    if not start.exists():
        base(start, tokenizer)
        instructions(tmp_path / "functions.jsonl")
    values = {**SETTINGS, "init": str(start), "data": str(tmp_path / "functions.jsonl")}
    return trainer_of(**{**values, "out": str(tmp_path / name), **settings})


def trainer_of(**flags):
    """The Trainer that train.py makes of these flags: `lr=0.1` is --lr 0.1."""
    config = parse_settings(TrainConfig, "train.py", flag_words(flags))
    device = find_device(config.device)
    settings = resolve(config, device)
    tokenizer = load_tokenizer(settings.vocabulary)
    data = open_data(settings, tokenizer)
    trainer = build(resolve(config, device, data), device, tokenizer, data)
    trainer.notes = data.notes
    return trainer


def resumed(run, **flags):
    """The Trainer that goes on with a run directory, or with that of another Trainer."""
    return trainer_of(resume=str(getattr(run, "run", run)), **flags)


def run_to_the_end(trainer):
    """Trains; returns the run's directory."""
    create_run(trainer)
    assert trainer.train() == 0
    return trainer.run
