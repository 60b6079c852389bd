"""What only a GPU can show: that it computes what the CPU does, that nothing in a step waits for
it, and that the memory plan is true there. Skipped where there is no GPU.
"""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch

from minigpt import load_model
from minigpt.base.errors import DeviceError
from minigpt.data.batch import IGNORE
from minigpt.decoding.generate import Sampling, decode_step, generate, stream
from minigpt.decoding.graphs import GraphedStep
from minigpt.devices.device import find_device, is_moai, weight_dtype
from minigpt.model.attention import HAS_FUSED, explicit_attention, fused_attention
from minigpt.model.gpt import GPT, GPTConfig
from minigpt.model.int8 import quantize
from minigpt.model.lora import LoRAConfig
from minigpt.optim.adamw import AdamW
from minigpt.optim.execution import compiled, compiles, in_slices
from minigpt.planning.memory import Job, memory
from minigpt.training.config_file import flag_words
from minigpt.training.fast_loss import (
    linear_cross_entropy,
    softmax_and_loss,
    softmax_and_loss_to_compile,
)
from tests.helpers.runs import ROOT, corpus, files, records
from tests.helpers.tuning import base, resumed, run_to_the_end, trainer_of, tuning

PLACE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(is_moai() or not torch.cuda.is_available(), reason="no GPU is here"),
]
# What --deterministic sets, but here other tests come first.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
SHAPE = GPTConfig(257, 128, 2, 4, 128, init_std=0.1)
FORMS = [explicit_attention] + ([fused_attention] if HAS_FUSED else [])


def close(mine, reference, tolerance=1e-4):
    """Both on the host, within a share of the largest magnitude."""
    mine, reference = mine.detach().float().cpu(), reference.detach().float().cpu()
    return (mine - reference).abs().max() <= tolerance * reference.abs().max()


def started(tmp_path, name="run", **settings):
    """A Trainer on the GPU, on real text."""
    values = {"data": str(corpus(tmp_path / "corpus")), "out": str(tmp_path / name)}
    values.update(device=PLACE, batch_size=8, block_size=64, steps=8, warmup_steps=1, seed=5)
    values.update(log_every=1, eval_every=4, eval_tokens=640, sample_every=0, save_every=4)
    return trainer_of(**{**values, **settings})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# The same numbers as the CPU -------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_every_gradient_are_those_of_the_cpu(form):
    tokens, targets = torch.randint(257, (2, 3, 64)).unbind()
    results = []
    model = GPT(SHAPE)
    for place in ("cpu", PLACE):
        there = copy.deepcopy(model).use_attention(form).to(place)
        x = there.features(tokens.to(place))
        loss = linear_cross_entropy(x, there.head_weight, targets.to(place))
        results.append([loss, *torch.autograd.grad(loss, list(there.parameters()))])
    assert all(close(mine, reference) for reference, mine in zip(*results))


def test_packed_documents_are_the_same_one_by_one_and_under_a_mask(tmp_path):
    trainer = tuning(tmp_path, device=PLACE)
    batch = next(trainer.loader)
    trainer.loader.close()
    one_by_one = trainer.objective(batch)
    trainer.objective.masked = True
    assert close(trainer.objective(batch), one_by_one)


@pytest.mark.parametrize("more", [{}, {"compile": True}, {"recompute": True}])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16"])
def test_packed_documents_in_one_kernel_are_the_same_one_by_one(tmp_path, precision, more):
    trainer = tuning(tmp_path, device=PLACE, precision=precision, **more)
    if not trainer.objective.varlen:
        pytest.skip("no kernel for it in this PyTorch, or for this GPU")
    batch = next(trainer.loader)
    trainer.loader.close()
    learned, found = [p for p in trainer.model.parameters() if p.requires_grad], []
    for in_one in (True, False):
        trainer.objective.varlen, trainer.objective.masked = in_one, bool(more.get("compile"))
        loss = trainer.objective(batch)
        found.append([loss, *torch.autograd.grad(loss, learned)])
    assert all(close(mine, reference, 3e-2) for mine, reference in zip(*found))
    assert close(found[0][0], found[1][0], 1e-3)


