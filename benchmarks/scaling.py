"""python -m benchmarks.scaling: 1 to 1,024 devices by the plan, and the plan against gloo here.

    python -m benchmarks.scaling           # H100s, 8 a machine, four sizes: computed, not measured
    python -m benchmarks.scaling --here    # 1, 2 and 4 processes on this machine's cores: both

Everything computed comes from the functions of `minigpt plan`: planning/ and training/resolve.py.
`--here` first measures a matrix product, what gloo sends in a second by the calls that the way of
training uses, a turn of its rings, and the disk; then train.py runs. All processes share the
cores, for computing and for sending, which is part of the plan; so is that 40% of the peak are
reached, and the last column takes the step of one process instead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.distributed as dist

from minigpt.base.text import size
from minigpt.devices.device import Device, find_device
from minigpt.planning import peaks
from minigpt.planning.memory import Job, block_count, memory
from minigpt.planning.peaks import GB
from minigpt.planning.sending import Cluster, Sent, sending_seconds
from minigpt.training.config import TrainConfig
from minigpt.training.resolve import job_of, pace, resolve

_SIZES = ("cerebras-111m", "cerebras-1.3b", "cerebras-6.7b", "cerebras-13b")
_DEVICES = (1, 8, 16, 64, 256, 1024)
_ROWS, _GPUS = 16, 8  # a device's rows of a step; GPUs of a machine
_NETWORK = 8 * 50 * GB  # of a machine: 8 cards of 400 Gb/s
_DISK = 2 * GB  # that process 0 writes a second: assumed
_SMALL = {
    "model": "mini", "n_embd": 512, "n_layer": 6, "n_head": 8, "n_positions": 256,
    "batch_size": 4, "block_size": 256, "data": "stdlib", "device": "cpu", "log_every": 1,
    "eval_every": 0, "eval_tokens": 256, "sample_every": 0, "save_every": 0,
}  # fmt: skip
_WARM_UP = 2  # steps that are not counted


def job(config: TrainConfig, gpus: int, nodes: int, device: Optional[Device], room: int) -> Job:
    """A device's part of the run, and nothing else than what plan makes of it."""
    os.environ.update(WORLD_SIZE=str(gpus * nodes), LOCAL_WORLD_SIZE=str(gpus))
    return job_of(resolve(config, device, room=room), device)


def saving_seconds(one: Job, c: Cluster, disk: float) -> float:
    """Weights are gathered, a tensor at a time, and written by process 0; of the two states every
    process writes its rows, here to the same disk.
    """
    weights = one.shape.parameter_count() * 4
    rings = {"fsdp": (c.gpus, c.nodes), "hsdp": (c.gpus, 1)}.get(c.division, (1, 1))
    tensors = 12 * one.shape.n_layer + 4
    return Sent(*rings, weights, 1, tensors, bare=True).seconds(c) + 3 * weights / disk


# Computed ----------------------------------------------------------------------------------------


class Way(NamedTuple):
    """How a number of devices train, and what the plan says of it."""

    seconds: float
    name: str
    job: Job
    cluster: Cluster


def best(model: str, devices: int, h100: peaks.Accelerator) -> Optional[Way]:
    """The fastest of what fits; None if nothing does."""
    gpus = min(devices, _GPUS)
    nodes, found = devices // gpus, []
    for division in ("ddp", "fsdp") + (("hsdp",) if nodes > 1 else ()):
        for again in (False, True):
            config = TrainConfig(
                init=model, precision="bf16-mixed", batch_size=_ROWS * devices, block_size=1024,
                recompute=again, parallel=division,
            )  # fmt: skip
            one = job(config, gpus, nodes, None, h100.memory)
            cluster = Cluster(division, gpus, nodes, h100.link * GB, _NETWORK)
            step = pace(one, h100, cluster)
            if memory(one).total <= h100.memory and step is not None:
                name = (division if devices > 1 else "alone") + ", recomputed" * again
                found.append(Way(step.seconds, name, one, cluster))
    return min(found, key=lambda way: way.seconds) if found else None


