"""What makes a large model fit: recomputation, a step inside the backward pass, 16-bit weights.

The first two must not change what is computed; the last may, as far as its rounding goes.
"""

import json
import math

import pytest
import torch

from minigpt.base.errors import DeviceError, UsageError
from minigpt.checkpoint.model_files import load_model
from minigpt.devices.device import find_device
from minigpt.optim import execution
from minigpt.optim.update import clip_scale, next_loss_scale
from minigpt.training import build as setup
from tests.helpers.runs import corpus, files, records
from tests.helpers.tuning import resumed, run_to_the_end, trainer_of

HOOK = not find_device("cpu").fused_backward_missing()
FP16 = not find_device("cpu").precision_missing("fp16-mixed")
needs_hook = pytest.mark.skipif(not HOOK, reason="PyTorch 2.1 and later")


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(name="run", **settings):
        defaults = {"data": str(corpus(tmp_path / "corpus")), "out": str(tmp_path / name)}
        defaults.update(batch_size=8, block_size=32, steps=6, warmup_steps=1, seed=5)
        defaults.update(log_every=1, eval_tokens=640, sample_every=0, save_every=3, grad_clip=0.0)
        return trainer_of(**{**defaults, **settings})

    return make


def result(run):
    last = run / "checkpoints" / "step_00000006"
    return list(records(run).values()), load_model(last)


def test_recomputing_computes_the_same(trainer):
    plain, model = result(run_to_the_end(trainer("plain")))
    again, other = result(run_to_the_end(trainer("again", recompute=True)))
    assert plain == again
    for mine, theirs in zip(model.parameters(), other.parameters()):
        assert torch.equal(mine, theirs)


def test_recomputing_keeps_less_for_the_backward_pass(trainer):
    """Counted by autograd itself: everything that it saves."""
    kept = {}
    for name, flag in (("plain", False), ("again", True)):
        run = trainer(name, recompute=flag)
        batch, sizes = next(run.loader), []
        run.loader.close()

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run.model.features(batch.tokens)
        kept[name] = sum(sizes)
    assert kept["again"] < kept["plain"] / 4


@needs_hook
def test_a_step_inside_the_backward_pass_is_the_same_step(trainer):
    plain, model = result(run_to_the_end(trainer("plain")))
    fused = trainer("fused", fused_backward=True)
    again, other = result(run_to_the_end(fused))
    assert plain == again
    for mine, theirs in zip(model.parameters(), other.parameters()):
        assert torch.equal(mine, theirs)
    assert all(p.grad is None for p in fused.model.parameters())
    norms = [
        [json.loads(line)["grad_norm"] for line in (run / "metrics.jsonl").open() if "norm" in line]
        for run in (fused.run, fused.run.parent / "plain")
    ]
    assert norms[0] == pytest.approx(norms[1])


@needs_hook
def test_gradients_are_not_all_alive_at_once(trainer):
    run = trainer("fused", fused_backward=True)
    largest = max(p.numel() for p in run.model.parameters())
    assert most_alive(run) <= 2 * largest < run.model.parameter_count()


@needs_hook
@pytest.mark.slow
@pytest.mark.skipif(not setup.COMPILES_BLOCKS, reason="PyTorch 2.5 and later")
def test_compiled_blocks_hand_out_their_gradients_one_block_at_a_time(trainer):
    run = trainer("fused", fused_backward=True, compile=True)
    block = sum(p.numel() for p in run.model.blocks[0].parameters())
    assert most_alive(run) <= block + 2 * run.model.token_embedding.weight.numel()


def most_alive(run):
    """The most numbers in gradients at any time of a run."""
    most, step_weight = [], run.optimizer.step_weight

    def counted(weight, group, scale=None):
        most.append(sum(p.grad.numel() for p in run.model.parameters() if p.grad is not None))
        step_weight(weight, group, scale)

    run.optimizer.step_weight = counted
    run_to_the_end(run)
    return max(most)


@needs_hook
def test_only_the_optimizer_is_compiled_beside_it_where_blocks_cannot_be(
    trainer, capsys, monkeypatch
):
    """A compiled backward pass of the whole model would hand out all gradients at once."""
    monkeypatch.setattr(setup, "COMPILES_BLOCKS", False)
    run = trainer("fused", fused_backward=True, compile=True)
    assert "features" not in vars(run.model)
    assert run.optimizer.execution is execution.compiled
    assert "--compile: the optimizer alone" in capsys.readouterr().out
    run_to_the_end(run)


@needs_hook
def test_a_resumed_run_steps_inside_the_backward_pass_too(trainer, tmp_path):
    whole = run_to_the_end(trainer("whole", fused_backward=True, precision="bf16"))
    half = stopped_at_three(trainer("half", fused_backward=True, precision="bf16"))
    assert resumed(half).train() == 0
    last = "checkpoints/step_00000006"
    assert files(whole / last) == files(half.run / last)


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"grad_clip": 1.0}, "--grad-clip 0"),
        pytest.param({"micro_batch_size": 2}, "say --micro-batch-size 8", marks=needs_hook),
        ({"precision": "fp16-mixed"}, "cannot take back a step"),
    ],
)
def test_what_a_fused_backward_cannot_do(settings, says, trainer):
    with pytest.raises(UsageError, match=says):
        trainer(fused_backward=True, **settings)


def test_without_the_hook_one_sentence_says_so(trainer, monkeypatch):
    monkeypatch.delattr(torch.Tensor, "register_post_accumulate_grad_hook", raising=False)
    with pytest.raises(DeviceError, match=r"2\.1 and later"):
        trainer(fused_backward=True)


