"""PyTorch's files read without running them: what torch.save writes, and what an attacker might."""

import argparse
import collections
import io
import os
import pathlib
import pickle
import random
import struct
import zipfile

import numpy as np
import pytest
import torch

from minigpt.base.errors import CheckpointError
from minigpt.hf.torch_pickle import open_torch_file


def state():
    torch.manual_seed(0)
    base = torch.randn(8, 6)
    return collections.OrderedDict(
        plain=torch.randn(3, 4), view=base[2:5, 1:4], transposed=base.t(), shared=base,
        half=torch.randn(5).half(), bf16=torch.randn(5).bfloat16(), double=torch.randn(2).double(),
        ints=torch.arange(7), bytes=torch.arange(5, dtype=torch.uint8), bools=torch.ones(3) > 0,
        scalar=torch.tensor(2.5), empty=torch.empty(0, 3),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
    )  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
def test_every_tensor_comes_back(tmp_path, zipped):
    expected = state()
    torch.save(expected, str(tmp_path / "x.bin"), _use_new_zipfile_serialization=zipped)
    file = open_torch_file(tmp_path / "x.bin")
    assert file.keys() == expected.keys()
    for name, tensor in expected.items():
        found = file[name].read()
        assert found.dtype == tensor.dtype and found.shape == tensor.shape, name
        assert torch.equal(found, tensor), name


def test_a_modules_state_dict_with_its_metadata(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    torch.save(module.state_dict(), str(tmp_path / "x.bin"))
    file = open_torch_file(tmp_path / "x.bin")
    assert torch.equal(file["1.weight"].read(), module[1].weight)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["model", "state_dict", "model_state_dict", "module"])
def test_what_a_trainer_saves_is_read_for_its_model(tmp_path, name, zipped):
    """With an epoch, floats, its arguments and its optimizer, whose keys are numbers."""
    module = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    beside = {
        "epoch": 3, "loss": 1.5, "optimizer": optimizer.state_dict(), "none": None, "yes": True,
        "args": argparse.Namespace(lr=1e-3), "out": pathlib.PurePosixPath("x").name,
        "best": np.float64(0.5), "dtype": torch.bfloat16, "shape": torch.Size([3, 4]),
        "device": torch.device("cpu"),
    }  # fmt: skip
    path = tmp_path / "x.bin"
    saved = {**beside, name: module.state_dict()}
    torch.save(saved, str(path), _use_new_zipfile_serialization=zipped)
    file = open_torch_file(path)
    assert file.keys() == {"weight", "bias"}
    assert torch.equal(file["weight"].read(), module.weight)


def test_reading_one_tensor_reads_only_its_bytes(tmp_path):
    big = torch.arange(1 << 20, dtype=torch.float32)
    torch.save({"small": big[5:8], "big": big}, str(tmp_path / "x.bin"))
    found = open_torch_file(tmp_path / "x.bin")["small"].read()
    assert found.tolist() == [5.0, 6.0, 7.0]


