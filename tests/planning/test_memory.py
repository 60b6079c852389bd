"""The memory plan is held against what autograd keeps, against what real runs take, and against
the published numbers for 13B.
"""

import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt.base.files import atomic_directory
from minigpt.checkpoint import manifest
from minigpt.checkpoint.model_files import save_model
from minigpt.data.tokenizer import load_tokenizer
from minigpt.devices.device import find_device, weight_dtype
from minigpt.model.attention import HAS_FUSED, explicit_attention
from minigpt.model.gpt import GPT, GPTConfig
from minigpt.model.lora import LoRAConfig, add_lora
from minigpt.model.zoo import find
from minigpt.optim import execution
from minigpt.optim.adamw import AdamW
from minigpt.planning import memory as plan
from minigpt.planning.fit import largest_rows
from minigpt.planning.memory import Job, block_bytes, memory, moments, states, trained_count
from minigpt.training import fast_loss
from minigpt.training.apply import freeze
from minigpt.training.build import create_run
from tests.helpers.tuning import trainer_of
from tests.helpers.warm import warm

ROOT = Path(__file__).resolve().parents[2]
GB = 10**9
B13 = find("cerebras-13b").config
FULL = Job(B13, rows=4, batch=16, block=1024)
HOOK = not find_device("cpu").fused_backward_missing()
needs_hook = pytest.mark.skipif(not HOOK, reason="PyTorch 2.1 and later")


# What autograd keeps -----------------------------------------------------------------------------

SMALL = GPTConfig(500, 64, 3, 4, 192)
KEPT = {
    "fp32": {},
    "mixed": {"precision": "bf16-mixed"},
    "bf16": {"precision": "bf16"},
    "explicit": {"explicit": True},
    "explicit, mixed": {"explicit": True, "precision": "bf16-mixed"},
    "dropout": {"shape": replace(SMALL, dropout=0.1), "explicit": not HAS_FUSED},
    "adapter": {"lora": LoRAConfig(8)},
    "adapter, mixed": {"lora": LoRAConfig(8), "precision": "bf16-mixed"},
    "adapter without dropout": {"lora": LoRAConfig(8, dropout=0.0)},
    "adapter of qkv": {"lora": LoRAConfig(8, targets=("qkv",))},
    "frozen layers": {"freeze_layers": 1},
}


def storage(tensor):
    """Where the tensor's bytes are, and how many there are."""
    if hasattr(tensor, "untyped_storage"):
        return tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
    return tensor.storage().data_ptr(), tensor.storage().nbytes()


def kept_by_autograd(job):
    """Bytes of all that a forward pass saves, but for the weights and their 16-bit copies."""
    model = GPT(job.shape).to(dtype=weight_dtype(job.precision)).train()
    if job.lora:
        add_lora(model, job.lora)
    freeze(model, job.freeze_layers)
    if job.explicit:
        model.use_attention(explicit_attention)
    weights = {storage(parameter)[0] for parameter in model.parameters()}
    shapes = {tuple(sorted(p.shape)) for p in model.parameters() if p.dim() == 2}
    saved, alive = {}, []

    def pack(tensor):
        place, size = storage(tensor)
        if place not in weights and tuple(sorted(tensor.shape)) not in shapes:
            saved[place] = size
            alive.append(tensor)  # or its place would be taken again
        return tensor

    tokens = torch.randint(0, job.shape.vocab_size, (job.rows, job.block))
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, find_device("cpu").autocast(job.precision):
        model.features(tokens)
    return sum(saved.values())


@pytest.mark.parametrize("case", KEPT)
def test_kept_activations_are_those_that_autograd_saves(case):
    job = replace(Job(SMALL, 5, 5, 64, explicit=not HAS_FUSED, on_cpu=True), **KEPT[case])
    expected = job.tokens * (job.trained_layers * block_bytes(job) + 192 * job.weight_bytes)
    # An adapter's first block keeps less: nothing goes back to the frozen embeddings.
    assert kept_by_autograd(job) == pytest.approx(expected, rel=0.06 if job.lora else 0.02)


# What real runs take -----------------------------------------------------------------------------

