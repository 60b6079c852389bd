"""train.py: reads the settings, builds the run, trains, and says what came out of it."""

from __future__ import annotations

import time
from typing import List

from minigpt.base.text import duration
from minigpt.training.build import build, create_run
from minigpt.training.closing import closing_report
from minigpt.training.config import TrainConfig
from minigpt.training.settings import parse_settings
from minigpt.training.trainer import Trainer


def train_command(arguments: List[str]) -> int:
    """Trains as `arguments` say; returns the exit code."""
    began = time.perf_counter()
    config = parse_settings(TrainConfig, "train.py", arguments)
    trainer = build(config)
    print(_opening(trainer), flush=True)
    if config.dry_run:
        print(_dry_run(trainer))
        return 0
    create_run(trainer)
    code = trainer.train()
    if code:
        print(
            "\nstopped after step %d; saved %s\ngo on with: python train.py --resume %s"
            % (trainer.state.step, trainer.save(), trainer.run)
        )
    else:
        print(closing_report(trainer))
        print("took %s" % duration(time.perf_counter() - began))
    return code


def _opening(trainer: Trainer) -> str:
    c, shape, data = trainer.settings, trainer.model.config, trainer.loader.dataset
    return "\n".join(
        (
            "model    %s parameters: %d layers, %d heads, %d wide; %s tokenizer"
            % (
                format(trainer.model.parameter_count(), ","),
                shape.n_layer,
                shape.n_head,
                shape.n_embd,
                trainer.tokenizer.name,
            ),
            *_learning(trainer),
            "data     %s: %s tokens to train on, %s to validate"
            % (c.data, format(data.token_count, ","), format(trainer.validation.token_count, ",")),
            *("         %s" % note for note in trainer.notes),
            "run      %s: %s steps of %s x %s tokens, %s on %s"
            % (trainer.run, c.steps, c.batch_size, c.block_size, c.precision, trainer.device),
        )
    )


def _learning(trainer: Trainer) -> List[str]:
    """What is trained, where it is not the whole model."""
    whole = trainer.model.parameter_count()
    learned = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    if learned == whole:
        return []
    adapter = trainer.adapter
    what = "the rest is frozen" if adapter is None else "an adapter of rank %d" % adapter.lora.rank
    return ["trained  %s parameters, %s" % (format(learned, ","), what)]


def _dry_run(trainer: Trainer) -> str:
    batch = next(trainer.loader)
    trainer.loader.close()
    return "dry run  the first batch has %d x %d tokens, %d to learn from; no step was run" % (
        *batch.tokens.shape,
        batch.supervised,
    )
