"""The order of the data, and batches of it: every sample once an epoch, for any place and number
of processes.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.base.errors import DataError
from minigpt.commands.prepare import PrepareConfig, prepare
from minigpt.data.batch import IGNORE, Batch
from minigpt.data.loader import Loader
from minigpt.data.shuffle import permute
from minigpt.data.windows import TokenDataset


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 1000))
@settings(deadline=None)
def test_permute_is_a_permutation(size, seed, epoch):
    assert sorted(permute(np.arange(size), size, seed, epoch)) == list(range(size))


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {
        tuple(permute(np.arange(50), 50, seed, epoch)) for seed in range(9) for epoch in range(9)
    }
    assert len(orders) == 81


def test_the_order_looks_random():
    """Neighbours land far apart: the mean distance of a random permutation is a third of its
    size.
    """
    order = permute(np.arange(10_000), 10_000, 1, 0)
    assert np.abs(np.diff(order)).mean() == pytest.approx(10_000 / 3, rel=0.03)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


def test_one_place_of_a_huge_order_costs_nothing():
    size = 10**15
    places = permute(np.array([0, 1, size - 1]), size, 3, 4)
    assert len(set(places.tolist())) == 3 and (places < size).all()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    text = "".join("value_%d = %d\n" % (i, i) for i in range(3000))
    (path / "x.txt").write_text(text)
    config = PrepareConfig(
        source=str(path / "x.txt"), out=str(path / "out"), tokenizer="bytes", shard_tokens=20_000
    )
    return prepare(config)


@pytest.fixture()
def dataset(directory):
    return TokenDataset(directory, "train", 50, 257)


def test_targets_are_the_tokens_one_place_on(dataset):
    batch = dataset.batch(np.array([0, 5, len(dataset) - 1]))
    assert batch.tokens.shape == batch.targets.shape == (3, 50)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert batch.supervised == 150
    assert bytes(batch.tokens[0].tolist()).startswith(b"value_0 = 0\nvalue_1")


def test_windows_cover_the_data_without_overlap(dataset):
    first, second = dataset.batch(np.array([0, 1])).tokens
    assert (
        bytes(first.tolist() + second.tolist())
        == "".join("value_%d = %d\n" % (i, i) for i in range(20))[:100].encode()
    )


def taken(loader, count):
    rows = [row.tobytes() for _ in range(count) for row in next(loader).tokens.numpy()]
    loader.close()
    return rows


def test_every_window_once_an_epoch(dataset):
    """Also where a batch reaches from one epoch into the next."""
    size = len(dataset)
    rows = taken(Loader(dataset, 7, seed=1), 2 * size // 7 + 1)
    everything = sorted(r.tobytes() for r in dataset.batch(np.arange(size)).tokens.numpy())
    assert sorted(rows[:size]) == everything
    assert sorted(rows[size : 2 * size]) == everything
    assert rows[:size] != rows[size : 2 * size]


@pytest.mark.parametrize("seen", [0, 7, 70, 7000])
def test_a_loader_begun_anywhere_goes_on_as_if_it_had_been_there(dataset, seen):
    loader = Loader(dataset, 7, seed=1)
    for _ in range(seen // 7):
        next(loader)
    assert loader.samples_seen == seen
    assert taken(loader, 3) == taken(Loader(dataset, 7, seed=1, samples_seen=seen), 3)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_make_up_the_batch(dataset, world):
    whole = taken(Loader(dataset, 6, seed=1), 4)
    shares = [taken(Loader(dataset, 6, 1, 0, rank, world), 4) for rank in range(world)]
    assert sorted(row for share in shares for row in share) == sorted(whole)


def test_an_error_in_the_thread_reaches_the_loop(dataset, monkeypatch):
    monkeypatch.setattr(dataset, "batch", lambda indices: 1 / 0)
    loader = Loader(dataset, 4, seed=1)
    with pytest.raises(ZeroDivisionError):
        next(loader)
    loader.close()


def test_micro_batches_keep_the_number_they_are_divided_by():
    targets = torch.tensor([[1, IGNORE], [2, 3], [IGNORE, 4]])
    batch = Batch(targets.clamp(0), targets, 4, lengths=[[2], [1, 1], [2]])
    parts = list(batch.micro_batches(2))
    assert [part.tokens.size(0) for part in parts] == [2, 1]
    assert [part.supervised for part in parts] == [4, 4]
    assert torch.equal(torch.cat([part.targets for part in parts]), targets)
    assert [part.lengths for part in parts] == [[[2], [1, 1]], [[2]]]
    assert parts[1].positions is None and parts[0].document_numbers().tolist() == [[0, 0], [0, 1]]
    assert batch.learned().tolist() == [0, 2, 3, 5] and parts[1].learned().tolist() == [1]


def test_a_window_longer_than_the_data_names_the_longest_possible(directory):
    with pytest.raises(DataError, match="--block-size") as caught:
        TokenDataset(directory, "validation", 100_000, 257)
    longest = int(caught.value.fix.split("--block-size ")[1].split()[0])
    assert len(TokenDataset(directory, "validation", longest, 257)) == 1


def test_a_directory_of_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match="python -m minigpt prepare"):
        TokenDataset(tmp_path, "train", 10, 257)
