"""The optimizer's states as parts: files made by hand, read by any number of processes, which are
threads here, each of which takes other rows of the same tensors for its own.
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minigpt.base import divided
from minigpt.base.errors import CheckpointError, StorageError
from minigpt.checkpoint import manifest, resume
from minigpt.checkpoint.manifest import NAME, write_manifest
from minigpt.checkpoint.resume import load_optimizer, write_optimizer
from minigpt.optim.adamw import AdamW

STEP, ROWS = 7, 5
PART = "optimizer-%05d-of-%05d.safetensors"
WEIGHT = "mean.weight"


def model_and_optimizer(steps=0):
    model = nn.Linear(3, ROWS)
    optimizer = AdamW(model.parameters())
    for _ in range(steps):
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def states():
    torch.manual_seed(1)
    shapes = {"weight": (ROWS, 3), "bias": (ROWS,)}
    return {"%s.%s" % (k, n): torch.rand(s) for k in ("mean", "square") for n, s in shapes.items()}


def bounds(part, parts, rows=ROWS):
    """As torch.chunk divides, but that it leaves out what is empty."""
    each = -(-rows // parts)
    return min(part * each, rows), min((part + 1) * each, rows)


def save(path, tensors, first, step=STEP):
    header = dict.fromkeys(tensors, "step %d, rows from %d on" % (step, first))
    save_file({name: t.contiguous() for name, t in tensors.items()}, str(path), metadata=header)


def made(directory, parts):
    """A checkpoint's directory with as many parts, and the manifest."""
    for part in range(parts):
        first, end = bounds(part, parts)
        save(directory / (PART % (part + 1, parts)), sliced(states(), first, end), first)
    write_manifest(directory, {})
    return directory


def sliced(tensors, first, end):
    return {name: tensor[first:end] for name, tensor in tensors.items()}


@pytest.fixture
def ranks(monkeypatch):
    """Runs `work(rank, each)` for as many ranks at once; returns what each returned or raised."""
    here = threading.local()
    here.rank, here.size = 0, 1

    def mine(tensor):
        first, end = bounds(here.rank, here.size)
        return tensor[first:end]

    def division(tensor):
        return here.rank, here.size, 0

    for module in (divided, resume):
        monkeypatch.setattr(module, "local", mine)
        monkeypatch.setattr(module, "division", division)

    def run(size, work):
        said, all_here = [""] * size, threading.Barrier(size, timeout=20)

        def each(text):
            said[here.rank] = text
            all_here.wait()
            answers = list(said)
            all_here.wait()
            return answers

        def one(rank):
            here.rank, here.size = rank, size
            try:
                return work(rank, each)
            except (CheckpointError, StorageError) as error:
                return error

        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(one, range(size)))

    return run


def load(directory, step=STEP):
    model, optimizer = model_and_optimizer()
    load_optimizer(directory, model, optimizer, step)
    assert optimizer.param_groups[0]["step"] == step
    return resume._moments(model, optimizer)


@pytest.mark.parametrize("parts", range(1, 8))
@pytest.mark.parametrize("size", range(1, 8))
def test_any_number_of_processes_finds_its_rows_in_any_number_of_parts(
    tmp_path, ranks, parts, size
):
    """Also where some have none: there are five rows. What is not a process's own stays zero."""
    made(tmp_path, parts)
    for rank, found in enumerate(ranks(size, lambda rank, each: load(tmp_path))):
        first, end = bounds(rank, size)
        for name, tensor in states().items():
            assert torch.equal(found[name][first:end], tensor[first:end])
            assert not found[name][:first].any() and not found[name][end:].any()


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_process_reads_only_the_parts_with_its_rows(tmp_path, ranks, size, monkeypatch):
    """Of as many parts as there are processes its own, whose sha256 alone it computes."""
    made(tmp_path, 4)
    hashed, real = [], manifest.sha256

    def noted(path):
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(manifest, "sha256", noted)
    ranks(size, lambda rank, each: load(tmp_path))
    expected = {2: [1, 2, 2, 3], 4: [1, 2, 3], 8: [1, 1, 2, 2, 3]}[size]  # of two rows each
    assert sorted(hashed) == [PART % (part, 4) for part in expected]


def test_written_by_several_at_once_they_are_the_rows_and_all_know_the_records(tmp_path, ranks):
    model, optimizer = model_and_optimizer(steps=2)

    def work(rank, each):
        partial = tmp_path if rank == 0 else None
        return write_optimizer(tmp_path / "step", model, optimizer, each, partial)

    first, *others = ranks(3, work)
    assert sorted(first) == [PART % (part + 1, 3) for part in range(3)]
    assert others == [first, first]
    write_manifest(tmp_path, first)
    (found,) = ranks(1, lambda rank, each: load(tmp_path, step=2))
    for name, tensor in resume._moments(model, optimizer).items():
        assert torch.equal(found[name], tensor)


