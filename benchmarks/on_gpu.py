"""Published shapes with random weights on one GPU, beside transformers: memory against the plan,
tokens a second, MFU; then decoding against the memory's bandwidth.

    python -m benchmarks.on_gpu                         # all that fits here, a process each
    python -m benchmarks.on_gpu 1.3b 1.3b-compiled      # some of them
    python -m benchmarks.on_gpu --tiny --device cpu     # the same code on a tiny shape

A case is SIZE (minigpt), SIZE-compiled, SIZE-fsdp (one process, its model held by FSDP2),
SIZE-packed (records), SIZE-one-by-one (records, documents one after another), SIZE-transformers or
SIZE-decode. Nothing is saved: the
state of 13B is 103 GB. `--seconds` ends a case that takes longer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import torch

from minigpt.base.text import size
from minigpt.data.tokenizer import load_tokenizer
from minigpt.decoding.generate import Sampling, Step, decode_step, step_for, stream
from minigpt.devices.device import Device, find_device
from minigpt.model.config import GPTConfig
from minigpt.model.gpt import GPT
from minigpt.model.int8 import quantize
from minigpt.model.zoo import find
from minigpt.planning.fit import flops
from minigpt.planning.memory import memory
from minigpt.planning.peaks import looked_up_peak
from minigpt.training.build import build, create_run, open_data
from minigpt.training.config import TrainConfig
from minigpt.training.parallel import joined
from minigpt.training.resolve import job_of, resolve
from minigpt.training.trainer import Trainer

_MIXED = {"batch_size": 16, "precision": "bf16-mixed", "steps": 20}
_LEAN = {
    "batch_size": 16, "precision": "bf16", "fused_backward": True, "recompute": True,
    "grad_clip": 0.0, "steps": 8,
}  # fmt: skip
SIZES: Dict[str, Dict[str, Any]] = {
    "111m": {"model": "cerebras-111m", **_MIXED},
    "1.3b": {"model": "cerebras-1.3b", **_MIXED},
    "6.7b": {"model": "cerebras-6.7b", **_LEAN},
    "13b": {"model": "cerebras-13b", **_LEAN},
}
KINDS = ("", "-compiled", "-fsdp", "-packed", "-one-by-one", "-transformers", "-decode")
_COMMON = {
    "data": "stdlib", "block_size": 1024, "log_every": 1, "eval_tokens": 16384,
    "eval_every": 0, "sample_every": 0, "save_every": 0,
}  # fmt: skip
_TINY = {"batch_size": 2, "block_size": 32, "steps": 5, "model": "cerebras-111m"}
_WARM_UP = 3  # steps that are not counted
_FEW, _NEW = 8, 128  # tokens decoded, before the clock runs and while it does


def settings_of(name: str, device: Device, tiny: bool, kind: str = "") -> TrainConfig:
    """What a case trains with."""
    kinds: Dict[str, Dict[str, Any]] = {
        "compiled": {"compile": True}, "fsdp": {"parallel": "fsdp"},
        "packed": {"data": "stdlib-functions"}, "one-by-one": {"data": "stdlib-functions"},
    }  # fmt: skip
    changes = {**_COMMON, **SIZES[name], **(_TINY if tiny else {}), "device": device.kind}
    changes.update(kinds.get(kind, {}))
    if device.on_cpu and tiny:
        changes["eval_tokens"] = 64
    return TrainConfig(**changes)


def shape_of(name: str, tiny: bool) -> GPTConfig:
    shape = find(SIZES[name]["model"]).config
    return replace(shape, n_layer=2, n_embd=64, n_head=2, n_inner=256) if tiny else shape


def trained(name: str, device: Device, tiny: bool, kind: str) -> Dict[str, Any]:
    """minigpt as `train.py` runs it."""
    if kind == "fsdp":  # as torchrun --nproc-per-node 1 tells it
        told = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
        told.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=29511)
        os.environ.update((key, str(value)) for key, value in told.items())
    config = settings_of(name, device, tiny, kind)
    with tempfile.TemporaryDirectory() as directory, joined(device, kind != "fsdp") as world:
        config = replace(config, out=str(Path(directory) / "run"))
        asked = resolve(config, device)
        tokenizer = load_tokenizer(asked.vocabulary)
        data = open_data(asked, tokenizer)
        settings = replace(resolve(config, device, data), shape=shape_of(name, tiny))
        trainer = build(settings, device, tokenizer, data, world)
        if kind == "one-by-one":
            trainer.objective.varlen = False
        planned = memory(job_of(trainer.settings, device)).total
        trainer.save = lambda: trainer.run  # type: ignore[method-assign]
        create_run(trainer)
        began = time.perf_counter()
        with profiled(trainer):
            trainer.train()
        took = time.perf_counter() - began
        lines = [json.loads(line) for line in (trainer.run / "metrics.jsonl").open()]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    first = next((line["warmup_seconds"] for line in lines if "warmup_seconds" in line), took)
    return {"tokens/s": statistics.median(speeds[_WARM_UP:]), "planned": planned, "first": first}


@contextmanager
def profiled(trainer: Trainer) -> Iterator[None]:
    """To be replaced where a profile is wanted."""
    yield


def transformers_step(name: str, device: Device, tiny: bool) -> Dict[str, Any]:
    """GPT2LMHeadModel with torch's fused AdamW, at the same precision and batch."""
    import transformers

    config, shape = settings_of(name, device, tiny), shape_of(name, tiny)
    lean = config.precision == "bf16"
    with torch.device(device.torch_device):
        torch.set_default_dtype(torch.bfloat16 if lean else torch.float32)
        model = transformers.GPT2LMHeadModel(theirs(shape)).train()
        torch.set_default_dtype(torch.float32)
    if lean:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    size_ = config.batch_size, config.block_size
    tokens = torch.randint(shape.vocab_size, size_, device=device.torch_device)

    def step() -> None:
        with device.autocast(config.precision):
            loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        if not lean:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    seconds = [timed(step) for _ in range(config.steps)]
    return {"tokens/s": tokens.numel() / statistics.median(seconds[_WARM_UP:]), "first": seconds[0]}


