"""Loading never holds a second copy of the model on the host."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from minigpt.checkpoint import manifest, model_files
from minigpt.checkpoint.model_files import Adapter, load_model, save_model, write_adapter
from minigpt.model.gpt import GPT, GPTConfig
from minigpt.model.lora import LoRAConfig, add_lora

SHAPE = GPTConfig(300, 32, 3, 2, 64)


def saved(directory, write):
    manifest.write_checkpoint(directory, write, None)
    return directory


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("adapter", [False, True])
def test_each_tensor_is_gone_from_the_host_before_the_next_is_read(
    tmp_path, adapter, dtype, monkeypatch
):
    """To a device that is not the host; merging an adapter on the way."""
    model = GPT(SHAPE)
    directory = saved(tmp_path / "base", lambda partial: save_model(partial, model))
    if adapter:
        config = LoRAConfig(4)
        add_lora(model, config)
        kept = Adapter.on(directory, config)
        directory = saved(tmp_path / "thin", lambda partial: write_adapter(partial, model, kept))
    alive, most, real = [], [], model_files.open_weights

    def watched(*given):
        return {name: replace(t, read=reader(t.read)) for name, t in real(*given).items()}

    def reader(read):
        def once():
            gc.collect()
            most.append(sum(reference() is not None for reference in alive))
            tensor = read()
            alive.append(weakref.ref(tensor))
            return tensor

        return once

    monkeypatch.setattr(model_files, "open_weights", watched)
    gc.freeze()  # what is here already is not looked through again for each tensor
    try:
        loaded = load_model(directory, torch.device("meta"), dtype)
    finally:
        gc.unfreeze()
    assert all(p.is_meta for p in loaded.parameters())
    assert len(most) >= len(list(loaded.parameters())) and max(most) <= 1
