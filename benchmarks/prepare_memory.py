"""python -m benchmarks.prepare_memory: 1 GB of text to tokens, and the most memory that took.

The text is the standard library's source, over and over, with its numbers changed each time.
Memory is that of the command and all its processes together, sampled from /proc.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from minigpt.data.corpus import find_source


def write_text(path: Path, size: int) -> None:
    """`size` bytes of varied Python."""
    texts = [piece.text for piece in find_source("stdlib").pieces()]
    written, turn = 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            for text in texts:
                written += file.write(re.sub(r"\d", str(turn % 10), text))
            turn += 1


def resident(pid: int) -> int:
    """Bytes of RAM of a process and its children, shared pages counted once by proportion."""
    total = 0
    for process in [pid, *children(pid)]:
        try:
            lines = Path("/proc/%d/smaps_rollup" % process).read_text().splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def children(pid: int) -> list:
    try:
        own = Path("/proc/%d/task/%d/children" % (pid, pid)).read_text().split()
    except OSError:
        return []
    found = [int(child) for child in own]
    return found + [grandchild for child in found for grandchild in children(child)]


def measure(source: Path, out: Path, tokenizer: str, workers: int) -> None:
    command = [sys.executable, "-m", "minigpt", "prepare", str(source), "--out", str(out)]
    command += ["--tokenizer", tokenizer, "--workers", str(workers)]
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    assert process.returncode == 0
    print(
        "%-6s %d workers: %4.0f s, %5.1f MB/s, peak %3.0f MB"
        % (tokenizer, workers, seconds, source.stat().st_size / 1e6 / seconds, peak / 1e6)
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1000)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "text.txt"
        write_text(source, flags.megabytes * 1_000_000)
        print("%.0f MB of text in one file" % (source.stat().st_size / 1e6))
        for tokenizer, workers in (("gpt2", 2), ("gpt2", 1), ("bytes", 1)):
            out = Path(directory) / ("%s-%d" % (tokenizer, workers))
            measure(source, out, tokenizer, workers)


if __name__ == "__main__":
    main()
