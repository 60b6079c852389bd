"""A model's shape and recipe, changed by flags: --model gpt2 --n-layer 6 --n-embd 384."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, Tuple

from minigpt.base.errors import UsageError, flag
from minigpt.model.gpt import GPTConfig
from minigpt.model.zoo import Recipe, ZooEntry
from minigpt.training.config import SHAPE, TrainConfig


def shape_of(entry: ZooEntry, config: TrainConfig) -> Tuple[GPTConfig, Recipe]:
    """The shape and recipe of `entry` with what `config` asks for instead, fitted to the width.

    A sum over the width stays as large when what is summed is drawn with a deviation of 1 /
    sqrt(width); the rate of a wider model falls with 1 / width, as those of the published ones
    about do. What is called muP has its own rules (Yang et al. 2022). Rows fill the context if the
    recipe's do. UsageError for a shape that contradicts itself.
    """
    base, recipe = entry.config, entry.recipe
    asked = {name: getattr(config, name) for name in SHAPE if getattr(config, name) is not None}
    if recipe.block_size == base.n_positions:
        recipe = replace(recipe, block_size=asked.get("n_positions", base.n_positions))
    width, heads = asked.get("n_embd", base.n_embd), asked.get("n_head", base.n_head)
    if width % heads:
        few = min(range(1, 257), key=lambda n: (width % n > 0, abs(width / n - 64)))
        what = f"a width of {width} does not divide into {heads} heads"
        raise UsageError(what, f"say --n-head {few}, or --n-embd {width // heads * heads + heads}")
    part, hidden = base.n_embd / width, base.hidden_init_std  # 1 where the width is the model's
    fitted: Dict[str, Any] = {"hidden_init_std": hidden and hidden * part**0.5}
    fitted["n_inner"] = base.n_inner and round(base.n_inner / part)
    if base.attention_scale is None:
        fitted["init_std"] = base.init_std * part**0.5
        slower = min(1.0, part)
        recipe = replace(recipe, lr=recipe.lr * slower, min_lr=recipe.min_lr * slower)
    else:
        fitted.update(output_scale=base.output_scale * part, attention_scale=heads / width)
        recipe = replace(recipe, hidden_lr_scale=recipe.hidden_lr_scale * part)
    return replace(base, **{**fitted, **asked}), recipe


def require_own_shape(config: TrainConfig) -> None:
    """UsageError when `config`, whose model is there already, asks for another shape."""
    for name in SHAPE:
        if getattr(config, name) is not None:
            what = (
                f"{flag(name)} is for training from scratch, and --init {config.init} has a shape"
            )
            raise UsageError(what, "leave one of them out")
