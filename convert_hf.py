"""python convert_hf.py SOURCE: a Hugging Face checkpoint to ours; --to-hf CHECKPOINT: and back."""

import sys

from minigpt.__main__ import convert
from minigpt.commands.cli import run

if __name__ == "__main__":
    sys.exit(run(convert, sys.argv[1:]))