def theirs(shape: GPTConfig) -> Any:
    import transformers

    return transformers.GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.n_positions, n_embd=shape.n_embd,
        n_layer=shape.n_layer, n_head=shape.n_head, n_inner=shape.n_inner,
        activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip


def timed(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def copy_rate(device: Device, numbers: int) -> float:
    """Bytes a second that a copy on the device reads and writes, the best of ten."""
    source = torch.ones(numbers, device=device.torch_device)
    target = torch.empty_like(source)
    return 8 * numbers / min(timed(lambda: target.copy_(source)) for _ in range(10))


def decoding(name: str, device: Device, tiny: bool) -> Dict[str, Any]:
    """One row of bfloat16, greedy, after a prompt of 128; the ways take turns."""
    import transformers

    shape, place = shape_of(name, tiny), device.torch_device
    torch.set_default_dtype(torch.bfloat16)
    model = GPT(shape, place).eval()
    with torch.device(place):
        other = transformers.GPT2LMHeadModel(theirs(shape)).eval()
    torch.set_default_dtype(torch.float32)
    prompt = torch.randint(1, shape.vocab_size, (1, 128), device=place)
    table = model.position_embedding.weight
    read = 2 * (model.parameter_count() - table.numel())
    rate = copy_rate(device, 1_000_000 if tiny else 500_000_000)

    def ours(step: Step, new: int, model: GPT = model) -> None:
        list(stream(model, prompt.tolist(), new, [False], Sampling(0.0), step=step))

    def transformers_generate(new: int) -> None:
        with torch.inference_mode():
            other.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, do_sample=False
            )

    small = quantize(GPT(shape, place).eval().bfloat16())
    recorded, compiled = step_for(model), step_for(model, compiled=True)
    small_recorded, small_compiled = step_for(small), step_for(small, compiled=True)
    ways = {
        "transformers": transformers_generate,
        "plain": lambda new: ours(decode_step, new),
        "minigpt": lambda new: ours(recorded, new),
        "minigpt --compile": lambda new: ours(compiled, new),
        "int8": lambda new: ours(small_recorded, new, small),
        "int8 --compile": lambda new: ours(small_compiled, new, small),
    }
    results: Dict[str, Any] = {"copy GB/s": rate / 1e9}
    for way, go_on in ways.items():
        go_on(4)
        few, many = (
            min(timed(partial(go_on, new)) for _ in range(2)) for new in (_FEW, _FEW + _NEW)
        )
        seconds = (many - few) / _NEW
        results[f"{way} ms/token"] = 1e3 * seconds
        if not way.startswith("int8"):
            results[f"{way} of bandwidth"] = read / seconds / rate
        print("RESULT " + json.dumps(results), flush=True)  # compiling may take too long
    return results


def run(case: str, device: Device, tiny: bool) -> None:
    """One case in this process; prints its results as JSON."""
    name, _, kind = case.partition("-")
    torch.manual_seed(0)
    if kind == "decode":
        results = decoding(name, device, tiny)
    else:
        way = transformers_step if kind == "transformers" else partial(trained, kind=kind)
        results = way(name, device, tiny)
        config = settings_of(name, device, tiny)
        # What is recomputed is no use and does not count.
        job = replace(
            job_of(resolve(config, device), device), shape=shape_of(name, tiny), recompute=False
        )
        per_token = flops(job) / (job.batch * job.block)
        peak = looked_up_peak(device, job.product_bytes)
        if peak:
            results["MFU"] = results["tokens/s"] * per_token / peak
    if device.peak_memory() is not None:
        results["taken"] = device.peak_memory()
    print("RESULT " + json.dumps(results))


def show(case: str, results: Dict[str, Any]) -> str:
    cells = []
    for name, value in results.items():
        text = size(value) if name in ("planned", "taken") else "%.4g" % value
        cells.append("%s %s" % (name, f"{value:,.0f}" if name == "tokens/s" else text))
    return "%-20s %s" % (case, ", ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--here", action="store_true", help="in this process")
    flags = parser.parse_args()
    device = find_device(flags.device)
    cases: List[str] = flags.cases or [name + kind for name in SIZES for kind in KINDS]
    if flags.here:
        run(cases[0], device, flags.tiny)
        return
    print("%s, PyTorch %s" % (device.gpu_name() or "CPU", torch.__version__), flush=True)
    words = ["--here", "--device", flags.device, *(["--tiny"] if flags.tiny else [])]
    for case in cases:
        began = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.on_gpu", case, *words]
        said, error = "", ""
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=flags.seconds)
            said, error = done.stdout, done.stderr
        except subprocess.TimeoutExpired as timeout:
            said = (timeout.stdout or b"").decode()
            error = "took longer than %.0f s" % flags.seconds
        found = [line[7:] for line in said.splitlines() if line.startswith("RESULT ")]
        last = (error.strip() or said).splitlines()[-1:] or ["nothing"]
        text = show(case, json.loads(found[-1])) if found else "%-20s failed: %s" % (case, last[0])
        print("%s  (%.0f s in all)" % (text, time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
