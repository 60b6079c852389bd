"""python -m benchmarks.loader_wait: how long the training loop waits for its data, against how
long it computes.
"""

from __future__ import annotations

import time

from minigpt.data.loader import Loader
from minigpt.data.prepare import cached, work_of
from minigpt.data.tokenizer import load_tokenizer
from minigpt.data.windows import TokenDataset
from minigpt.devices.device import find_device
from minigpt.model.gpt import GPT
from minigpt.model.zoo import find
from minigpt.training.apply import objective_for


def main() -> None:
    entry = find("mini")
    tokenizer = load_tokenizer("bytes")
    prepared = cached(work_of("stdlib", tokenizer), tokenizer)
    dataset = TokenDataset(prepared, "train", entry.recipe.block_size, tokenizer.vocab_size)
    model = GPT(entry.config)
    objective = objective_for(model, find_device("cpu"))
    for prefetch in (1, 2):
        loader = Loader(dataset, entry.recipe.batch_size, seed=1, prefetch=prefetch)
        next(loader)
        loader.waited, began, steps = 0.0, time.perf_counter(), 300
        for _ in range(steps):
            batch = next(loader)
            (objective(batch) / batch.supervised).backward()
            model.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        loader.close()
        print(
            "prefetch %d: %.2f ms a step, of which %.3f ms (%.2f%%) waiting for data"
            % (prefetch, 1e3 * seconds / steps, 1e3 * loader.waited / steps,
               100 * loader.waited / seconds)
        )  # fmt: skip


if __name__ == "__main__":
    main()
