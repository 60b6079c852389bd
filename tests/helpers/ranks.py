"""What several processes of torchrun run for tests/training/test_parallel.py: trains each case of
the JSON file given, all in one group of processes, as starting them takes longer than the steps.
"""

import json
import resource
import sys
from pathlib import Path

import torch

from minigpt.commands.flags import parse_settings
from minigpt.data.tokenizer import load_tokenizer
from minigpt.devices.device import find_device
from minigpt.training.build import build, create_run, open_data
from minigpt.training.config import TrainConfig
from minigpt.training.config_file import flag_words
from minigpt.training.parallel import ALONE, joined
from minigpt.training.resolve import resolve


def train(flags, world=ALONE):
    """Trains with these flags as one process of `world`. In the step that `poison` names the loss
    of the last process is no number.
    """
    poison = flags.pop("poison", None)
    config = parse_settings(TrainConfig, "train.py", flag_words(flags))
    device = find_device(config.device)
    with world.one_by_one():
        settings = resolve(config, device)
        tokenizer = load_tokenizer(settings.vocabulary)
        data = open_data(settings, tokenizer)
        settings = resolve(config, device, data)
    trainer = build(settings, device, tokenizer, data, world)
    create_run(trainer)
    real, last = trainer.objective.forward, world.rank == world.size - 1

    def forward(batch):
        bad = last and trainer.state.step + 1 == poison and trainer.objective.training
        return real(batch) * (float("nan") if bad else 1.0)

    if poison:
        trainer.objective.forward = forward
    assert trainer.train() == 0
    if poison and not trainer.world.divided:  # all hold the same weights still
        (weight,) = (p for n, p in trainer.model.named_parameters() if n == "final_norm.weight")
        bits = weight.detach().view(torch.int32).sum().item()
        assert world.largest(bits) == -world.largest(-bits)
    return trainer


if __name__ == "__main__":
    with joined(find_device("cpu"), alone=False) as world:
        for flags in json.loads(Path(sys.argv[1]).read_text()):
            if flags.pop("full", None) == world.rank:  # nothing larger can be written any more
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            train(flags, world)
