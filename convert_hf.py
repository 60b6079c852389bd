"""python convert_hf.py SOURCE: a Hugging Face checkpoint to ours; --to-hf CHECKPOINT: and back."""

import sys

from minigpt.commands.cli import run
from minigpt.commands.convert import convert_command

if __name__ == "__main__":
    sys.exit(run(convert_command, sys.argv[1:]))
