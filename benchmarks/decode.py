"""python -m benchmarks.decode: cached greedy decoding against transformers' generate.

Both have the same weights, dtype, prompt and number of threads, and take turns in one run. One
row of decoding reads every weight once a token, so the rate at which ours are read is printed
beside the rate at which this machine can read memory at all.
"""

from __future__ import annotations

import argparse
import time
from typing import List

import torch
import transformers
from torch import Tensor

from benchmarks.side_by_side import report, side_by_side
from minigpt.decoding.generate import Sampling, Step, compiled_step, decode_step, stream
from minigpt.hf.layout import other_layout, to_theirs
from minigpt.model.config import GPTConfig
from minigpt.model.gpt import GPT
from minigpt.model.zoo import find

SHAPES = {
    "6 layers of 192": GPTConfig(257, 1024, 6, 6, 192),
    "cerebras-111m": find("cerebras-111m").config,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def twin(model: GPT) -> transformers.GPT2LMHeadModel:
    """A GPT2LMHeadModel with the weights and the dtype of `model`."""
    config = model.config
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size, n_positions=config.n_positions, n_embd=config.n_embd,
            n_layer=config.n_layer, n_head=config.n_head, activation_function="gelu",
            bos_token_id=0, eos_token_id=None, pad_token_id=0,
        )
    )  # fmt: skip
    weights = {to_theirs(name): other_layout(name, p) for name, p in model.state_dict().items()}
    missing = theirs.load_state_dict(weights, strict=False).missing_keys
    assert missing == ["lm_head.weight"], missing  # which is tied to the embedding
    return theirs.eval().to(model.token_embedding.weight.dtype)


def memory_rate() -> float:
    """Bytes a second at which a large tensor is read, the best of ten."""
    block, seconds = torch.ones(100_000_000), []
    for _ in range(10):
        began = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - began)
    return block.numel() * block.element_size() / min(seconds)


def weights_read(model: GPT) -> int:
    """Bytes that one step reads: all weights but the table of positions."""
    table = model.position_embedding.weight
    return sum(p.numel() * p.element_size() for p in model.parameters() if p is not table)


def compare(what: str, model: GPT, samples: int, flags: argparse.Namespace) -> None:
    """Times both and prints the medians, the ratio, the rate, and how many tokens are the same."""
    reference = twin(model)
    prompt = torch.randint(1, model.config.vocab_size, (flags.prompt,))
    rows = prompt.expand(samples, -1)
    found: List[Tensor] = [torch.empty(0), torch.empty(0)]

    def theirs() -> None:
        mask = torch.ones_like(rows)
        output = reference.generate(
            rows, attention_mask=mask, max_new_tokens=flags.new, do_sample=False
        )
        found[0] = output[:, flags.prompt :]

    def ours(step: Step = decode_step, new: int = flags.new) -> None:
        steps = stream(model, [prompt.tolist()], new, [False] * samples, Sampling(0.0), step=step)
        found[1] = torch.tensor(list(steps)).t()

    compiled = compiled_step()
    ways = {
        "transformers generate": theirs,
        "minigpt's prefill": lambda: ours(new=1),
        "minigpt": ours,
        "minigpt --compile": lambda: ours(compiled),
    }
    medians = side_by_side(ways, flags.rounds)
    prefill = medians.pop("minigpt's prefill")
    report(what, medians, "transformers generate")
    step = (medians["minigpt --compile"] - prefill) / (flags.new - 1)
    same = (found[0] == found[1]).float().mean().item()
    print(
        "  --compile: prefill %.1f ms, then %.2f ms a step, reading weights at %.1f GB/s;"
        " %.0f%% of the tokens are the same"
        % (1e3 * prefill, 1e3 * step, weights_read(model) / step / 1e9, 100 * same),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--samples", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    versions = torch.__version__, transformers.__version__, torch.get_num_threads()
    print("torch %s, transformers %s, %d threads" % versions)
    print("this machine reads memory at %.1f GB/s" % (memory_rate() / 1e9), flush=True)
    for name in flags.shapes:
        for dtype in flags.dtypes:
            torch.manual_seed(0)
            model = GPT(SHAPES[name]).eval().to(DTYPES[dtype])
            for samples in flags.samples:
                what = "%s, %s, batch %d, " % (name, dtype, samples)
                what += "%d new tokens after %d" % (flags.new, flags.prompt)
                compare(what, model, samples, flags)


if __name__ == "__main__":
    main()