def test_one_that_cannot_write_ends_the_save_of_all_with_the_same_sentence(tmp_path, ranks):
    model, optimizer = model_and_optimizer(steps=1)
    (tmp_path / (PART % (2, 3))).mkdir()  # which no file can be written over

    def work(rank, each):
        partial = tmp_path if rank == 0 else None
        return write_optimizer(tmp_path / "step", model, optimizer, each, partial)

    said = {str(error) for error in ranks(3, work)}
    assert len(said) == 1, said
    assert "cannot write %s: Is a directory" % (tmp_path / "step" / (PART % (2, 3))) in said.pop()


def test_where_not_all_see_the_directory_process_0_writes_them_whole(tmp_path, ranks):
    model, optimizer = model_and_optimizer(steps=1)

    def work(rank, each):
        def on_another_machine(text):  # where the place that process 0 names is not
            return [str(tmp_path / "elsewhere")] if text == "None" and each(text) else each(text)

        partial = tmp_path if rank == 0 else None
        talk = on_another_machine if rank == 1 else each
        return write_optimizer(tmp_path / "step", model, optimizer, talk, partial)

    first, *others = ranks(2, work)
    assert [*first] == ["optimizer.safetensors"] and others == [{}]
    assert [path.name for path in tmp_path.iterdir()] == ["optimizer.safetensors"]
    found = load_file(str(tmp_path / "optimizer.safetensors"))
    for name, tensor in resume._moments(model, optimizer).items():
        assert torch.equal(found[name], tensor)


def changed(change, first=2, step=STEP):
    """A damage to the second of three parts, which has rows 2 and 3."""

    def damage(directory):
        path = directory / (PART % (2, 3))
        save(path, change(sliced(states(), 2, 4)), first, step)

    return damage


def shorter(directory):
    path = directory / (PART % (2, 3))
    path.write_bytes(path.read_bytes()[:-5])


SECOND, THIRD = PART % (2, 3), PART % (3, 3)


def rows(first, expected, step=STEP):
    said = "has 'step %d, rows from %d on', and 'step %d, rows from %d on' should come"
    return said % (step, first, STEP, expected)


DAMAGES = {
    "missing": (lambda d: (d / SECOND).unlink(), THIRD, rows(4, 2)),
    "the last missing": (lambda d: (d / THIRD).unlink(), SECOND, "is missing from row 4 on"),
    "one more": (lambda d: save(d / (PART % (1, 2)), states(), 0), PART % (1, 3), rows(0, 5)),
    "overlapping": (changed(lambda t: t, first=1), SECOND, rows(1, 2)),
    "a gap": (changed(lambda t: sliced(t, 0, 1)), THIRD, rows(4, 3)),
    "no rows said": (lambda d: save_file(states(), str(d / THIRD)), THIRD, "has another shape"),
    "a tensor missing": (
        changed(lambda t: {n: v for n, v in t.items() if n != WEIGHT}), THIRD, rows(4, 2),
    ),
    "a tensor more": (
        changed(lambda t: {**t, "carry.weight": t[WEIGHT].clone()}), SECOND,
        "carry.weight does not belong to this run",
    ),
    "another width": (
        changed(lambda t: {**t, WEIGHT: t[WEIGHT][:, :2]}), SECOND, "%s has another shape" % WEIGHT,
    ),
    "too many rows": (
        changed(lambda t: {n: torch.cat([v, v]) for n, v in t.items()}), SECOND, "another shape",
    ),
    "a number": (
        changed(lambda t: {**t, "mean.bias": torch.tensor(1.0)}), SECOND, "bias has another shape",
    ),
    "half": (
        changed(lambda t: {n: v.half() for n, v in t.items()}), SECOND, "or precision than the",
    ),
    "truncated": (shorter, SECOND, "cannot be read"),
    "of another step": (changed(lambda t: t, step=6), SECOND, rows(2, 2, step=6)),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_parts_that_are_not_the_whole_are_refused_by_the_files_name(tmp_path, case):
    damage, name, what = DAMAGES[case]
    made(tmp_path, 3)
    damage(tmp_path)
    (tmp_path / NAME).unlink()
    write_manifest(tmp_path, {})  # as if they had been written that way
    with pytest.raises(CheckpointError) as raised:
        load(tmp_path)
    said = str(raised.value)
    assert name in said and what in said and "\n" not in said, said
    assert str(tmp_path / name) in said


def test_a_part_that_the_manifest_knows_and_is_gone_is_named_before(tmp_path):
    made(tmp_path, 3)
    (tmp_path / SECOND).unlink()
    with pytest.raises(CheckpointError, match="%s is missing" % (tmp_path / SECOND)):
        manifest.check(tmp_path)


def test_a_part_that_differs_from_the_manifest_is_refused_by_who_reads_it(tmp_path, ranks):
    made(tmp_path, 3)
    known = json.loads((tmp_path / NAME).read_text())
    known["files"][SECOND]["sha256"] = "0" * 64
    (tmp_path / NAME).write_text(json.dumps(known))
    first, second, third = ranks(3, lambda rank, each: load(tmp_path))
    assert "%s is not what was written" % SECOND in str(second)
    assert isinstance(first, dict) and isinstance(third, dict)