@pytest.mark.parametrize("execution", [in_slices, compiled])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw_moves_weights_as_on_the_cpu(dtype, execution):
    if execution is compiled and find_device(PLACE).compiler_missing():
        pytest.skip("PyTorch 2.0 and later")
    start, moved = torch.randn(300, 500).to(dtype), []
    gradients = [torch.randn(300, 500).to(dtype) for _ in range(5)]
    for place, way in (("cpu", in_slices), (PLACE, execution)):
        weight = torch.nn.Parameter(start.clone().to(place))
        optimizer = AdamW([weight], lr=1e-2, execution=way)
        for gradient in gradients:
            weight.grad = gradient.to(place)
            optimizer.step(torch.full((), 0.5, device=place))
        carry = optimizer.state[weight].get("carry", torch.zeros(()))
        moved.append(weight.detach().float().cpu() + carry.float().cpu() - start.float())
    # Means of 16 bits are rounded by chance, and the chances of two devices differ.
    assert close(moved[1], moved[0], 5e-5 if dtype == torch.float32 else 3e-2)


def test_greedy_text_is_that_of_the_cpu():
    model = GPT(SHAPE).eval()
    prompt = list(b"def f(x):")
    texts = [generate(model.to(place), prompt, 40, 0.0) for place in ("cpu", PLACE)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("compiled", [False, True])
def test_recorded_kernels_give_the_text_of_kernels_sent_one_by_one(compiled):
    if compiled and find_device(PLACE).compiler_missing():
        pytest.skip("PyTorch 2.0 and later")
    """Beyond the model's positions too, where what was recorded is recorded anew."""
    model, prompts = GPT(SHAPE).eval().to(PLACE), [[1, 2, 3], list(range(30))]
    recorded, plain = (
        list(stream(model, prompts, 150, [False] * 6, Sampling(1.0), seed=1, step=step))
        for step in (GraphedStep(compiled), decode_step)
    )
    same = sum(mine == theirs for mine, theirs in zip(recorded, plain))
    print("the same until token %d of %d" % (same, len(plain)))
    assert recorded == plain


@pytest.mark.parametrize("compiled", [False, True])
def test_text_of_weights_in_8_bits_is_that_of_the_cpu(compiled):
    if compiled and find_device(PLACE).compiler_missing():
        pytest.skip("PyTorch 2.0 and later")
    small, prompt = quantize(GPT(SHAPE).eval()), list(b"def f(x):")
    expected = generate(small, prompt, 40, 0.0)
    small.to(PLACE)
    assert generate(small, prompt, 40, 0.0, step=GraphedStep(compiled)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_loss_is_that_of_the_formula(dtype):
    if find_device(PLACE).compiler_missing():
        pytest.skip("PyTorch 2.0 and later")
    product = torch.randn(300, 5056, device=PLACE).to(dtype)
    targets = torch.randint(5001, (300,), device=PLACE).masked_fill(
        torch.rand(300, device=PLACE) < 0.3, IGNORE
    )
    compiled = torch.compile(softmax_and_loss_to_compile)(product.clone(), targets, 5001)
    formula = softmax_and_loss(product.clone(), targets, 5001)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    assert all(close(mine, reference, tolerance) for mine, reference in zip(compiled, formula))


# Training --------------------------------------------------------------------------------------

WAYS = {
    "fp32": {},
    "micro-batches": {"micro_batch_size": 2},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16": {"precision": "bf16"},
    "recompute": {"recompute": True},
    "all that saves memory": {
        "precision": "bf16", "recompute": True, "fused_backward": True, "grad_clip": 0.0
    },
    "compiled": {"compile": True, "precision": "bf16-mixed"},
    "compiled, and all that saves memory": {
        "precision": "bf16", "recompute": True, "fused_backward": True, "grad_clip": 0.0,
        "compile": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_nothing_in_a_step_waits_for_the_device(way, tmp_path):
    """PyTorch itself raises at every operation that would wait."""
    nothing_waits(started(tmp_path, **WAYS[way]))


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 4}, {"packing": False}])
def test_nothing_waits_in_fine_tuning(settings, tmp_path):
    nothing_waits(tuning(tmp_path, device=PLACE, **settings))


def nothing_waits(trainer):
    step, strict = trainer.step, []

    def watched():
        # The first steps compile and allocate, and may wait.
        watching = trainer.state.step >= 2
        torch.cuda.set_sync_debug_mode("error" if watching else "default")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        strict.append(watching)

    trainer.step = watched
    run_to_the_end(trainer)
    assert sum(strict) >= 4


@pytest.mark.parametrize("way", [*WAYS, "fp16-mixed"])
def test_every_way_of_training_learns(way, tmp_path):
    settings = WAYS.get(way, {"precision": way})
    trainer = started(tmp_path, steps=60, lr=3e-3, eval_every=0, save_every=0, **settings)
    losses = list(records(run_to_the_end(trainer)).values())
    assert losses[-1] < losses[0] - 1.5


@pytest.mark.parametrize("way", ["fp32", "bf16-mixed", "bf16"])
def test_a_resumed_run_is_the_same_to_the_last_bit(way, tmp_path):
    try:
        settings = {**WAYS[way], "init": str(base(tmp_path / "base")), "deterministic": True}
        whole = run_to_the_end(started(tmp_path, "whole", **settings))
        half = started(tmp_path, "half", **settings)
        real = half.finished
        half.finished = lambda: real() or half.state.step >= 4
        run_to_the_end(half)
        assert resumed(half).train() == 0
    finally:
        torch.use_deterministic_algorithms(False)
    last = "checkpoints/step_00000008"
    assert files(whole / last) == files(half.run / last)


def test_a_run_from_the_command_line_reports_memory_and_loads_on_a_cpu(tmp_path):
    run = tmp_path / "run"
    words = ["--device", PLACE, "--steps", "3", "--out", str(run), "--log-every", "1"]
    words += ["--data", str(corpus(tmp_path / "corpus"))]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert lines[0]["peak_memory"] > 4 * load_model(run).parameter_count()


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16-mixed"}, {"precision": "bf16"}])
def test_fsdp_over_nccl_gives_the_numbers_of_none(settings, tmp_path):
    """One process is all that one GPU serves; its model, gradients and states are FSDP2's."""
    pytest.importorskip("torch.distributed.fsdp")
    data, start = corpus(tmp_path / "corpus"), base(tmp_path / "base", shape=SHAPE)
    flags = {"device": PLACE, "data": str(data), "init": str(start), "steps": 8, "log_every": 1}
    flags.update(batch_size=8, block_size=64, eval_every=4, sample_every=0, seed=5, **settings)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ways = {"alone": [sys.executable], "fsdp": [*torchrun, "--nproc_per_node", "1"]}
    for name, launch in ways.items():
        more = {"parallel": "fsdp"} if name == "fsdp" else {}
        words = flag_words({**flags, **more, "out": str(tmp_path / name)})
        done = subprocess.run(
            [*launch, str(ROOT / "train.py"), *words], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    alone, divided = (list(records(tmp_path / name).values()) for name in ways)
    assert divided == pytest.approx(alone, rel=1e-5 if not settings else 1e-2)


# Memory ----------------------------------------------------------------------------------------

WEIGHTS = GPTConfig(257, 256, 4, 16, 1024)
TOKENS = GPTConfig(50257, 512, 2, 8, 512)
LONG = GPTConfig(257, 512, 8, 8, 512)
# Large enough that what the allocator rounds up does not count.
MEMORY = {
    "weights": (WEIGHTS, 4, 8, {}),
    "vocabulary": (TOKENS, 8, 8, {}),
    "activations": (LONG, 8, 8, {}),
    "activations, bf16-mixed": (LONG, 8, 8, {"precision": "bf16-mixed"}),
    "activations, recomputed": (LONG, 8, 8, {"recompute": True}),
    "weights, bf16": (WEIGHTS, 4, 4, {"precision": "bf16", "fused_backward": True}),
    "adapter": (LONG, 8, 8, {"precision": "bf16", "lora": LoRAConfig(16)}),
}


@pytest.mark.parametrize("case", MEMORY)
def test_a_run_takes_what_was_planned(case, tmp_path):
    shape, rows, batch, changes = MEMORY[case]
    dtype = weight_dtype(changes.get("precision", "fp32"))
    no_copies = compiles(dtype, PLACE) and not find_device(PLACE).compiler_missing()
    job = Job(
        shape, rows, batch, shape.n_positions, explicit=not HAS_FUSED, compiled_update=no_copies,
        **changes,
    )  # fmt: skip
    settings = {name: value for name, value in changes.items() if name != "lora"}
    if job.lora:
        settings["lora_rank"] = job.lora.rank
    start, before = base(tmp_path / "base", shape=shape), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer = started(
        tmp_path, init=str(start), batch_size=batch, micro_batch_size=rows, block_size=job.block,
        grad_clip=0.0, steps=3, save_every=0, eval_tokens=job.block, **settings,
    )  # fmt: skip
    run_to_the_end(trainer)
    measured, planned = torch.cuda.max_memory_allocated() - before, memory(job).total
    print("%s: measured %.1f MB, planned %.1f MB" % (case, measured / 1e6, planned / 1e6))
    assert planned == pytest.approx(measured, rel=0.1)


def test_no_memory_is_one_sentence(tmp_path):
    trainer = started(tmp_path, batch_size=512, micro_batch_size=512, block_size=96)
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        with pytest.raises(DeviceError, match="no memory left at step 1; use a smaller"):
            run_to_the_end(trainer)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