ACTIVE = GPTConfig(2000, 256, 6, 8, 256)  # activations count most
HEAVY = GPTConfig(2000, 128, 8, 8, 576)  # weights, gradients and states do
WORDS = GPTConfig(50257, 128, 2, 8, 256)  # the loss does
RUNS = {
    "fp32": (Job(ACTIVE, 12, 12, 256), {}),
    "micro-batches": (Job(HEAVY, 4, 8, 64), {}),
    "words": (Job(WORDS, 8, 8, 128), {}),
    "bf16-mixed": (Job(ACTIVE, 16, 16, 256), {"precision": "bf16-mixed"}),
    "bf16": (Job(HEAVY, 8, 8, 64), {"precision": "bf16"}),
    "recompute": (Job(ACTIVE, 32, 32, 256), {"recompute": True}),
    "fused-backward": (Job(HEAVY, 8, 8, 64), {"fused_backward": True}),
    "adapter": (Job(ACTIVE, 12, 12, 256), {"lora": LoRAConfig(8)}),
}


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(start, out, values):
    """Two steps of a real run from the checkpoint `start`; prints how much the process grew."""
    torch.set_num_threads(1)
    warm = GPT(GPTConfig(99, 32, 1, 2, 32))
    for precision in ("fp32", "bf16-mixed"):  # libraries make their own buffers at first use
        with find_device("cpu").autocast(precision):
            warm(torch.zeros(2, 32, dtype=torch.int64)).float().sum().backward()
    AdamW(warm.parameters()).step()  # PyTorch loads its compiler with the first optimizer
    text = Path(out).parent / "text.txt"
    before = resident()
    trainer = trainer_of(
        init=start,
        out=out,
        data=str(text),
        steps=2,
        eval_every=0,
        sample_every=0,
        **json.loads(values),
    )
    create_run(trainer)
    trainer._every_so_often = lambda *_, **__: None
    trainer.train()
    print(most_resident() - before)


