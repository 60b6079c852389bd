"""A model on disk: what is written is what is read, and every damage is noticed and named."""

import json

import pytest
import torch

import minigpt
from minigpt.base.errors import CheckpointError, MinigptError
from minigpt.checkpoint import manifest
from minigpt.checkpoint.model_files import (
    WEIGHTS,
    Adapter,
    load_model,
    save_model,
    write_adapter,
    write_model,
)
from minigpt.checkpoint.safetensors import in_memory, write_safetensors
from minigpt.commands.merge import MergeConfig, merge_command
from minigpt.data.tokenizer import BytesTokenizer
from minigpt.hf.export import export
from minigpt.model.gpt import GPT, GPTConfig
from minigpt.model.lora import LoRAConfig, adapter_tensors, add_lora

SHAPE = GPTConfig(vocab_size=97, n_positions=12, n_layer=2, n_head=3, n_embd=51, activation="gelu")


def saved(tmp_path, shape=SHAPE, shard_bytes=None):
    torch.manual_seed(0)
    model = GPT(shape)
    named = in_memory(dict(model.named_parameters()))

    def write(partial):
        if shard_bytes is None:
            return save_model(partial, model)
        return write_model(partial, shape, named, shard_bytes)

    manifest.write_checkpoint(tmp_path / "model", write, None)
    return model, tmp_path / "model"


@pytest.mark.parametrize("shard_bytes", [None, 20_000])
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_bit_for_bit(tmp_path, shard_bytes, tied):
    shape = GPTConfig(97, 12, 2, 3, 51, activation="gelu_tanh", tied_head=tied)
    model, path = saved(tmp_path, shape, shard_bytes)
    assert len(list(path.glob("*.safetensors"))) == 1 or shard_bytes
    again = minigpt.load_model(path)
    assert again.config == shape and not again.training
    for (name, mine), (other_name, other) in zip(
        model.named_parameters(), again.named_parameters()
    ):
        assert name == other_name and torch.equal(mine, other)
    tokens = torch.randint(0, 97, (2, 12))
    assert torch.equal(model.eval()(tokens), again(tokens))


def test_the_loaded_model_is_a_copy_of_its_own(tmp_path):
    """Training it must not write through the memory map into the file."""
    _, path = saved(tmp_path)
    model = load_model(path)
    with torch.no_grad():
        model.final_norm.weight.fill_(7.0)
    assert not torch.equal(load_model(path).final_norm.weight, model.final_norm.weight)


def test_dtype_is_kept_unless_asked_for(tmp_path):
    _, path = saved(tmp_path)
    assert load_model(path).final_norm.weight.dtype == torch.float32
    assert load_model(path, dtype=torch.bfloat16).final_norm.weight.dtype == torch.bfloat16


def test_names_are_those_of_the_contract(tmp_path):
    _, path = saved(tmp_path)
    names = set(dict(load_model(path).named_parameters()))
    assert "blocks.1.attention.qkv.weight" in names and "head.weight" not in names


