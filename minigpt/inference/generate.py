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

from minigpt.devices.device import device_of
from minigpt.errors import UsageError
from minigpt.inference.sampling import Sampling
from minigpt.model.cache import KVCache
from minigpt.model.gpt import GPT
from minigpt.model.linear import try_library

PLAIN = Sampling()
Layers = List[Tuple[Tensor, Tensor]]
Step = Callable[[GPT, Tensor, Layers, int, Optional[Tensor]], Tensor]
Steps = Iterator[List[Optional[int]]]


def decode_step(
    model: GPT, tokens: Tensor, layers: Layers, length: int, starts: Optional[Tensor] = None
) -> Tensor:
    """tokens (rows, 1) behind the `length` positions in the cache's layers -> logits (rows, V).
    `starts` (rows,) is where each row begins, None when all begin at 0.
    """
    x = model.features(tokens, cache=KVCache(layers, length, starts))
    return model.logits(x[:, -1])


def compiled_step() -> Step:
    """`decode_step` through torch.compile: half a minute at the first token, then faster on a
    CPU.
    """
    try_library()  # now, since it cannot be timed from inside a compiled graph
    return torch.compile(decode_step, dynamic=True)  # or every length would be compiled anew


class Decoder:
    """Several continuations of one prompt, side by side: rows of `history`, (samples, length)
    int64.
    """

    def __init__(
        self, model: GPT, prompt: Sequence[int], samples: int, room: int, step: Step = decode_step
    ) -> None:
        """`room` is how many tokens will be asked for: no larger cache is taken than that needs."""
        self.model, self.positions = model, model.config.n_positions
        self.room, self.step = room, step
        device = model.token_embedding.weight.device
        ids = torch.tensor([_last(prompt, self.positions)], device=device)
        self.history = ids.expand(samples, -1)
        self.cache: KVCache
        self.logits = self._prefill(ids)
        if samples > 1:
            self.cache = self.cache.repeat(samples)
            self.logits = self.logits.expand(samples, -1)

    @torch.inference_mode()
    def append(self, tokens: Tensor) -> None:
        """Adds tokens (rows,) to the rows, and computes the logits (rows, V) that follow them."""
        self.history = torch.cat([self.history, tokens.unsqueeze(1)], 1)
        self.room -= 1
        if self.cache.length < self.cache.capacity:
            cache = self.cache
            self.logits = self.step(
                self.model, tokens.unsqueeze(1), cache.layers, cache.length, cache.starts
            )
            cache.length += 1
        else:
            self._begin_again()

    def _begin_again(self) -> None:
        self.logits = self._prefill(self.history[:, -max(1, self.positions // 2) :])

    @torch.inference_mode()
    def _prefill(self, ids: Tensor, starts: Optional[Tensor] = None) -> Tensor:
        capacity = min(self.positions, ids.size(1) + self.room)
        self.cache = self.model.new_cache(ids.size(0), capacity)
        self.cache.starts = starts
        return self.model.logits(self.model.features(ids, cache=self.cache)[:, -1])


class BatchDecoder(Decoder):
    """One continuation each of several prompts, padded on the left to the longest.

    The longest row has no padding, so the cache is full when that row has used up the model's
    positions. Then each row that has keeps its newer half, and all are read again: every row gets
    the logits that it would get alone.
    """

    def __init__(self, model: GPT, prompts: Sequence[Sequence[int]], room: int) -> None:
        """`room` as in Decoder."""
        self.model, self.positions = model, model.config.n_positions
        self.room, self.step = room, decode_step
        self._read([_last(prompt, self.positions) for prompt in prompts])

    def _begin_again(self) -> None:
        rows = [row[start:] for row, start in zip(self.history.tolist(), self.starts.tolist())]
        half = max(1, self.positions // 2)
        self._read([row if len(row) <= self.positions else row[-half:] for row in rows])

    def _read(self, rows: Sequence[Sequence[int]]) -> None:
        width, device = max(map(len, rows)), self.model.token_embedding.weight.device
        padded = [[0] * (width - len(row)) + list(row) for row in rows]
        self.history = torch.tensor(padded, device=device)
        self.starts = torch.tensor([width - len(row) for row in rows], device=device)
        self.logits = self._prefill(self.history, self.starts)


def _last(prompt: Sequence[int], positions: int) -> List[int]:
    if not prompt:
        raise UsageError("the prompt has no tokens", "start with the tokenizer's eos_id")
    return list(prompt)[-positions:]


def stream(
    model: GPT,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    samples: int = 1,
    sampling: Sampling = PLAIN,
    stop_id: Optional[int] = None,
    seed: Optional[int] = None,
    step: Step = decode_step,
) -> Steps:
    """Yields, one after the other, the next token of each of `samples` rows; None for a row that
    has met `stop_id` (which is not yielded itself). Ends when all rows have, or after
    `max_new_tokens`.

    The draws come from a generator of its own: the same seed gives the same tokens, and no other
    random numbers are touched. A prompt longer than the model's positions is cut at its
    beginning. `step` computes a token's logits: `decode_step`, or `compiled_step()`.
    """

    def decoder() -> Decoder:
        return Decoder(model, prompt_ids, samples, max_new_tokens, step)

    return _steps(model, decoder, [False] * samples, max_new_tokens, sampling, stop_id, seed)


def stream_batch(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ended: List[bool],
    sampling: Sampling = PLAIN,
    stop_id: Optional[int] = None,
    seed: Optional[int] = None,
) -> Steps:
    """`stream` for one continuation each of several prompts of any lengths, decoded together.

    `ended`, one False for each prompt, is kept up to date, and the reader may set an entry to end
    that row. A row gets the tokens it would get alone, but for the rounding of its logits.
    """

    def decoder() -> Decoder:
        return BatchDecoder(model, prompts, max_new_tokens)

    return _steps(model, decoder, ended, max_new_tokens, sampling, stop_id, seed)


def _steps(
    model: GPT,
    make_decoder: Callable[[], Decoder],
    ended: List[bool],
    max_new_tokens: int,
    sampling: Sampling,
    stop_id: Optional[int],
    seed: Optional[int],
) -> Steps:
    training = model.training
    model.eval()
    try:
        decoder = make_decoder()
        device = decoder.logits.device
        place = device_of(device).generator_device
        generator = torch.Generator(device=place)
        generator.manual_seed(seed) if seed is not None else generator.seed()
        for left in reversed(range(max_new_tokens)):
            tokens = sampling.draw(decoder.logits.to(place), generator)
            row = tokens.tolist()  # the one transfer a token needs
            ended[:] = [done or token == stop_id for done, token in zip(ended, row)]
            if all(ended):
                return
            yield [None if done else token for done, token in zip(ended, row)]
            if all(ended):
                return
            if left:
                decoder.append(tokens.to(device))
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
