"""A small tuned checkpoint with GPT-2's vocabulary, and its export."""

from minigpt.data.template import TEMPLATES, save_template
from minigpt.hf.export import export
from minigpt.model.gpt import GPTConfig
from tests.helpers.tuning import base


def exported(directory, template="instruct", vocab_size=50257, positions=64, width=24, **shape):
    """Writes directory/ours and directory/theirs, random everywhere; returns the export's lines."""
    shape = {"activation": "gelu_tanh", "init_std": 0.2, **shape}
    ours = base(
        directory / "ours", "gpt2", shape=GPTConfig(vocab_size, positions, 2, 3, width, **shape)
    )
    if template is not None:
        save_template(ours, TEMPLATES[template])
    return export(ours, directory / "theirs")