def test_bf16_keeps_everything_in_sixteen_bits_and_learns(trainer):
    run = trainer(precision="bf16", steps=40, lr=3e-3, save_every=0)
    run_to_the_end(run)
    losses = list(records(run.run).values())
    assert losses[-1] < losses[0] - 1.5
    kinds = {p.dtype for p in run.model.parameters()}
    kinds |= {t.dtype for state in run.optimizer.state.values() for t in state.values()}
    assert kinds == {torch.bfloat16}


def test_bf16_follows_fp32_at_a_small_rate(trainer, tmp_path):
    """From the same weights, at lr 1e-5: where plain bfloat16 stands still."""
    base = run_to_the_end(trainer("base", steps=30, lr=3e-3, precision="bf16", save_every=0))
    moved = {}
    for precision in ("fp32", "bf16"):
        run = trainer(precision, init=str(base), precision=precision, steps=30, lr=1e-5)
        before = [p.detach().float().clone() for p in run.model.parameters()]
        run_to_the_end(run)
        state = run.optimizer.state
        after = [
            p.detach().float() + (state[p]["carry"].float() if precision == "bf16" else 0)
            for p in run.model.parameters()
        ]
        moved[precision] = torch.cat([(a - b).flatten() for a, b in zip(after, before)])
    apart = torch.nn.functional.cosine_similarity(moved["fp32"], moved["bf16"], 0)
    assert apart > 0.9  # the gradients are bfloat16 too, and differ


@pytest.mark.skipif(not FP16, reason="a PyTorch that multiplies float16 on a CPU")
def test_fp16_mixed_skips_a_step_that_overflows_and_resumes_with_its_scale(trainer):
    run = trainer("fp16", precision="fp16-mixed")
    run.update.loss_scale = 2.0**40  # the first gradients cannot be but infinite
    run_to_the_end(run)
    saved = json.loads((run.run / "checkpoints/step_00000006/state.json").read_text())
    assert 0 < saved["loss_scale"] < 2.0**40
    assert run.optimizer.param_groups[0]["step"] < 6
    losses = list(records(run.run).values())
    assert all(map(math.isfinite, losses))


@pytest.mark.skipif(not FP16, reason="a PyTorch that multiplies float16 on a CPU")
@pytest.mark.parametrize("scale", [2.0**19, 2.0**40])
def test_fp16_mixed_resumes_to_the_last_bit_after_skipped_steps(trainer, scale, monkeypatch):
    """Some of the first three steps overflow, or all of them."""
    monkeypatch.setattr(setup, "_FIRST_LOSS_SCALE", scale)
    whole = run_to_the_end(trainer("whole", precision="fp16-mixed", grad_clip=1.0))
    half = stopped_at_three(trainer("half", precision="fp16-mixed", grad_clip=1.0))
    assert half.state.skipped_steps >= 1
    assert resumed(half).train() == 0
    last = "checkpoints/step_00000006"
    assert files(whole / last) == files(half.run / last)


def stopped_at_three(run):
    real = run.finished
    run.finished = lambda: real() or run.state.step >= 3
    run_to_the_end(run)
    return run


@pytest.mark.skipif(not FP16, reason="a PyTorch that multiplies float16 on a CPU")
def test_the_loss_scale_follows_the_precision_of_a_resumed_run(trainer):
    half = stopped_at_three(trainer("half", precision="fp16-mixed"))
    assert half.state.loss_scale > 0
    plain = resumed(half, precision="fp32")
    assert plain.state.loss_scale == 0
    plain.loader.close()
    other = stopped_at_three(trainer("other"))
    assert other.state.loss_scale == 0
    mixed = resumed(other, precision="fp16-mixed")
    assert mixed.state.loss_scale == setup._FIRST_LOSS_SCALE
    mixed.loader.close()


@pytest.mark.skipif(FP16, reason="a PyTorch that does not")
def test_fp16_mixed_on_an_old_cpu_is_refused_in_one_sentence(trainer):
    with pytest.raises(DeviceError, match="cannot multiply float16"):
        trainer(precision="fp16-mixed")


def test_loss_scaling_is_undone_before_clipping():
    weight = torch.nn.Parameter(torch.ones(4))
    weight.grad = torch.full((4,), 8.0)
    norm, factor = clip_scale([weight], 1.0, loss_scale=4.0)
    assert norm.item() == pytest.approx(4.0)
    assert (weight.grad * factor).norm().item() == pytest.approx(1.0, rel=1e-5)
    norm, factor = clip_scale([weight], 0.0, loss_scale=4.0)
    assert torch.equal(weight.grad * factor, torch.full((4,), 2.0))


def test_the_next_loss_scale():
    assert next_loss_scale(8.0, 5, finite=False) == (4.0, 0)
    assert next_loss_scale(8.0, 5, finite=True) == (8.0, 6)
    assert next_loss_scale(8.0, 1999, finite=True) == (16.0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "Error Code 4: OUT_OF_MEMORY\nMoreh solution has detected that the application requires",
        "KT AI Accelerator memory not enough.",
        '"Too big output tensor". Terminate runtime context.',
    ],
)
def test_no_memory_is_one_sentence(trainer, text, monkeypatch):
    run = trainer()

    def full(*_):
        raise RuntimeError(text)

    monkeypatch.setattr(run.objective, "forward", full)
    with pytest.raises(DeviceError, match="no memory left at step 1; use a smaller"):
        run_to_the_end(run)


def test_other_errors_are_not_taken_for_it(trainer, monkeypatch):
    run = trainer()

    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(run.objective, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_to_the_end(run)
