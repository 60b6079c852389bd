"""A cache whose place is a tensor, as recorded kernels need it, against the usual one."""

import pytest
import torch

from minigpt.decoding.graphs import PlacedCache
from minigpt.model.gpt import GPT, GPTConfig
from minigpt.model.lora import LoRAConfig, add_lora


@pytest.mark.parametrize("starts", [None, [0, 2, 5]])
@pytest.mark.parametrize("adapter", [False, True])
def test_logits_are_those_of_the_usual_cache(starts, adapter):
    model = GPT(GPTConfig(97, 32, 3, 4, 64, init_std=0.2)).eval()
    if adapter:
        add_lora(model, LoRAConfig(4))
    tokens = torch.randint(97, (3, 20))
    starts = None if starts is None else torch.tensor(starts)
    with torch.inference_mode():
        caches = [model.new_cache(3, 24) for _ in range(2)]
        for cache in caches:
            cache.starts = starts
            model.features(tokens[:, :6], cache=cache)
        place = torch.tensor([6])
        for keys, values in caches[1].layers:
            keys[:, :, 6:], values[:, :, 6:] = 0.0, 0.0
        placed = PlacedCache(caches[1].layers, place, starts)
        for column in range(6, 20):
            new = tokens[:, column : column + 1]
            expected = model(new, cache=caches[0])
            placed.length = 0
            assert torch.allclose(model(new, cache=placed), expected, atol=1e-5)
            place += 1
