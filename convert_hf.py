"""python convert_hf.py SOURCE: a Hugging Face checkpoint to ours; --to-hf CHECKPOINT: and back."""

import sys

from minigpt.cli import run
from minigpt.hf.command import convert_command

if __name__ == "__main__":
    sys.exit(run(convert_command, sys.argv[1:]))