def computed() -> None:
    h100 = peaks.find_accelerator("h100")
    print(f"{h100.name}, {_GPUS} a machine, {h100.link:g} GB/s inside, {_NETWORK / GB:g} between")
    print(
        f"bf16-mixed, {_ROWS} rows of 1,024 tokens a device; the disk is assumed: {size(_DISK)}/s"
    )
    print(
        "| | devices | fastest that fits | memory | step | sending | of it added"
        " | tokens/s a device | save |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for model in _SIZES:
        for devices in _DEVICES:
            way = best(model, devices, h100)
            if way is None:
                print(f"| {model} | {devices:,} | nothing fits | | | | | | |")
                continue
            step = pace(way.job, h100, way.cluster)
            print(
                f"| {model} | {devices:,} | {way.name}, {way.job.rows} rows at a time"
                f" | {size(memory(way.job).total)} | {step.seconds:.3f} s | {step.sending:.3f} s"
                f" | {step.added:.3f} s | {way.job.batch * 1024 / step.seconds:,.0f}"
                f" | {saving_seconds(way.job, way.cluster, _DISK):.0f} s |"
            )


# Measured ----------------------------------------------------------------------------------------


def torchrun(processes: int, *words: str) -> str:
    """What the first process says."""
    first = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command = (first if processes > 1 else [sys.executable]) + list(words)
    environment = {k: v for k, v in os.environ.items() if "WORLD_SIZE" not in k}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def ring(division: str, numbers: int) -> None:
    """In each process: measures gloo; process 0 prints bytes/s of a process, and seconds a turn."""
    dist.init_process_group("gloo")
    n = dist.get_world_size()
    whole, part = torch.ones(numbers // n * n), torch.ones(numbers // n)

    def both() -> None:
        if division == "ddp":
            dist.all_reduce(whole)
        else:
            dist.all_gather_into_tensor(whole, part)
            dist.reduce_scatter_tensor(part, whole)

    sent = 2 * (n - 1) / n * 4 * whole.numel()
    thin, few = torch.ones(n), torch.ones(1)
    turn = _median(lambda: dist.all_gather_into_tensor(thin, few), 50) / (n - 1)
    link = sent / (_median(both, 7) - 2 * (n - 1) * turn)
    if dist.get_rank() == 0:
        print(json.dumps({"link": link, "turn": turn}))
    dist.destroy_process_group()


def _median(call: Callable[[], Any], times: int) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def disk(directory: Path) -> float:
    """Bytes/s that are written and summed up, as a checkpoint's are."""
    block, began = os.urandom(1 << 24), time.perf_counter()
    with (directory / "disk").open("wb") as file:
        digest = hashlib.sha256()
        for _ in range(16):
            digest.update(block)
            file.write(block)
        os.fsync(file.fileno())
    return 16 * len(block) / (time.perf_counter() - began)


def trained(processes: int, division: str, steps: int, place: Path) -> Tuple[List[float], float]:
    """Seconds of each step of a real run, and of its saving."""
    told = {**_SMALL, "steps": steps, "out": place}
    if processes > 1:
        told["parallel"] = division
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in told.items()]
    torchrun(processes, "train.py", *flags)
    metrics = place / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    seconds = [line["step_seconds"] for line in lines if "step_seconds" in line][_WARM_UP:]
    saved = max(file.stat().st_mtime for file in place.rglob("manifest.json"))
    return seconds, saved - metrics.stat().st_mtime


class Turn(NamedTuple):
    """One real run, and what the plan said of it just before."""

    link: float  # bytes/s of gloo
    steps: List[float]  # seconds
    planned: float
    from_one: float  # planned from the step of one process, in the same round
    save: float
    planned_save: float


def turn(processes: int, division: str, steps: int, alone: Optional[float]) -> Turn:
    """Measures the machine, then trains; `alone` is the step of one process."""
    device, found = find_device("cpu"), {"link": 0.0, "turn": 0.0}
    config = TrainConfig(**_SMALL, parallel=division or None)  # type: ignore[arg-type]
    one = job(config, processes, 1, device, 0)
    if processes > 1:
        numbers = str(block_count(one.shape))
        said = torchrun(processes, "-m", "benchmarks.scaling", "--ring", division, numbers)
        found = json.loads(said.splitlines()[-1])
    cluster = Cluster(division, processes, **found)
    peak = peaks.measured_peak(device, torch.float32, seconds=2.0)  # others compute here, too
    os.environ.update(WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes))
    step = pace(one, peaks.Accelerator("cores", 0, peak, peak), cluster)
    assert step is not None
    with tempfile.TemporaryDirectory() as directory:
        planned_save = saving_seconds(one, cluster, disk(Path(directory)))
        took, save = trained(processes, division, steps, Path(directory) / "run")
    alone = alone or statistics.median(took)
    added = sending_seconds(one, cluster, alone)[1] if processes > 1 else 0.0
    return Turn(found["link"], took, step.seconds, alone + added, save, planned_save)


def here(rounds: int, steps: int) -> None:
    """All take turns, so that a busy minute is one for all."""
    ways = [(1, ""), (2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp")]
    turns: Dict[Tuple[int, str], List[Turn]] = {way: [] for way in ways}
    for _ in range(rounds):
        alone = None
        for way in ways:
            turns[way].append(turn(*way, steps, alone))
            alone = alone or statistics.median(turns[way][-1].steps)
            print(way, turns[way][-1], file=sys.stderr, flush=True)
    table(turns)


def table(turns: Dict[Tuple[int, str], List[Turn]]) -> None:
    """The median of all rounds, the least and the most; errors are those of the medians."""
    print(
        "| | gloo, GB/s | a step, s | plan | error | from one process's | error | save, s | plan |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (processes, division), found in turns.items():
        took = [seconds for one in found for seconds in one.steps]
        planned, from_one = [one.planned for one in found], [one.from_one for one in found]
        saves, planned_saves = [one.save for one in found], [one.planned_save for one in found]
        links = spread([one.link / GB for one in found]) if processes > 1 else ""
        cells = [f"{processes} {division}".strip(), links]
        cells += [spread(took), spread(planned), error(planned, took)]
        cells += [spread(from_one), error(from_one, took), spread(saves), spread(planned_saves)]
        print(f"| {' | '.join(cells)} |")


def error(planned: List[float], took: List[float]) -> str:
    """By how much the plan is off."""
    return f"{100 * (statistics.median(planned) / statistics.median(took) - 1):+.0f}%"


def spread(numbers: List[float]) -> str:
    """The median, and the least and the most."""
    return f"{statistics.median(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--here", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--ring", nargs=2)  # what the processes of --here run
    flags = parser.parse_args()
    if flags.ring:
        ring(flags.ring[0], int(flags.ring[1]))
    elif flags.here:
        here(flags.rounds, flags.steps)
    else:
        computed()


if __name__ == "__main__":
    main()
