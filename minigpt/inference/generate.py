"""Continues a text: one pass over the prompt, then one position a token, thanks to the key-value
cache.

    prefill(prompt) -> logits;  repeat:  token ~ logits;  decode(token) -> logits

A model has learned a fixed number of positions. When they are used up, the newer half of the text
stays, takes the first positions, and generation goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from minigpt.errors import UsageError
from minigpt.inference.sampling import Sampling
from minigpt.model.attention import KVCache
from minigpt.model.gpt import GPT

PLAIN = Sampling()
Layers = List[Tuple[Tensor, Tensor]]
Step = Callable[[GPT, Tensor, Layers, int], Tensor]


def decode_step(model: GPT, tokens: Tensor, layers: Layers, length: int) -> Tensor:
    """tokens (samples, 1) behind the `length` positions in the cache's layers -> logits
    (samples, V).
    """
    x = model.features(tokens, cache=KVCache(layers, length))
    return model.logits(x[:, -1])


def compiled_step() -> Step:
    """`decode_step` through torch.compile: half a minute at the first token, then twice the speed
    and more on a CPU.
    """
    return torch.compile(decode_step, dynamic=True)  # or every length would be compiled anew


class Decoder:
    """Several continuations of one prompt, side by side: rows of `history`, (samples, length)
    int64.
    """

    def __init__(
        self, model: GPT, prompt: Sequence[int], samples: int, room: int, step: Step = decode_step
    ) -> None:
        """`room` is how many tokens will be asked for: no larger cache is taken than that needs."""
        if not prompt:
            raise UsageError("the prompt has no tokens", "start with the tokenizer's eos_id")
        self.model, self.positions = model, model.config.n_positions
        self.room, self.step = room, step
        device = model.token_embedding.weight.device
        ids = torch.tensor([list(prompt)[-self.positions :]], device=device)
        self.history = ids.expand(samples, -1)
        self.cache: KVCache
        self.logits = self._prefill(ids)
        if samples > 1:
            self.cache = self.cache.repeat(samples)
            self.logits = self.logits.expand(samples, -1)

    @torch.inference_mode()
    def append(self, tokens: Tensor) -> None:
        """Adds tokens (samples,) to the rows, and computes the logits (samples, V) that follow
        them.
        """
        self.history = torch.cat([self.history, tokens.unsqueeze(1)], 1)
        self.room -= 1
        if self.cache.length < self.cache.capacity:
            cache = self.cache
            self.logits = self.step(self.model, tokens.unsqueeze(1), cache.layers, cache.length)
            cache.length += 1
        else:
            self.logits = self._prefill(self.history[:, -max(1, self.positions // 2) :])

    @torch.inference_mode()
    def _prefill(self, ids: Tensor) -> Tensor:
        capacity = min(self.positions, ids.size(1) + self.room)
        self.cache = self.model.new_cache(ids.size(0), capacity)
        return self.model.logits(self.model.features(ids, cache=self.cache)[:, -1])


def stream(
    model: GPT,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    samples: int = 1,
    sampling: Sampling = PLAIN,
    stop_id: Optional[int] = None,
    seed: Optional[int] = None,
    step: Step = decode_step,
) -> Iterator[List[Optional[int]]]:
    """Yields, one after the other, the next token of each of `samples` rows; None for a row that
    has met `stop_id` (which is not yielded itself). Ends when all rows have, or after
    `max_new_tokens`.

    The draws come from a generator of its own: the same seed gives the same tokens, and no other
    random numbers are touched. A prompt longer than the model's positions is cut at its
    beginning. `step` computes a token's logits: `decode_step`, or `compiled_step()`.
    """
    training = model.training
    model.eval()
    try:
        decoder = Decoder(model, prompt_ids, samples, max_new_tokens, step)
        generator = torch.Generator(device=decoder.logits.device)
        generator.manual_seed(seed) if seed is not None else generator.seed()
        ended = [False] * samples
        for left in reversed(range(max_new_tokens)):
            tokens = sampling.draw(decoder.logits, generator)
            row = tokens.tolist()  # the one transfer a token needs
            ended = [done or token == stop_id for done, token in zip(ended, row)]
            if all(ended):
                return
            yield [None if done else token for done, token in zip(ended, row)]
            if left:
                decoder.append(tokens)
    finally:
        model.train(training)


def generate(
    model: GPT,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: Optional[int] = None,
    top_p: Optional[float] = None,
    stop_id: Optional[int] = None,
    seed: Optional[int] = None,
) -> List[int]:
    """The ids that continue `prompt_ids`, at most `max_new_tokens`, up to but without `stop_id`."""
    sampling = Sampling(temperature, top_k, top_p)
    steps = stream(model, prompt_ids, max_new_tokens, 1, sampling, stop_id, seed)
    return [token for (token,) in steps if token is not None]


@dataclass(frozen=True)
class Notes:
    """What a person should know about a prompt of `tokens` continued by `new`, given the model's
    positions.
    """

    tokens: int
    new: int
    positions: int

    def lines(self) -> Tuple[str, ...]:
        """One sentence each, none where nothing is unusual."""
        lines = []
        if self.tokens > self.positions:
            lines.append(
                "the prompt has %d tokens and the model %d positions: its last %d are used"
                % (self.tokens, self.positions, self.positions)
            )
        if min(self.tokens, self.positions) + self.new - 1 > self.positions:
            lines.append(
                "the text will outgrow the model's %d positions: each time it does, only its last"
                " %d tokens are remembered" % (self.positions, self.positions // 2)
            )
        return tuple(lines)
