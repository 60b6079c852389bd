"""Our safetensors files against the library's own, and what the writer does not do."""

import json
import struct
from contextlib import ExitStack

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minigpt.checkpoint.safetensors import (
    LazyTensor,
    in_memory,
    open_safetensors,
    plan_shards,
    write_safetensors,
)


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
    return write_safetensors(path, in_memory(named))


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
    """Each tensor is read once, when its turn comes: nothing holds them all."""
    read = []

    def lazy(name):
        return LazyTensor(torch.float32, (4,), lambda: read.append(name) or torch.zeros(4))

    write_safetensors(tmp_path / "x", {name: lazy(name) for name in "cab"})
    assert read == ["a", "b", "c"]


def test_a_tensor_that_changed_its_shape_is_refused(tmp_path):
    tensor = LazyTensor(torch.float32, (4,), lambda: torch.zeros(5))
    with pytest.raises(ValueError, match="a changed"):
        write_safetensors(tmp_path / "x", {"a": tensor})


def test_it_is_opened_without_being_read_and_cast_on_the_way(tmp_path):
    named = tensors()
    write(tmp_path / "x", named)
    with ExitStack() as stack:
        for name, tensor in open_safetensors(tmp_path / "x", stack).items():
            assert (tensor.dtype, tensor.shape) == (named[name].dtype, tuple(named[name].shape))
            assert tensor.nbytes == named[name].numel() * named[name].element_size()
            assert torch.equal(tensor.read(), named[name]) and tensor.to(None) is tensor
            cast = tensor.to(torch.float64)
            assert cast.read().dtype == cast.dtype == torch.float64


def test_shards_are_filled_in_order_and_no_tensor_is_split():
    sizes = {"a": 12, "b": 12, "c": 40, "d": 4, "e": 4}
    assert plan_shards(sizes, 24) == {
        "model-00001-of-00003.safetensors": ["a", "b"],
        "model-00002-of-00003.safetensors": ["c"],
        "model-00003-of-00003.safetensors": ["d", "e"],
    }
    assert plan_shards(sizes, None) == {"model.safetensors": list("abcde")}
