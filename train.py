"""python train.py: trains a small GPT on Python's own library. `--help` tells everything else."""

import sys

from minigpt.__main__ import train
from minigpt.commands.cli import run

if __name__ == "__main__":
    sys.exit(run(train, sys.argv[1:]))
