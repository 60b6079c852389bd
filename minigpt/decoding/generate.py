"""Continues a text: one pass over the prompt, then one position a token, thanks to the cache.

    prefill(prompt) -> logits;  repeat:  token ~ logits;  decode(token) -> logits

A token is drawn by temperature, top-k and top-p (Holtzman et al. 2020), after a penalty on what is
there already (Keskar et al. 2019). A model has learned a fixed number of positions. When they are
used up, the newer half of the text stays, takes the first positions, and generation goes on from
there. Letters: B rows, V vocabulary.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Callable, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from minigpt.base.errors import CheckpointError, UsageError, as_ids, require_number
from minigpt.data.tokenizer import Tokenizer
from minigpt.decoding.fast_rows import fast_rows
from minigpt.decoding.graphs import GraphedStep
from minigpt.devices.device import device_of
from minigpt.model.cache import KVCache
from minigpt.model.gpt import GPT

Prompts = Sequence[Sequence[int]]
Layers = List[Tuple[Tensor, Tensor]]
Step = Callable[[GPT, Tensor, Layers, int, Optional[Tensor]], Tensor]
Steps = Iterator[List[Optional[int]]]
Stop = Union[None, int, Sequence[int]]


@dataclass(frozen=True)
class Sampling:
    """How to choose among the tokens. At temperature 0 it is the likeliest, whatever the rest."""

    temperature: float = 1.0
    top_k: Optional[int] = None
    top_p: Optional[float] = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        require_number("temperature", self.temperature, least=0)
        require_number("top-k", self.top_k, least=1, whole=True, optional=True)
        require_number("top-p", self.top_p, above=0, most=1, optional=True)
        require_number("repetition penalty", self.repetition_penalty, least=0.01, most=100)

    def draw(
        self, logits: Tensor, generator: Optional[torch.Generator] = None,
        seen: Optional[Tensor] = None,
    ) -> Tensor:  # fmt: skip
        """logits (B, V) -> tokens (B,) int64, drawn with `generator`, on the logits' device; -1 in
        a row whose logits are no numbers. `seen` (B, V) bool is penalized, and gets what is drawn.
        """
        broken = ~logits.amax(-1).isfinite()
        if seen is not None and self.repetition_penalty != 1:
            logits, penalty = logits.float(), self.repetition_penalty
            lower = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(seen, lower, logits)
        if self.temperature > 0:
            logits = self._race(logits, generator)
        tokens = logits.argmax(-1, keepdim=True)
        if seen is not None:
            seen.scatter_(1, tokens, True)
        return tokens[:, 0].masked_fill(broken, -1)

    def _race(self, logits: Tensor, generator: Optional[torch.Generator]) -> Tensor:
        """Numbers (B, V) of which the largest is at a token drawn from the distribution."""
        logits = logits.float() / max(self.temperature, 1e-30)  # no quotient may overflow
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        probabilities = torch.softmax(logits, -1)
        # The first of exponential arrival times with rates p is token i with probability p_i.
        # torch.multinomial runs the same race, but first has the host check its input, twice.
        return probabilities / torch.empty_like(probabilities).exponential_(generator=generator)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Leaves the k largest of each row (and what equals the k-th) and makes the rest impossible."""
    smallest = torch.topk(logits, min(k, logits.size(-1))).values[:, -1:]
    return logits.masked_fill(logits < smallest, -float("inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Leaves the fewest tokens of each row whose probabilities add up to at least p."""
    ordered, places = torch.sort(logits, descending=True)
    probabilities = torch.softmax(ordered, -1)
    before = probabilities.cumsum(-1) - probabilities  # what the likelier ones already have
    ordered = ordered.masked_fill(before >= p, -float("inf"))
    return torch.empty_like(logits).scatter_(1, places, ordered)


def decode_step(
    model: GPT, tokens: Tensor, layers: Layers, length: int, starts: Optional[Tensor] = None
) -> Tensor:
    """tokens (rows, 1) behind the `length` positions in the cache's layers -> logits (rows, V).
    `starts` (rows,) is where each row begins, None when all begin at 0.
    """
    x = model.features(tokens, cache=KVCache(layers, length, starts))
    return model.logits(x[:, -1])


def compiled_step() -> Step:
    """`decode_step` by torch.compile: half a minute at the first token, then faster on a CPU."""
    return torch.compile(decode_step, dynamic=True)  # or every length would be compiled anew


def step_for(model: GPT, compiled: bool = False) -> Step:
    """The fastest step on the device of `model`, compiled or not."""
    if device_of(model.token_embedding.weight.device).has_graphs:
        return GraphedStep(compiled)
    return compiled_step() if compiled else decode_step


class Decoder:
    """Continuations of several prompts side by side, `samples` of each, padded on the left to the
    longest. `logits` (rows, V) are for what comes next.

    The longest row has no padding, so the cache is full when that row has used up the model's
    positions. Then each row that has keeps its newer half, and all are read again: every row gets
    the logits that it would get alone.
    """

    def __init__(
        self, model: GPT, prompts: Prompts, room: int, samples: int = 1, step: Step = decode_step
    ) -> None:
        """`room` is how many tokens will be asked for: no larger cache is taken than that needs."""
        self.model, self.positions = model, model.config.n_positions
        self.room, self.step, vocabulary = room, step, model.config.vocab_size
        rows = [as_ids(ids, "prompt", vocabulary)[-self.positions :] for ids in prompts]
        if not all(rows):
            raise UsageError("the prompt has no tokens", "start with the tokenizer's eos_id")
        self._read(rows, samples)

    @torch.inference_mode()
    def _read(self, rows: Sequence[List[int]], samples: int = 1) -> None:
        width, device = max(map(len, rows)), self.model.token_embedding.weight.device
        padding = [width - len(row) for row in rows]
        padded = [[0] * missing + row for missing, row in zip(padding, rows)]
        tokens = torch.tensor(padded, device=device)
        self.cache = self.model.new_cache(len(rows), min(self.positions, width + self.room))
        if any(padding):
            self.cache.starts = torch.tensor(padding, device=device)
        logits = self.model.logits(self.model.features(tokens, cache=self.cache)[:, -1])
        self.logits = logits.repeat_interleave(samples, 0)
        if samples > 1:
            self.cache = self.cache.repeat(samples)
        self.read = [row for row in rows for _ in range(samples)]
        self.added: List[Tensor] = []  # since then

    @torch.inference_mode()
    def append(self, tokens: Tensor) -> None:
        """Adds tokens (rows,) to the rows, and computes the logits (rows, V) that follow them."""
        self.added.append(tokens)
        self.room -= 1
        model, cache, tokens = self.model, self.cache, tokens.unsqueeze(1)
        if cache.length < cache.capacity:
            self.logits = self.step(model, tokens, cache.layers, cache.length, cache.starts)
            cache.length += 1
            return
        rows = [row + more for row, more in zip(self.read, torch.stack(self.added, 1).tolist())]
        half = max(1, self.positions // 2)
        self._read([row if len(row) <= self.positions else row[-half:] for row in rows])


def stream(
    model: GPT, prompts: Prompts, max_new_tokens: int, ended: List[bool], sampling: Sampling,
    stop_id: Stop = None, seed: Optional[int] = None, step: Optional[Step] = None,
) -> Steps:  # fmt: skip
    """Yields, one after the other, the next token of each row; None for a row that has met a
    `stop_id` (which is not yielded itself). Ends when all rows have, or after `max_new_tokens`.

    `ended` has a False for each row, as many for each prompt as it is to have continuations. It is
    kept up to date, and the reader may set an entry to end that row. A row gets the tokens it would
    get alone, but for the rounding of its logits. A prompt longer than the model's positions is cut
    at its beginning. The draws come from a generator of its own: the same seed gives the same
    tokens. `step` computes a token's logits; None: `step_for(model)`.
    """
    require_number("number of new tokens", max_new_tokens, least=0, whole=True)
    require_number("seed", seed, least=0, most=2**63 - 1, whole=True, optional=True)
    stops = [stop_id] if isinstance(stop_id, int) else () if stop_id is None else stop_id
    stops, training = as_ids(stops, "stop_id"), model.training
    model.eval()
    try:
        with fast_rows(model):
            samples, step = len(ended) // len(prompts), step or step_for(model)
            decoder = Decoder(model, prompts, max_new_tokens, samples, step)
            device = decoder.logits.device
            place = device_of(device).generator_device
            generator = torch.Generator(device=place)
            generator.manual_seed(seed) if seed is not None else generator.seed()
            seen = torch.zeros(decoder.logits.shape, dtype=torch.bool, device=place)
            for number, ids in enumerate(decoder.read):
                seen[number, ids] = True
            for left in reversed(range(max_new_tokens)):
                tokens = sampling.draw(decoder.logits.to(place), generator, seen)
                row = tokens.tolist()  # the one transfer a token needs
                if min(row) < 0:
                    fix = "train or convert it again; fp16 is too small for some: --dtype fp32"
                    raise CheckpointError("the model's logits are not numbers", fix)
                ended[:] = [done or token in stops for done, token in zip(ended, row)]
                if all(ended):
                    return
                yield [None if done else token for done, token in zip(ended, row)]
                if all(ended) or not left:
                    return
                decoder.append(tokens.to(device))
    finally:
        model.train(training)


def generate(
    model: GPT, prompt_ids: Sequence[int], max_new_tokens: int, temperature: float = 1.0,
    top_k: Optional[int] = None, top_p: Optional[float] = None, stop_id: Stop = None,
    seed: Optional[int] = None, repetition_penalty: float = 1.0, step: Optional[Step] = None,
) -> List[int]:  # fmt: skip
    """The ids that continue `prompt_ids`, at most `max_new_tokens`, up to but without a `stop_id`,
    which may be several. UsageError for what is no id of the model's, or out of range.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    steps = stream(model, [prompt_ids], max_new_tokens, [False], sampling, stop_id, seed, step)
    return [token for (token,) in steps if token is not None]


class TextStream:
    """Tokens to text while they come: whole characters only, and nothing of a stop string. A token
    of a byte-level vocabulary can end in the middle of a character, and a text in what may or may
    not become a stop string; both are held back until they are decided.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stop, self.stopped = [text for text in stop if text], False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes, final: bool = False) -> str:
        """The text that became certain with `data`, the `final` piece or not."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(data, final)
        found = [
            (text.find(stop) + len(stop), text.find(stop)) for stop in self.stop if stop in text
        ]
        if found:  # the one that is whole first counts, however the text was cut into tokens
            self.stopped = True
            return text[: min(found)[1]]
        # How many characters at the end may be the beginning of a stop string.
        beginnings = (stop[:length] for stop in self.stop for length in range(1, len(stop)))
        undecided = max((len(begun) for begun in beginnings if text.endswith(begun)), default=0)
        certain = len(text) if final else len(text) - undecided
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """What was held back; half a character becomes U+FFFD."""
        return self.feed(b"", final=True)


def pieces(
    steps: Steps, ended: List[bool], stop: Sequence[str], tokenizer: Tokenizer
) -> Iterator[List[str]]:
    """For each of `steps`, a generator of tokens, the text of each row that became certain. Reads
    no further than the last row needs; `ended`, a False for each row, is told of stop strings:
    it may be the list that `stream` shares.
    """
    streams = [TextStream(stop) for _ in ended]
    for row in steps:
        data = [b"" if token is None else tokenizer.token_bytes(token) for token in row]
        texts = [stream.feed(each) for stream, each in zip(streams, data)]
        ended[:] = [token is None or s.stopped for token, s in zip(row, streams)]
        yield texts
        if all(ended):
            break
    yield [stream.finish() for stream in streams]
