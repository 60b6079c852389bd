"""A step whose gradient is no number moves nothing and is written down; five end the run."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minigpt import load_model
from minigpt.base.errors import TrainingError
from minigpt.checkpoint.run_files import LATEST, pointed
from minigpt.optim.adamw import AdamW
from minigpt.optim.execution import compiled, in_slices, plain
from minigpt.optim.update import Clipped, InBackward
from minigpt.training import watch
from minigpt.training.build import create_run
from minigpt.training.parallel import ALONE
from tests.helpers.runs import ROOT
from tests.helpers.together import together
from tests.helpers.tuning import SETTINGS, base, instructions, tuning

FUSED = hasattr(torch.Tensor, "register_post_accumulate_grad_hook")
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("execution", [in_slices, plain, compiled])
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_poisoned_gradient_moves_nothing(dtype, execution, poison, limit):
    if execution is compiled and not hasattr(torch, "compile"):
        pytest.skip("no compiler")
    weight = torch.nn.Parameter(torch.randn(7, 5).to(dtype))
    optimizer = AdamW([weight], lr=1e-2, execution=execution)
    update, before = Clipped(optimizer, [weight], limit), None
    for step in range(4):
        weight.grad = torch.randn(7, 5).to(dtype)
        if step == 2:
            weight.grad[3, 1] = poison
            before = [
                weight.detach().clone(),
                *(t.clone() for t in optimizer.state[weight].values()),
            ]
        norm = update.finish()
        after = [weight.detach(), *optimizer.state[weight].values()]
        assert torch.isfinite(norm) == (step != 2)
        if step == 2:
            assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert not torch.equal(before[0], weight) and torch.isfinite(weight).all()


@pytest.mark.skipif(not FUSED, reason="PyTorch 2.1 and later")
def test_inside_the_backward_pass_nothing_moves_from_the_first_poisoned_gradient_on():
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    update = InBackward(AdamW(model.parameters(), lr=1e-2))
    rows = torch.randn(2, 4)
    update.backward(model(rows).sum())
    assert torch.isfinite(update.finish())
    before = [p.detach().clone() for p in model.parameters()]
    update.backward(model(rows).sum() * NAN)
    assert not torch.isfinite(update.finish())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    update.backward(model(rows).sum())
    update.finish()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters()))


KINDS = {
    "fp32": {}, "bf16": {"precision": "bf16"}, "bf16-mixed": {"precision": "bf16-mixed"},
    "an adapter": {"lora_rank": 2}, "micro-batches": {"micro_batch_size": 1},
    "inside": {"fused_backward": True, "grad_clip": 0, "micro_batch_size": 4},
}  # fmt: skip


def poisoned(trainer, steps, value=NAN):
    """Its data, or what comes of them, in these steps (counted from 1)."""
    real, calls = trainer.objective.forward, []

    def forward(batch):
        calls.append(trainer.state.step + 1)
        loss = real(batch)
        return loss * value if trainer.objective.training and calls[-1] in steps else loss

    trainer.objective.forward = forward
    return trainer


def exact(trainer):
    """All weights, those in bfloat16 with what they carry: of a tie either may have the half."""
    states = trainer.optimizer.state
    parameters = trainer.model.parameters()
    return [p.detach().float() + states.get(p, {}).get("carry", 0.0) for p in parameters]


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_poisoned_data_are_named_and_pass_by(tmp_path, kind):
    if kind == "inside" and not FUSED:
        pytest.skip("PyTorch 2.1 and later")
    trainer = poisoned(
        tuning(tmp_path, log_every=3, eval_every=0, save_every=0, **KINDS[kind]), {2}
    )
    create_run(trainer)
    weights, real = {}, trainer.step

    def step():
        weights[trainer.state.step] = exact(trainer)
        real()

    trainer.step = step
    assert trainer.train() == 0
    assert all(torch.equal(a, b) for a, b in zip(weights[1], weights[2]))
    assert not all(torch.equal(a, b) for a, b in zip(weights[2], weights[3]))
    found = [line for line in lines(trainer.run) if "skipped_steps" in line]
    assert [line["skipped_steps"] for line in found] == [[2]] and found[0]["step"] == 3
    assert found[0]["skipped_samples"] == [trainer.loader.indices(4).tolist()]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_poison_in_one_process_is_left_out_by_all(tmp_path, parallel):
    if parallel == "fsdp" and not hasattr(torch.distributed, "fsdp"):
        pytest.skip("PyTorch 2.9 and later")
    flags = {
        **SETTINGS, "init": str(base(tmp_path / "base")), "parallel": parallel, "device": "cpu",
        "data": str(instructions(tmp_path / "functions.jsonl")), "out": str(tmp_path / "run"),
        "steps": 4, "eval_every": 0, "poison": 2,
    }  # fmt: skip
    (tmp_path / "cases").write_text(json.dumps([flags]))
    together(2, ROOT / "tests" / "helpers" / "ranks.py", tmp_path / "cases")
    skipped = [line["skipped_steps"] for line in lines(tmp_path / "run") if "skipped_steps" in line]
    assert skipped == [[2]]
    model = load_model(pointed(tmp_path / "run", LATEST))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_poisoned_weights_end_the_run_and_the_last_good_checkpoint_is_named(tmp_path):
    trainer = tuning(tmp_path, steps=30, eval_every=0, save_every=1)
    create_run(trainer)
    real = trainer.step

    def step():
        if trainer.state.step == 3:
            with torch.no_grad():
                trainer.model.token_embedding.weight[5] = NAN
                trainer.model.final_norm.weight[0] = NAN
        real()

    trainer.step = step
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    assert trainer.state.step == 8
    kept = pointed(trainer.run, LATEST)
    assert kept.name == "step_00000003" and str(kept) in str(caught.value)
    assert "train.py --resume" in caught.value.fix and "\n" not in str(caught.value)


def test_a_validation_that_is_no_number_saves_nothing(tmp_path):
    trainer = tuning(tmp_path, steps=2, eval_every=0, save_every=0)
    create_run(trainer)
    with torch.no_grad():
        trainer.model.final_norm.weight[0] = NAN
    with pytest.raises(TrainingError, match="start again with a lower --lr"):
        trainer.train()
    assert pointed(trainer.run, LATEST) is None


def test_a_loss_that_leaps_is_marked(tmp_path):
    trainer = poisoned(
        tuning(tmp_path, steps=40, log_every=10, eval_every=0, save_every=0), {34}, 9
    )
    create_run(trainer)
    assert trainer.train() == 0
    marked = {n for line in lines(trainer.run) for n in line.get("loss_spikes", [])}
    assert marked == {34}


def test_of_very_many_steps_a_line_tells_of_the_last(monkeypatch):
    """However rarely one is logged: what is kept until then has an end."""
    monkeypatch.setattr(watch, "MOST", 4)
    seen = watch.Watch(10**9, torch.device("cpu"))
    for loss in (100.0, 1.0, NAN, 2.0, 3.0):
        seen.add(torch.tensor(loss), torch.tensor(1.0))
    record = seen.read(5, SimpleNamespace(indices=np.arange, samples_seen=5, batch_size=1), ALONE)
    assert (record["loss"], record["skipped_steps"]) == (2.0, [3])
