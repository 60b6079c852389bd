"""Published shapes with random weights on one GPU: memory against the plan, tokens a second, MFU.

    python -m benchmarks.on_gpu                      # all of them, a process each
    python -m benchmarks.on_gpu 111m 111m-compiled   # some of them

Nothing is saved: the state of 13B is 103 GB. The weights are made on the host first, where 13B
takes 52 GB of memory and minutes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List

import torch

from minigpt.base.text import size
from minigpt.data.tokenizer import load_tokenizer
from minigpt.devices.device import find_device
from minigpt.planning.memory import memory
from minigpt.training.build import build, create_run, open_data
from minigpt.training.config import TrainConfig
from minigpt.training.job import job_of
from minigpt.training.resolve import resolve

_LEAN = {
    "batch_size": 16, "steps": 8, "precision": "bf16", "fused_backward": True, "recompute": True,
}  # fmt: skip
_MIXED = {"batch_size": 16, "precision": "bf16-mixed"}
_COMPILED = {"compile": True}
CASES: Dict[str, Dict[str, Any]] = {
    "13b": {"model": "cerebras-13b", **_LEAN},
    "13b-compiled": {"model": "cerebras-13b", **_LEAN, **_COMPILED},
    "1.3b": {"model": "cerebras-1.3b", **_MIXED},
    "1.3b-compiled": {"model": "cerebras-1.3b", **_MIXED, **_COMPILED},
    "111m": {"model": "cerebras-111m", **_MIXED},
    "111m-compiled": {"model": "cerebras-111m", **_MIXED, **_COMPILED},
}
_COMMON = {
    "data": "stdlib", "block_size": 1024, "steps": 30, "log_every": 1, "eval_tokens": 16384,
    "eval_every": 0, "sample_every": 0, "save_every": 0,
}  # fmt: skip
_TITLES = ("case", "planned", "taken", "tokens/s", "MFU", "first step")


def run(name: str, device: str = "cuda", **changes: Any) -> List[str]:
    """One case in this process, as a row of the table."""
    with tempfile.TemporaryDirectory() as directory:
        settings = {**_COMMON, **CASES[name], **changes, "device": device}
        config = TrainConfig(out=str(Path(directory) / "run"), **settings)
        here = find_device(device)
        asked = resolve(config, here)
        tokenizer = load_tokenizer(asked.vocabulary)
        data = open_data(asked, tokenizer)
        trainer = build(resolve(config, here, data), here, tokenizer, data)
        planned = memory(job_of(trainer.settings, here.kind)).total
        trainer.save = lambda: trainer.run  # type: ignore[method-assign]
        create_run(trainer)
        trainer.train()
        lines = [json.loads(line) for line in (trainer.run / "metrics.jsonl").open()]
    timed = [line for line in lines if "tokens_per_second" in line][2:]
    speed = statistics.median(line["tokens_per_second"] for line in timed)
    used = [size(line["peak_memory"]) for line in timed if "peak_memory" in line][-1:] or ["-"]
    share = ["%.1f%%" % (100 * line["mfu"] * speed / line["tokens_per_second"])
             for line in timed if "mfu" in line][-1:] or ["-"]  # fmt: skip
    warm_up = next(line["warmup_seconds"] for line in lines if "warmup_seconds" in line)
    return [name, size(planned), *used, format(int(speed), ","), *share, "%.1f s" % warm_up]


def main(names: List[str]) -> None:
    """Prints a table in Markdown."""
    print("%s, PyTorch %s\n" % (torch.cuda.get_device_name(), torch.__version__))
    print("| %s |\n|%s" % (" | ".join(_TITLES), "---|" * len(_TITLES)), flush=True)
    for name in names or list(CASES):
        code = "from benchmarks.on_gpu import run; print('ROW', *run(%r), sep='|')" % name
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        rows = [line for line in done.stdout.splitlines() if line.startswith("ROW|")]
        said = (done.stderr.strip() or done.stdout).splitlines()[-1:] or ["nothing"]
        print("%s |" % rows[0][3:] if rows else "| %s | failed: %s" % (name, said[0]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
