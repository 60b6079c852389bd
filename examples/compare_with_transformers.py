"""compare_with_transformers.py CHECKPOINT EXPORTED: both read one function, and must agree."""

import sys

import torch

from minigpt import load_model, load_tokenizer
from minigpt.checkpoint.run_files import resolve

checkpoint, exported = sys.argv[1:]
try:
    from transformers import GPT2LMHeadModel, GPT2Tokenizer
except ImportError:
    sys.exit("transformers is not installed here: nothing was compared")

text = 'def first(items):\n    """Return the first of the items."""\n    return items[0]\n'
tokenizer = load_tokenizer(resolve(checkpoint))
ids = tokenizer.encode(text)
assert GPT2Tokenizer.from_pretrained(exported)(text)["input_ids"] == ids
with torch.no_grad():
    ours = load_model(checkpoint)(torch.tensor([ids]))
    theirs = GPT2LMHeadModel.from_pretrained(exported)(torch.tensor([ids])).logits
apart = ((ours - theirs).abs().max() / theirs.abs().max()).item()
print("logits of %s and of transformers differ by %.1e of the largest" % (checkpoint, apart))
sys.exit(apart > 1e-5)
