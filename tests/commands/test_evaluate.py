"""`evaluate`: the loss of answers, and problems solved from the command line on."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from minigpt.base.errors import DeviceError, UsageError
from minigpt.coding.humaneval import Problem
from minigpt.coding.sandbox import sandbox_missing
from minigpt.commands import evaluate
from minigpt.commands.evaluate import EvaluateConfig, completer, evaluate_command
from minigpt.data.batch import IGNORE
from minigpt.data.datasets import open_datasets
from minigpt.data.template import TEMPLATES, save_template
from minigpt.data.tokenizer import load_tokenizer
from minigpt.training.objective import cross_entropy_sum
from tests.coding.test_humaneval import PROBLEM, problems, write
from tests.helpers.runs import ROOT, environment
from tests.helpers.tuning import base, instructions

needs_sandbox = pytest.mark.skipif(bool(sandbox_missing()), reason=sandbox_missing())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A plain checkpoint, one tuned with each template, and a file of instructions."""
    path = tmp_path_factory.mktemp("evaluate")
    base(path / "plain")
    for name, template in TEMPLATES.items():
        save_template(base(path / name), template)
    instructions(path / "functions.jsonl")
    write(path / "problems.jsonl", *({**PROBLEM, "task_id": "Own/%d" % n} for n in range(8)))
    return path


def said(capsys, folder, checkpoint, **settings):
    evaluate_command(EvaluateConfig(checkpoint=str(folder / checkpoint), device="cpu", **settings))
    return capsys.readouterr().out


@pytest.mark.parametrize("part", ["held out", "whole"])
@pytest.mark.parametrize(
    "name, kind", [("instruct", "answer tokens"), ("moai", "prompt and answer")]
)
def test_the_loss_is_that_of_what_the_template_learns(capsys, folder, name, kind, part):
    """The same as adding up each conversation, or each that is held out, by itself."""
    data, model = str(folder / "functions.jsonl"), evaluate.load_model(folder / name)
    opened = open_datasets(data, load_tokenizer("bytes"), 1024, name)
    examples = [*opened.validation.examples]
    if part == "whole":
        examples += opened.train.examples
    total = count = 0
    for example in examples:
        targets = torch.from_numpy(example.targets).long()
        logits = model(torch.from_numpy(example.tokens).long()[None])[0]
        total += cross_entropy_sum(logits, targets).item()
        count += int((targets != IGNORE).sum())
    text = said(capsys, folder, name, data=data, held_out=part != "whole")
    assert "loss %.4f" % (total / count) in text
    assert (
        "(%s tokens" % format(count, ",") in text or "(%s %s)" % (format(count, ","), kind) in text
    )
    assert kind in text


def test_an_instruction_is_given_as_in_training_and_its_answer_ends_with_the_function(monkeypatch):
    """The prompt is the head of a function, as stdlib-functions has it; the answer its body."""
    tokenizer, template, given = load_tokenizer("bytes"), TEMPLATES["instruct"], []
    answer = "    return a + b\n\ndef another():\n"

    def stream(model, prompts, *more):
        given.extend(tokenizer.decode(prompt) for prompt in prompts)
        return ([token] for token in tokenizer.encode(answer))

    monkeypatch.setattr(evaluate, "stream", stream)
    config = EvaluateConfig(checkpoint="")
    problem = Problem(**PROBLEM)
    (completion,) = completer(None, tokenizer, template, config)([problem], 0)
    assert given == ['[INST] def add(a, b):\n    """The sum of a and b.""" [/INST]\n']
    assert completion == "    return a + b\n"
    assert problem.program(completion).startswith(problem.prompt + "    return a + b\n")
    completer(None, tokenizer, None, config)([problem], 0)
    assert given[1] == problem.prompt


def solve(folder, out, **settings):
    values = {"samples": 2, "temperature": 1.0, "max_new_tokens": 40, "batch_size": 3}
    return {"problems": str(folder / "problems.jsonl"), "out": str(out), **values, **settings}


@needs_sandbox
def test_problems_from_a_file(capsys, folder, tmp_path):
    settings = solve(folder, tmp_path / "out.jsonl", limit=4)
    text = said(capsys, folder, "plain", **settings)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(v["task_id"], v["sample"]) for v in lines] == [
        (problem.task_id, sample) for problem in problems(4) for sample in (0, 1)
    ]
    assert set(lines[0]) == {"task_id", "sample", "completion", "passed", "reason"}
    assert "problems: 4, samples of each: 2\npass@1 0.00%\n" in text
    assert said(capsys, folder, "plain", **settings) == text
    more = said(capsys, folder, "plain", **{**settings, "limit": 5})
    assert "problems: 5, samples of each: 2" in more
    assert (tmp_path / "out.jsonl").read_text().splitlines()[:8] == [json.dumps(v) for v in lines]
    with pytest.raises(UsageError, match="its seed is 0 and not 1"):
        said(capsys, folder, "plain", **{**settings, "seed": 1})


@needs_sandbox
@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_result(capsys, folder, tmp_path):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    flags = solve(folder, killed, device="cpu")
    words = [word for name in flags for word in ("--" + name.replace("_", "-"), str(flags[name]))]
    command = [sys.executable, "-m", "minigpt", "evaluate", "--checkpoint", str(folder / "plain")]
    here = {**environment(tmp_path), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command + words, cwd=str(ROOT), env=here)
    while not (killed.exists() and killed.read_bytes()) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begun = killed.read_bytes()
    found = said(capsys, folder, "plain", **solve(folder, killed))
    expected = said(capsys, folder, "plain", **solve(folder, whole))
    assert killed.read_bytes() == whole.read_bytes() and len(begun) < len(whole.read_bytes())
    assert found.splitlines()[:-1] == expected.splitlines()[:-1]


@pytest.mark.parametrize(
    "wrong, expected",
    [
        ({"data": "stdlib", "humaneval": True}, "are three things"),
        ({"samples": 2}, "all --samples are alike"),
        ({"samples": 0}, "--samples is 0; it must be at least 1"),
        ({"limit": -1}, "--limit is -1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"timeout": 0.0}, "--timeout is 0.0"),
        ({"memory": 1}, "--memory is 1 MB"),
    ],
)
def test_wrong_flags_are_one_sentence(wrong, expected):
    with pytest.raises(UsageError, match=expected):
        EvaluateConfig(checkpoint="", **wrong)


def test_instructions_need_a_tuned_checkpoint(capsys, folder):
    with pytest.raises(UsageError, match="was not tuned on instructions"):
        said(capsys, folder, "plain", problems=str(folder / "problems.jsonl"), instruct=True)


def test_without_a_sandbox_nothing_runs(capsys, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "sandbox_missing", lambda: "there is none")
    with pytest.raises(DeviceError, match="only in a sandbox, and there is none"):
        said(capsys, folder, "plain", **solve(folder, tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()
