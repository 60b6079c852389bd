"""python -m benchmarks.convert_memory: a sharded .bin of a published shape converted, its memory
and its speed.

The checkpoint is made here, with random weights, in shards of about 1 GB. Memory is anonymous
memory (RssAnon), sampled while the conversion runs; speed is against copying the same bytes with
fsync, before and after, in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from minigpt.hf import config as hf_config
from minigpt.hf.layout import is_transposed, to_theirs
from minigpt.model.gpt import GPT
from minigpt.model.zoo import find

_SHARD = 1_000_000_000


def make(directory: Path, name: str) -> int:
    """Writes the checkpoint; returns its bytes."""
    config = find(name).config
    (directory / "config.json").write_text(json.dumps(hf_config.write(config, "float32")))
    part, size, shard, weight_map = {}, 0, 0, {}
    parameters = list(GPT(config, device=torch.device("meta")).named_parameters())
    for place, (ours, parameter) in enumerate(parameters):
        shape = tuple(parameter.shape)
        part[to_theirs(ours)] = torch.randn(shape[::-1] if is_transposed(ours) else shape)
        size += 4 * parameter.numel()
        if size > _SHARD or place == len(parameters) - 1:
            file = "pytorch_model-%05d.bin" % shard
            torch.save(part, str(directory / file))
            weight_map.update(dict.fromkeys(part, file))
            part, size, shard = {}, 0, shard + 1
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return sum(path.stat().st_size for path in directory.glob("*.bin"))


def anonymous(pid: int) -> int:
    try:
        lines = Path("/proc/%d/status" % pid).read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def copy(source: Path, target: Path) -> float:
    began = time.perf_counter()
    target.mkdir()
    for path in source.glob("*.bin"):
        shutil.copyfile(str(path), str(target / path.name))
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    shutil.rmtree(str(target))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="cerebras-1.3b")
    parser.add_argument("--dtype", default="keep")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        source, out = Path(directory) / "hf", Path(directory) / "ours"
        source.mkdir()
        size = make(source, flags.model)
        copies = [copy(source, Path(directory) / "copy")]
        command = [sys.executable, "convert_hf.py", str(source), "--out", str(out)]
        began, peak = time.perf_counter(), 0
        process = subprocess.Popen([*command, "--dtype", flags.dtype])
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        assert process.returncode == 0
        copies.append(copy(source, Path(directory) / "copy"))
    largest = max(
        p.numel() for p in GPT(find(flags.model).config, device=torch.device("meta")).parameters()
    )
    print("%s, %.2f GB of shards to %s" % (flags.model, size / 1e9, flags.dtype))
    print(
        "  peak %.0f MB anonymous; the largest tensor is %.0f MB" % (peak / 1e6, 4 * largest / 1e6)
    )
    print(
        "  %.1f s, %.2f GB/s; copying: %.1f and %.1f s" % (seconds, size / seconds / 1e9, *copies)
    )
    print("  speed %.2f of copying's" % (sum(copies) / 2 / seconds))


if __name__ == "__main__":
    main()
