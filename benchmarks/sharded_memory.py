"""python -m benchmarks.sharded_memory: the memory of each process of a divided model, by the plan.

A checkpoint of random weights in the width of Cerebras-GPT 1.3B (--layers of its 24, as several
processes share the memory of one machine) is trained for a few steps by `train.py` alone, and by
`torchrun train.py --parallel fsdp`. Memory is RssAnon of /proc/PID/status, looked at all the time:
what a process has allocated, without the pages of mapped files. What Python, PyTorch and the data
take is found by the same run of a model of almost nothing, and taken off; the rest is held against
`minigpt plan` for the same flags.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import List, NamedTuple

import torch

from minigpt.base.text import size
from minigpt.checkpoint.manifest import write_checkpoint
from minigpt.checkpoint.model_files import save_model
from minigpt.data.tokenizer import load_tokenizer
from minigpt.devices.device import find_device
from minigpt.model.gpt import GPT
from minigpt.model.zoo import find
from minigpt.planning.memory import Memory, memory
from minigpt.training.config import TrainConfig
from minigpt.training.config_file import CONFIG
from minigpt.training.resolve import job_of, resolve

_LOOK = 0.004  # seconds between two looks
_NOTHING = {"n_layer": 1, "n_head": 1, "n_embd": 8}


class Run(NamedTuple):
    """One run of train.py."""

    start: Path
    processes: int
    precision: str
    batch: int
    block: int
    steps: int

    def words(self, out: Path) -> List[str]:
        """The command."""
        told = {
            "init": self.start, "data": "stdlib", "out": out, "device": "cpu", "steps": self.steps,
            "precision": self.precision, "batch-size": self.batch, "block-size": self.block,
            "eval-every": 0, "eval-tokens": self.block, "sample-every": 0, "save-every": 0,
        }  # fmt: skip
        first = [sys.executable]
        if self.processes > 1:
            first += ["-m", "torch.distributed.run", f"--nproc-per-node={self.processes}"]
            told["parallel"] = "fsdp"
        flags = [str(word) for name, value in told.items() for word in (f"--{name}", value)]
        return [*first, "train.py", *flags]

    def planned(self) -> Memory:
        """What `minigpt plan --gpus` says of one device."""
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ[name] = str(self.processes)
        device = find_device("cpu")
        config = TrainConfig(
            init=str(self.start), device="cpu", precision=self.precision, batch_size=self.batch,
            block_size=self.block, parallel="fsdp" if self.processes > 1 else None,
        )  # fmt: skip
        return memory(job_of(resolve(config, device), device))


def checkpoint(directory: Path, **changes: int) -> Path:
    """Random weights of 1.3B's shape, but for the changes."""
    shape = replace(find("cerebras-1.3b").config, n_inner=None, **changes)
    model = GPT(shape)
    write_checkpoint(directory, lambda part: save_model(part, model), load_tokenizer("gpt2"))
    return directory


class Took(NamedTuple):
    """The largest RssAnon of each process, in order, and the longest time without a look."""

    loading: List[int]  # until the run directory has its settings: the weights are there then
    ever: List[int]
    unseen: float


def watched(run: Run) -> Took:
    """Runs it, and looks."""
    environment = {k: v for k, v in os.environ.items() if "WORLD_SIZE" not in k}
    loading, ever, unseen, looked = [0] * run.processes, [0] * run.processes, 0.0, 0.0
    with tempfile.TemporaryDirectory(dir=run.start.parent) as directory:
        place, said = Path(directory) / "run", Path(directory) / "said.txt"
        with said.open("w") as out:
            process = subprocess.Popen(run.words(place), stdout=out, stderr=out, env=environment)
        while process.poll() is None:
            pids = workers(process.pid) if run.processes > 1 else [process.pid]
            for rank, pid in enumerate(pids):
                ever[rank] = max(ever[rank], anonymous(pid))
            if not (place / CONFIG).exists():
                loading = list(ever)
            now = time.perf_counter()
            unseen, looked = max(unseen, now - (looked or now)), now
            time.sleep(_LOOK)
        if process.returncode:
            sys.exit(said.read_text())
    return Took(loading, ever, unseen)


def workers(torchrun: int) -> List[int]:
    """The processes that torchrun has started, in order."""
    try:
        return sorted(
            map(int, Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split())
        )
    except OSError:
        return []


def anonymous(pid: int) -> int:
    """Bytes of a process that are no file's."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
    return 1024 * int(found[0]) if found else 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16-mixed"])
    flags = parser.parse_args()
    cores, rest = os.cpu_count(), (flags.batch, flags.block, flags.steps)
    print(f"{date.today()}, {platform.machine()}, {cores} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as directory:
        real = checkpoint(Path(directory) / "real", n_layer=flags.layers)
        nothing = checkpoint(Path(directory) / "nothing", **_NOTHING)
        whole = sum(file.stat().st_size for file in real.glob("*.safetensors"))
        print(
            f"{flags.layers} layers of 1.3B: {size(whole)} of weights; --batch-size {flags.batch}"
        )
        for precision in flags.precisions:
            for count in flags.processes:
                show(Run(nothing, count, precision, *rest), Run(real, count, precision, *rest))


def show(nothing: Run, run: Run) -> None:
    """A line for each process: what it took beyond what any run takes, and the plan's."""
    empty, took, plan = watched(nothing), watched(run), run.planned()
    floor = max(empty.ever) - nothing.planned().total
    print(f"{run.precision}, {run.processes} processes; planned {size(plan.total)} ({plan.moment})")
    for rank, (loading, ever) in enumerate(zip(took.loading, took.ever)):
        loaded, own = loading - min(empty.loading), ever - floor
        off = 100 * (plan.total / own - 1)
        print(
            f"  rank {rank}: {size(loaded)} while loading; RssAnon {size(ever)}, without the",
            end="",
        )
        print(f" {size(floor)} of any run {size(own)}: the plan is {off:+.1f}%", flush=True)
    print(f"  looked at least every {1e3 * took.unseen:.0f} ms")


if __name__ == "__main__":
    main()
