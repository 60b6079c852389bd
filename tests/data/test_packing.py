"""Packed rows as data: nothing is cut or lost, nothing reaches from one record into the next."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.base.errors import DataError
from minigpt.data.batch import IGNORE
from minigpt.data.datasets import split_datasets
from minigpt.data.loader import Loader
from minigpt.data.packing import Example, RecordDataset, fit, pack
from minigpt.data.records import LeftOut, Record, render
from minigpt.data.template import TEMPLATES
from minigpt.data.tokenizer import load_tokenizer

BYTES = load_tokenizer("bytes")
# For rows of numbered tokens: an end that is none of them.
END = SimpleNamespace(eos_id=10**6, fingerprint="numbers")
INSTRUCT, MOAI = TEMPLATES["instruct"], TEMPLATES["moai"]
ROOM = 24
LENGTHS = st.lists(st.integers(1, ROOM), min_size=1, max_size=60)


@given(LENGTHS)
def test_every_record_is_in_one_row_and_no_row_is_overfull(lengths):
    rows = pack(lengths, ROOM)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= ROOM for row in rows)


@given(LENGTHS)
def test_the_longest_come_first_each_to_the_row_it_fills_best(lengths):
    """The rule as it is written down, by looking at every row each time."""
    rows = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= ROOM]
        if not fitting:
            rows.append([])
        max(fitting, key=sum, default=rows[-1]).append(length)
    found = [sorted((lengths[index] for index in row), reverse=True) for row in pack(lengths, ROOM)]
    assert sorted(found) == sorted(rows)


def examples_of(lengths):
    """Each with tokens of its own, the first half of each a prompt."""
    examples = []
    for number, length in enumerate(lengths):
        ids = np.arange(length + 1, dtype=np.int32) + 100 * number
        targets = np.where(np.arange(length) < length // 2, IGNORE, ids[1:])
        examples.append(Example(ids[:-1], targets, length // 2))
    return examples


def all_rows(lengths, packed):
    dataset = RecordDataset(examples_of(lengths), ROOM, packed, END)
    return dataset, dataset.batch(np.arange(len(dataset)))


@given(LENGTHS, st.booleans())
@settings(deadline=None)
def test_no_record_is_cut_lost_or_repeated(lengths, packed):
    """Each stands somewhere as a whole, with its own targets; all the rest is padding."""
    dataset, batch = all_rows(lengths, packed)
    left = {e.tokens.tobytes(): e for e in dataset.examples}
    padding = 0
    for row in range(len(dataset)):
        start = 0
        while start < ROOM and batch.tokens[row, start] != END.eos_id:
            number = int(batch.tokens[row, start]) // 100
            end = start + lengths[number]
            tokens = batch.tokens[row, start:end].numpy().astype(np.int32)
            example = left.pop(tokens.tobytes())
            assert batch.targets[row, start:end].tolist() == example.targets.tolist()
            start = end
        assert (batch.targets[row, start:] == IGNORE).all()
        assert (batch.tokens[row, start:] == END.eos_id).all()
        padding += ROOM - start
    assert not left and batch.padding == padding
    assert batch.supervised == sum(n - n // 2 for n in lengths)


@given(LENGTHS)
@settings(deadline=None)
def test_positions_start_anew_and_no_target_is_another_records(lengths):
    _, batch = all_rows(lengths, True)
    numbers = batch.document_numbers()
    starts = torch.ones_like(numbers, dtype=torch.bool)
    starts[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    assert all(sum(row) == ROOM and min(row) > 0 for row in batch.lengths)
    assert (batch.positions[starts] == 0).all()
    steps = batch.positions[:, 1:] - batch.positions[:, :-1]
    assert (steps[~starts[:, 1:]] == 1).all()
    learned = batch.targets != IGNORE
    assert (batch.targets[learned] // 100 == batch.tokens[learned] // 100).all()
    assert (batch.targets[learned] == batch.tokens[learned] + 1).all()


@given(LENGTHS)
@settings(deadline=None)
def test_an_unpacked_row_is_one_record_and_padding(lengths):
    dataset, batch = all_rows(lengths, False)
    assert len(dataset) == len(lengths) and batch.positions is None and batch.lengths is None
    assert (batch.tokens != END.eos_id).sum(1).tolist() == lengths


def test_an_epoch_of_the_loader_has_every_row_once():
    dataset = RecordDataset(examples_of([5] * 40), ROOM, True, BYTES)
    loader = Loader(dataset, batch_size=2, seed=3)
    rows = [next(loader).tokens for _ in range(len(dataset) // 2)]
    loader.close()
    assert len({tuple(row.tolist()) for batch in rows for row in batch}) == len(dataset) == 10


def records(count, answer="o"):
    return [Record("line %d" % n, str(n), (("i%d" % n, answer),)) for n in range(count)]


def split(given, template=INSTRUCT, block=64, packed=True):
    rendered = ((record.where, render(record, template, BYTES)) for record in given)
    return split_datasets(rendered, template, BYTES, block, packed, LeftOut())


def test_the_longest_record_that_fits_and_the_first_that_does_not():
    tokens = INSTRUCT.render(BYTES, [("i", "answer")])[0]
    record = render(Record("", "", (("i", "answer"),)), INSTRUCT, BYTES)
    example = fit(record, INSTRUCT, BYTES.eos_id, len(tokens) - 1)
    assert example.tokens.tolist() == tokens[:-1]
    assert example.targets[-1] == BYTES.eos_id and example.targets[-8] == IGNORE
    assert fit(record, INSTRUCT, BYTES.eos_id, len(tokens) - 2) is None


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=4))
def test_what_is_learned_of_a_record_is_kept_by_its_turns(turns):
    ids, learned = INSTRUCT.render(BYTES, turns)
    record = render(Record("", "", turns), INSTRUCT, BYTES)
    example = fit(record, INSTRUCT, BYTES.eos_id, len(ids))
    assert record.tokens.tolist() == ids
    assert example.targets.tolist() == [
        token if known else IGNORE for token, known in zip(ids[1:], learned[1:])
    ]
    assert example.asked == learned.index(True)


def test_a_prompt_longer_than_its_record_ends_before_it():
    """The tutorial's template has an EOS where the prompt alone has the thirteen bytes of its
    name."""
    record = render(Record("", "", (("<|endoftext|>" * 9, "a"),)), MOAI, BYTES)
    assert fit(record, MOAI, BYTES.eos_id, 64).asked == len(record.tokens) - 1


def test_padding_and_prompt_alone_are_unlearned():
    train, _ = split(records(9))
    batch = train.batch(np.arange(len(train)))
    assert batch.supervised == 2 * len(train.examples)
    assert set(batch.targets.unique().tolist()) == {IGNORE, ord("o"), BYTES.eos_id}


@pytest.mark.parametrize("count", [2, 3, 50, 500])
def test_both_splits_have_records_and_keep_them_when_others_are_added(count):
    def answers(dataset):
        return {example.tokens.tobytes() for example in dataset.examples}

    train, validation = map(answers, split(records(count)))
    assert train and validation and len(train) + len(validation) == count
    assert train.isdisjoint(validation)
    if count >= 500:  # of few, the one held out is the first by its hash among those there are
        assert validation <= answers(split(records(2 * count))[1])


@pytest.mark.parametrize("count, answer", [(0, "o"), (1, "o"), (5, "o" * 100)])
def test_too_few_records_are_one_sentence(count, answer):
    with pytest.raises(DataError, match=r"records [01] are usable") as caught:
        split(records(count, answer))
    assert ("left out 5: longer than --block-size 64" in str(caught.value)) == (count == 5)


def test_the_tutorials_rows_are_never_packed():
    train, _ = split(records(9), MOAI)
    assert len(train) == len(train.examples) and train.batch(np.arange(2)).lengths is None


def test_the_fingerprint_knows_all_that_changes_a_run():
    def fingerprint(answer="o", template=INSTRUCT, block=64, packed=True):
        return split(records(9, answer), template, block, packed)[0].fingerprint

    others = [fingerprint("p"), fingerprint(template=MOAI), fingerprint(block=65),
              fingerprint(packed=False)]  # fmt: skip
    assert fingerprint() == fingerprint()
    assert len({fingerprint(), *others}) == 5