def damage_middle(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def edit(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


DAMAGES = {
    "a flipped bit": lambda d: damage_middle(d / "model.safetensors"),
    "a truncated file": lambda d: (d / "model.safetensors").write_bytes(
        (d / "model.safetensors").read_bytes()[:-5]
    ),
    "a missing file": lambda d: (d / "model.safetensors").unlink(),
    "an edited config": lambda d: (d / "config.json").write_text("{}"),
    "a config of no model": lambda d: edit(d / "config.json", '"n_head": 3', '"n_head": 2'),
    "a manifest without files": lambda d: (d / "manifest.json").write_text('{"format": 1}'),
    "a manifest with a flipped bit": lambda d: edit(d / "manifest.json", '"size"', '"sizd"'),
    "no manifest": lambda d: (d / "manifest.json").unlink(),
    "a manifest that is no JSON": lambda d: (d / "manifest.json").write_text("{"),
    "a manifest of the future": lambda d: (d / "manifest.json").write_text('{"format": 99}'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_refused_by_name(tmp_path, damage):
    _, path = saved(tmp_path)
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert str(path) in str(caught.value) and caught.value.fix


def test_weights_of_another_shape_are_refused(tmp_path):
    _, path = saved(tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["n_inner"] = 77
    (path / "config.json").write_text(json.dumps(config))
    manifest.write_manifest(path, {})
    with pytest.raises(CheckpointError, match=r"tensor blocks\.0\.mlp"):
        load_model(path)


TENSORS = {
    "a matrix": (
        lambda t: t.pop("blocks.1.mlp.up.weight"),
        r"blocks\.1\.mlp\.up.weight is missing",
    ),
    "a head of its own": (lambda t: t.pop("head.weight"), "head.weight is missing"),
    "one too many": (lambda t: t.update(x=t["head.weight"]), "tensor x does not belong"),
    "another shape": (lambda t: t.update({"head.weight": t["final_norm.bias"]}), "tensor head"),
}


@pytest.mark.parametrize("change, words", TENSORS.values(), ids=TENSORS.keys())
@pytest.mark.parametrize("thin", [False, True])
def test_an_incomplete_checkpoint_is_not_passed_on(tmp_path, change, words, thin):
    """It opens nowhere, so that merging, exporting and loading make nothing of it."""
    shape = GPTConfig(97, 12, 2, 3, 51, tied_head=False)
    model = GPT(shape)
    tensors = in_memory(dict(model.named_parameters()))
    change(tensors)
    source, out = tmp_path / "model", tmp_path / "out"
    tokenizer = BytesTokenizer() if thin else None
    manifest.write_checkpoint(source, lambda p: write_model(p, shape, tensors), tokenizer)
    if thin:
        lora = LoRAConfig(2)
        adapter, source = Adapter.on(source, lora), tmp_path / "adapter"
        add_lora(model, lora)
        write = lambda partial: write_adapter(partial, model, adapter)  # noqa: E731
        manifest.write_checkpoint(source, write, tokenizer)
        with pytest.raises(CheckpointError, match=words):
            merge_command(MergeConfig(str(source), str(out)))
    else:
        with pytest.raises(CheckpointError, match=words):
            export(source, out)
    with pytest.raises(CheckpointError, match=words):
        load_model(source)
    assert not out.exists()


@pytest.mark.parametrize("lost", ["blocks.0.mlp.up.a", "blocks.1.attention.qkv.b"])
def test_half_an_adapter_is_not_merged(tmp_path, lost):
    model, path = saved(tmp_path)
    adapter = Adapter.on(path, LoRAConfig(2))
    add_lora(model, adapter.lora)

    def write(partial):
        write_adapter(partial, model, adapter)
        thin = adapter_tensors(model)
        del thin[lost]
        return {WEIGHTS: write_safetensors(partial / WEIGHTS, in_memory(thin))}

    manifest.write_checkpoint(tmp_path / "adapter", write, BytesTokenizer())
    for act in (load_model, lambda p: merge_command(MergeConfig(str(p), str(tmp_path / "out")))):
        with pytest.raises(CheckpointError, match=f"{lost} is missing"):
            act(tmp_path / "adapter")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda d: None, "there is no"),
        (lambda d: d.write_text("x"), "is a file"),
        (lambda d: d.mkdir(), "is no checkpoint"),
        (lambda d: (d.mkdir(), (d / "pytorch_model.bin").write_text("")), "convert_hf.py"),
        (lambda d: (d.mkdir(), (d / "config.toml").write_text("")), "no complete checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_told_apart(tmp_path, make, words):
    make(tmp_path / "x")
    with pytest.raises(MinigptError, match=words):
        load_model(tmp_path / "x")


def _respelled(directory, name, change):
    """A file that was changed, and a manifest that says so."""
    values = json.loads((directory / name).read_text())
    change(values)
    (directory / name).write_text(json.dumps(values))
    (directory / "manifest.json").unlink()
    manifest.write_manifest(directory, {})


@pytest.mark.parametrize(
    "change",
    [
        {"n_layer": "2"}, {"n_layer": None}, {"n_layer": 2.0}, {"n_layer": True}, {"n_embd": 8.0},
        {"dropout": "x"}, {"dropout": float("nan")}, {"vocab_size": 1 << 62}, {"tied_head": "no"},
        {"vocab_size": float("inf")}, {"layer_norm_eps": None}, {"n_layer": 1_000_000},
        {"activation": ["gelu"]}, {"attention_scale": "x"}, {"init_std": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_of_other_types_or_sizes_is_a_sentence(tmp_path, change):
    start = saved(tmp_path)[1]
    _respelled(start, "config.json", lambda values: values.update(change))
    with pytest.raises(MinigptError) as caught:
        load_model(start)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "weight_map", [None, 5, {}, {"a": "../x"}, {"a": "/dev/zero"}, {"a": "\0"}]
)
def test_which_files_have_the_weights_is_said_by_the_manifest_and_not_by_the_index(
    tmp_path, weight_map
):
    model, start = saved(tmp_path)
    (start / "model.safetensors.index.json").write_text("{}")
    _respelled(start, "model.safetensors.index.json", lambda v: v.update(weight_map=weight_map))
    loaded = dict(load_model(start).named_parameters())
    assert all(torch.equal(loaded[name], one) for name, one in model.named_parameters())


@pytest.mark.parametrize("files", [{}, [], 5, {"../x": {"size": 1, "sha256": "a"}}, {"a": {}}])
def test_a_manifest_has_to_list_the_weights(tmp_path, files):
    start = saved(tmp_path)[1]
    values = json.loads((start / "manifest.json").read_text())
    (start / "manifest.json").write_text(json.dumps({**values, "files": files}))
    with pytest.raises(MinigptError, match="is not as it was written"):
        load_model(start)
