"""GPT-2's vocabulary, cut short: read in no time."""

import json

from minigpt.data.tokenizer import load_tokenizer


def small_vocabulary(place):
    """A directory with the first 299 of GPT-2's words, and its end of text."""
    known = load_tokenizer("gpt2")
    words = {name: n for name, n in json.loads(known.vocab_json).items() if n < 299}
    place.mkdir()
    (place / "vocab.json").write_text(json.dumps({**words, "<|endoftext|>": 299}))
    merges = known.merges.decode().splitlines()[: 299 - 256 + 1]
    (place / "merges.txt").write_text("\n".join(merges) + "\n")
    return place