def archive(path, pickled, records=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(str(path), "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, data in records:
            file.writestr(name, data)
    return path


class Call:
    """Pickles to a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


TOUCH = "import pathlib; pathlib.Path('ran').write_text('x')"
HOSTILE = {
    "os.system": lambda: pickle.dumps({"w": Call(os.system, "touch ran")}, 2),
    "eval": lambda: pickle.dumps({"w": Call(eval, "open('ran', 'w')")}, 2),
    "exec, protocol 4": lambda: pickle.dumps({"w": Call(exec, TOUCH)}, 4),
    "getattr": lambda: b"\x80\x02c__builtin__\ngetattr\n.",
    "torch's own load": lambda: b"\x80\x02ctorch\nload\nX\x03\x00\x00\x00ran\x85R.",
    "an instance": lambda: b"\x80\x02(ios\nsystem\n.",
    "an extension": lambda: b"\x80\x02\x82\x01.",
    "a persistent text id": lambda: b"Pstorage\n.",
    "new object": lambda: b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "calling a storage class": lambda: b"\x80\x02ctorch\nFloatStorage\n)R.",
    "a text that claims 4 GB": lambda: b"\x80\x02X\xff\xff\xff\xff.",
    "bytes that claim 2^62": lambda: b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b".",
    "an empty stack": lambda: b"\x80\x02R.",
    "no end": lambda: b"\x80\x02}",
    "no dictionary": lambda: b"\x80\x02K\x01.",
    "something that is no tensor": lambda: b"\x80\x02}X\x01\x00\x00\x00wK\x01s.",
    "nothing": lambda: b"",
}


def laughs():
    """Ten lists of ten lists of ten ... : small in the file, endless to whom walks through it."""
    value = []
    for _ in range(40):
        value = [value] * 10
    return pickle.dumps({"w": value}, 2)


HOSTILE["billion laughs"] = laughs

DEEP, DOUBLED = b")" + b"\x85" * 200_000, b")" + b"q\x00h\x00\x86" * 60
LONG = b"\x8b" + struct.pack("<i", 2_000_000) + b"\x7f" * 2_000_000


def with_key(key):
    return lambda: b"\x80\x02}" + key + b"K\x01s."


def ordered_with_key(key):
    return lambda: b"\x80\x02ccollections\nOrderedDict\n](" + key + b"K\x01\x86e\x85R."


def storage_called(key):
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + key + b"X\x03\x00\x00\x00cpuK\x04tQ"
    )
    return lambda: b"\x80\x02}X\x01\x00\x00\x00w" + storage + b"s."


for words, key in {
    "deep": DEEP,
    "doubled": DOUBLED,
    "long": LONG,
    "a pair": b"K\x01K\x01\x86",
}.items():
    HOSTILE["a key: " + words] = with_key(key)
    HOSTILE["a key of an OrderedDict: " + words] = ordered_with_key(key)
    HOSTILE["a storage: " + words] = storage_called(key)
    HOSTILE["a value: " + words] = lambda value=key: b"\x80\x02}X\x01\x00\x00\x00w" + value + b"s."


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_pickle_is_refused_with_nothing_run(tmp_path, monkeypatch, make, legacy):
    monkeypatch.chdir(tmp_path)
    if legacy:
        start = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        data = b"".join(pickle.dumps(part, 2) for part in start) + make()
        (tmp_path / "x.bin").write_bytes(data)
    else:
        archive(tmp_path / "x.bin", make())
    with pytest.raises(CheckpointError) as caught:
        open_torch_file(tmp_path / "x.bin")
    assert "x.bin" in str(caught.value) and caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


class Storage:
    """Pickles as torch.save refers to a storage, with claims of our choice."""

    def __init__(self, key="0", numel=4, kind="FloatStorage"):
        self.identity = ("storage", getattr(torch, kind), key, "cpu", numel)


class Pickler(pickle.Pickler):
    def persistent_id(self, thing):
        return thing.identity if isinstance(thing, Storage) else None


def tensor(storage, offset=0, shape=(4,), stride=(1,)):
    from torch._utils import _rebuild_tensor_v2

    return Call(_rebuild_tensor_v2, storage, offset, shape, stride, False, {})


LIES = {
    "more numbers than there are": lambda: tensor(Storage(numel=9), shape=(9,)),
    "an offset beyond": lambda: tensor(Storage(), offset=4),
    "a negative offset": lambda: tensor(Storage(), offset=-1),
    "a negative size": lambda: tensor(Storage(), shape=(-4,)),
    "a negative stride": lambda: tensor(Storage(), shape=(2,), stride=(-1,)),
    "a stride beyond": lambda: tensor(Storage(), shape=(2, 2), stride=(1 << 40, 1)),
    "a stride of zero": lambda: tensor(Storage(), shape=(1 << 40,), stride=(0,)),
    "a storage that is not there": lambda: tensor(Storage(key="7")),
    "a storage elsewhere": lambda: tensor(Storage(key="../../etc/passwd")),
    "shape and stride of two lengths": lambda: tensor(Storage(), shape=(2, 2), stride=(1,)),
    "a shape of texts": lambda: tensor(Storage(), shape=("4",)),
    "a stride of 2^75": lambda: tensor(Storage(), shape=(1,), stride=(1 << 75,)),
    "a stride of 2 MB": lambda: tensor(Storage(), shape=(1,), stride=(1 << 16_000_000,)),
    "a size of 2 MB": lambda: tensor(Storage(), shape=(1 << 16_000_000,)),
    "none of 2^75": lambda: tensor(Storage(), shape=(0, 1 << 75), stride=(1, 1)),
    "many dimensions": lambda: tensor(Storage(), shape=(1,) * 10**5, stride=(1,) * 10**5),
    "truth": lambda: tensor(Storage(), shape=(True,)),
    "a wider type than was saved": lambda: tensor(Storage(kind="DoubleStorage")),
}


def pickled(value):
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def test_the_builder_of_lies_can_tell_the_truth(tmp_path):
    archive(tmp_path / "x.bin", pickled({"w": tensor(Storage())}), [("archive/data/0", bytes(16))])
    assert open_torch_file(tmp_path / "x.bin")["w"].read().tolist() == [0.0] * 4


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_tensor_that_lies_about_its_storage_is_refused(tmp_path, lie):
    archive(tmp_path / "x.bin", pickled({"w": lie()}), [("archive/data/0", bytes(16))])
    with pytest.raises(CheckpointError):
        open_torch_file(tmp_path / "x.bin")


HARMLESS = {
    "none of much": ((0, 1 << 61), (1, 1)),
    "one with a stride nobody takes": ((1, 4), (1 << 61, 1)),
    "64 dimensions": ((1,) * 63 + (4,), (1,) * 64),
}


@pytest.mark.parametrize("shape, stride", HARMLESS.values(), ids=HARMLESS.keys())
def test_strange_numbers_that_mean_something_are_read(tmp_path, shape, stride):
    value = pickled({"w": tensor(Storage(), shape=shape, stride=stride)})
    archive(tmp_path / "x.bin", value, [("archive/data/0", bytes(16))])
    assert open_torch_file(tmp_path / "x.bin")["w"].read().shape == shape


def test_a_file_larger_than_memory_is_read(tmp_path):
    """A sparse file of 4 TB: only the tensor that is asked for counts as memory."""
    numel, key = 10**12, pickle.dumps(["0"], 2)
    small = pickled({"w": tensor(Storage(numel=numel), offset=1, shape=(3,))})
    start = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    with (tmp_path / "x.bin").open("wb") as file:
        file.write(b"".join(pickle.dumps(part, 2) for part in start) + small + key)
        file.write(struct.pack("<q", numel) + struct.pack("<4f", 0, 1, 2, 3))
        try:
            file.truncate(file.tell() - 16 + 4 * numel)
        except OSError:
            pytest.skip("no sparse files here")
    assert open_torch_file(tmp_path / "x.bin")["w"].read().tolist() == [1, 2, 3]


def test_a_compressed_archive_is_refused(tmp_path):
    """torch.save never compresses; a small file could become an endless one."""
    archive(tmp_path / "x.bin", bytes(1 << 20), (), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        open_torch_file(tmp_path / "x.bin")


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_anywhere_it_is_refused(tmp_path, zipped):
    path = tmp_path / "x.bin"
    torch.save(state(), str(path), _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for size in range(0, len(data) - 1, max(1, len(data) // 60)):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            open_torch_file(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_mutated_files_are_read_or_refused_and_nothing_else(tmp_path, zipped):
    """A fuzzer over real files: bytes are changed, moved and cut at random."""
    path = tmp_path / "x.bin"
    torch.save(state(), str(path), _use_new_zipfile_serialization=zipped)
    original, dice, refused = path.read_bytes(), random.Random(1), 0
    for _ in range(600):
        data = bytearray(original)
        for _ in range(dice.randint(1, 8)):
            place = dice.randrange(len(data))
            if dice.random() < 0.8:
                data[place] = dice.randrange(256)
            else:
                data[place : place + dice.randint(1, 40)] = b""
        path.write_bytes(bytes(data))
        try:
            for tensor in open_torch_file(path).values():
                tensor.read()
        except CheckpointError:
            refused += 1
    assert refused > 100
