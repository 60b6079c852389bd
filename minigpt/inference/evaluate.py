"""`python -m minigpt evaluate`: a checkpoint's loss, perplexity and bits per byte on held-out
text.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from minigpt.checkpoint.model_files import load_model
from minigpt.checkpoint.run_files import resolve
from minigpt.data.loader import Batch, TokenDataset
from minigpt.data.prepare import prepared
from minigpt.data.tokenizer import load_tokenizer
from minigpt.devices.device import find_device
from minigpt.training.loss import batch_loss
from minigpt.training.validation import validate


@dataclass
class EvaluateConfig:
    """Measures a checkpoint on the validation part of some data."""

    checkpoint: str
    """A checkpoint or run directory."""
    data: str = "stdlib"
    """stdlib, a .txt, .py or .jsonl file, a directory, or a prepared one."""
    block_size: int = 0
    """Tokens per window, 0 for all the positions the model has."""
    batch_size: int = 8
    """Windows at a time; the result is the same."""
    eval_tokens: int = 0
    """Tokens used, spread evenly over the set, 0 for all."""
    device: str = "auto"
    """auto, cpu, cuda, mps or moai."""
    precision: str = "fp32"
    """fp32 or bf16-mixed."""


def evaluate_command(config: EvaluateConfig) -> None:
    """Prints what `validate` finds."""
    device = find_device(config.device)
    directory = resolve(config.checkpoint)
    model = load_model(directory, device.torch_device)
    tokenizer = load_tokenizer(str(directory))
    block = config.block_size or model.config.n_positions
    dataset = TokenDataset(prepared(config.data, tokenizer), "validation", block)

    def loss_of(batch: Batch) -> Tensor:
        return batch_loss(model.features, model.head_weight, batch, device, config.precision)

    rows, lengths = config.batch_size, tokenizer.byte_lengths()
    place = device.torch_device
    result = validate(model, loss_of, dataset, lengths, rows, place, config.eval_tokens)
    print(
        "%s on %s: loss %.4f, perplexity %.2f, %.4f bits per byte (%s tokens)"
        % (
            directory,
            config.data,
            result.loss,
            result.perplexity,
            result.bits_per_byte,
            format(result.tokens, ","),
        )
    )