def most_resident():
    """The most that this process has had. Not getrusage's ru_maxrss: that begins with what the
    process that started this one had.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024


def grown(tmp_path, shape, values):
    """Bytes by which a fresh process grows. Its allocator gives back at once what is freed, so that
    only what is alive counts.
    """
    known, start = load_tokenizer("bytes"), tmp_path / "base"
    with atomic_directory(start) as partial:
        records = save_model(partial, GPT(shape))
        known.save(partial)
        manifest.write_manifest(partial, records)
    (tmp_path / "text.txt").write_text("def f(x):\n    return x + 1\n" * 20_000)
    here = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    words = ("tests.planning.test_memory", start, tmp_path / "run", json.dumps(values))
    words = warm("-m", *words, **here)  # which takes what a process started anew does, to 1%
    here.update(XDG_CACHE_HOME=str(tmp_path / "cache"))
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, **here}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("case", RUNS)
def test_a_real_run_takes_what_was_planned(case, tmp_path):
    job, changes = RUNS[case]
    if "fused_backward" in changes and not HOOK:
        pytest.skip("PyTorch 2.1 and later")
    job = replace(job, explicit=not HAS_FUSED, on_cpu=True, **changes)
    values = {"batch_size": job.batch, "micro_batch_size": job.rows, "block_size": job.block}
    values.update({name: value for name, value in changes.items() if name != "lora"})
    if job.lora:
        values["lora_rank"] = job.lora.rank
    measured, planned = grown(tmp_path, job.shape, values), memory(job).total
    print("%s: measured %.1f MB, planned %.1f MB" % (case, measured / 1e6, planned / 1e6))
    assert planned == pytest.approx(measured, rel=0.1)


def test_sizes_of_pieces_are_those_of_the_code():
    assert plan.LOGITS_ALIVE[True] == fast_loss.LOGITS_AT_A_TIME
    assert plan.LOGITS_ALIVE[False] == fast_loss.LOGITS_ON_A_GPU
    assert plan._ROW_MULTIPLE == fast_loss._ROW_MULTIPLE


def test_counts_are_those_of_real_models():
    for job in (Job(SMALL, 1, 1, 8, lora=LoRAConfig(4)), Job(SMALL, 1, 1, 8, freeze_layers=2)):
        model = GPT(SMALL)
        if job.lora:
            add_lora(model, job.lora)
        freeze(model, job.freeze_layers)
        learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trained_count(job) == learns
    assert trained_count(Job(SMALL, 1, 1, 8)) == SMALL.parameter_count()


def test_a_head_of_its_own_has_one_gradient_and_a_tied_one_two():
    tied, own = Job(SMALL, 2, 2, 8), Job(replace(SMALL, tied_head=False), 2, 2, 8)
    head = 4 * SMALL.vocab_size * SMALL.n_embd
    works = [next(m for m in moments(job) if m.moment == "backward ends") for job in (tied, own)]
    assert works[0].work - works[1].work == head
    assert works[1].gradients - works[0].gradients == head


def test_moai_has_all_logits_until_they_have_gone_back():
    job = Job(SMALL, 4, 4, 8, whole_logits=True, explicit=True)
    kept = {moment.moment: moment.loss for moment in moments(job)}
    assert kept["backward begins"] == 3 * 4 * 32 * SMALL.vocab_size
    assert kept["loss"] > kept["backward begins"] > kept["backward ends"] == 0


def test_off_the_cpu_an_update_takes_two_copies_of_the_largest_weight():
    step = moments(Job(replace(SMALL, vocab_size=5000), 1, 1, 8))[-1]
    assert step.work == 2 * 4 * 5000 * SMALL.n_embd
    huge = replace(SMALL, vocab_size=10**6)
    lean = moments(Job(huge, 1, 1, 8, precision="bf16"))[-1]
    assert lean.work == 4 * plan._WIDE_COPIES * execution.WIDE_SLICE
    weight, sizes = torch.empty(40_000_000, device="meta", dtype=torch.bfloat16), []
    execution.in_slices(
        lambda piece, scale: sizes.append(piece.numel()), [weight], execution.Scalars((), ()), None
    )
    assert max(sizes) == execution.WIDE_SLICE


# 13B ---------------------------------------------------------------------------------------------


def test_full_precision_takes_206_gb_before_any_activation():
    step = moments(FULL)[-1]
    assert (step.weights + step.gradients + step.states) / GB == pytest.approx(205.65, abs=0.1)
    assert 16 * B13.parameter_count() == step.weights + step.gradients + step.states


def test_all_weights_of_13b_in_one_gpu_of_141_gb():
    lean = replace(FULL, precision="bf16", fused_backward=True)
    assert states(lean) + 2 * B13.parameter_count() == pytest.approx(102.8 * GB, rel=0.01)
    assert largest_rows(lean, 141 * GB) >= 4
    assert largest_rows(replace(lean, recompute=True), 141 * GB) == 16
    assert largest_rows(replace(lean, recompute=True), 80 * GB) == 0


def test_an_adapter_of_13b_in_40_gb():
    adapter = replace(FULL, precision="bf16", lora=LoRAConfig(16))
    assert largest_rows(adapter, 40 * GB) >= 1
    assert largest_rows(replace(adapter, recompute=True), 40 * GB) == 16


# Properties --------------------------------------------------------------------------------------


@st.composite
def jobs(draw):
    width = draw(st.sampled_from((64, 256, 1024)))
    shape = GPTConfig(
        draw(st.sampled_from((257, 50257))), 1024, draw(st.integers(1, 6)), 4, width,
        dropout=draw(st.sampled_from((0.0, 0.1))), tied_head=draw(st.booleans()),
    )  # fmt: skip
    batch = draw(st.integers(2, 64))
    return Job(
        shape,
        draw(st.integers(1, batch)),
        batch,
        draw(st.sampled_from((16, 128, 1024))),
        draw(st.sampled_from(("fp32", "bf16-mixed", "bf16"))),
        recompute=draw(st.booleans()),
        lora=draw(st.sampled_from((None, LoRAConfig(4)))),
        explicit=draw(st.booleans()),
        on_cpu=draw(st.booleans()),
    )


@given(jobs(), st.integers(1, 62))
def test_more_rows_never_take_less(job, more):
    rows = min(job.rows, job.batch - 1)  # the last micro-batch finds no gradients if it is the only
    job, larger = replace(job, rows=rows), replace(job, rows=min(rows + more, job.batch - 1))
    assert memory(larger).total >= memory(job).total


@given(jobs())
def test_recomputing_never_keeps_more(job):
    kept, again = (moments(replace(job, recompute=flag))[1] for flag in (False, True))
    assert again.activations <= kept.activations
    assert again.total <= kept.total


if __name__ == "__main__":
    measure(*sys.argv[1:])
