"""The streamed safetensors writer against the library's own, and what it does not do."""

import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minigpt.checkpoint.safetensors import TensorSpec, plan_shards, shard_names, write_safetensors


def tensors():
    torch.manual_seed(0)
    return {
        "b": torch.randn(3, 5),
        "a": torch.randn(7),
        "half": torch.randn(5, 3).bfloat16(),
        "fp16": torch.randn(3).half(),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "counts": torch.arange(6),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "short": torch.arange(3, dtype=torch.int16),
    }


def write(path, named):
    specs = [TensorSpec.of(name, tensor) for name, tensor in named.items()]
    return write_safetensors(path, specs, named.__getitem__)


def test_the_library_reads_back_every_dtype_and_shape(tmp_path):
    named = tensors()
    write(tmp_path / "x.safetensors", named)
    read = load_file(str(tmp_path / "x.safetensors"))
    assert read.keys() == named.keys()
    for name, tensor in named.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert torch.equal(read[name], tensor)


def test_fp32_files_are_byte_for_byte_the_librarys(tmp_path):
    named = {name: t for name, t in tensors().items() if t.dtype == torch.float32}
    record = write(tmp_path / "ours", named)
    save_file(named, str(tmp_path / "theirs"), metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert record.size == (tmp_path / "ours").stat().st_size


def test_tensors_are_aligned_and_without_holes(tmp_path):
    write(tmp_path / "x", tensors())
    data = (tmp_path / "x").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    spans = sorted(entry["data_offsets"] for entry in header.values())
    assert (8 + length) % 8 == 0
    assert spans[0][0] == 0 and spans[-1][1] == len(data) - 8 - length
    assert all(left[1] == right[0] for left, right in zip(spans, spans[1:]))


def test_a_transposed_view_is_written_in_its_own_order(tmp_path):
    matrix = torch.randn(4, 6)
    write(tmp_path / "x", {"t": matrix.t()})
    with safe_open(str(tmp_path / "x"), framework="pt") as file:
        assert torch.equal(file.get_tensor("t"), matrix.t())


def test_one_tensor_at_a_time(tmp_path):
    """Each tensor is fetched once, when its turn comes: nothing holds them all."""
    fetched = []

    def fetch(name):
        fetched.append(name)
        return torch.zeros(4)

    specs = [TensorSpec(name, torch.float32, (4,)) for name in "abc"]
    write_safetensors(tmp_path / "x", specs, fetch)
    assert fetched == ["a", "b", "c"]


def test_a_tensor_that_changed_its_shape_is_refused(tmp_path):
    specs = [TensorSpec("a", torch.float32, (4,))]
    with pytest.raises(ValueError, match="a changed"):
        write_safetensors(tmp_path / "x", specs, lambda name: torch.zeros(5))


def test_shards_are_filled_in_order_and_no_tensor_is_split():
    specs = [TensorSpec(str(i), torch.float32, (size,)) for i, size in enumerate((3, 3, 10, 1, 1))]
    shards = [[spec.name for spec in shard] for shard in plan_shards(specs, 24)]
    assert shards == [["0", "1"], ["2"], ["3", "4"]]
    assert shard_names("model", 3)[0] == "model-00001-of-00003.safetensors"
    assert shard_names("model", 1) == ["model.safetensors"]
