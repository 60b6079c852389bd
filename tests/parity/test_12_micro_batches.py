"""loss of a step = sum over micro-batches of (summed loss / supervised tokens of the whole step)

So 1 x 8 rows == 2 x 4 == 8 x 1: the loss, every gradient, and the weights after real steps.
"""

import pytest
import torch

from minigpt.data.batch import IGNORE
from minigpt.training.objective import cross_entropy_sum
from tests.helpers.reference import SHAPES, assert_close, pair, tokens
from tests.helpers.runs import records
from tests.helpers.tuning import run_to_the_end, tuning


@pytest.mark.oracle
def test_eight_by_one_is_one_by_eight_with_uneven_supervision():
    """Rows with 3 and with 20 supervised tokens: a mean of means would be another number, theirs
    over the whole batch is the same.
    """
    ours, theirs = pair(SHAPES["17 a head, odd inner"])
    ids = tokens(rows=8)
    labels = ids.clone()
    for row in range(8):
        labels[row, : 1 + 3 * (row % 7)] = IGNORE
    targets = labels[:, 1:]
    count = (targets != IGNORE).sum()
    parts = [cross_entropy_sum(ours(i[None, :-1]), t[None]) / count for i, t in zip(ids, targets)]
    assert_close(torch.stack(parts).sum(), theirs(ids, labels=labels).loss)


@pytest.mark.parametrize("packing", [True, False])
def test_three_steps_of_a_run_do_not_depend_on_how_they_are_cut(tmp_path, packing):
    """Of fine-tuning, where the rows of a step have unlike numbers of supervised tokens."""
    weights, losses = [], []
    for rows in (8, 4, 3, 1):
        name = f"rows-{rows}"
        trainer = tuning(
            tmp_path, name, batch_size=8, micro_batch_size=rows, steps=3, packing=packing, eps=1e-4
        )
        run = run_to_the_end(trainer)
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        losses.append(torch.tensor([records(run)[step] for step in (1, 2, 3)]))
    for other_weights, other_losses in zip(weights[1:], losses[1:]):
        assert_close(other_weights, weights[0], 1e-6)
        assert_close(other_losses, losses[0], 1e-6)
