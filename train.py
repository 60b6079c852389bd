"""python train.py: trains a small GPT on Python's own library. `--help` tells everything else."""

import sys

from minigpt.commands.cli import run
from minigpt.commands.train import train_command

if __name__ == "__main__":
    sys.exit(run(train_command, sys.argv[1:]))
