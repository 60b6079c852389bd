"""Several processes are one: gloo for real, and torchrun, against one process."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from minigpt import load_model
from minigpt.base.errors import UsageError
from minigpt.data.batch import IGNORE, Batch
from minigpt.training.config_file import flag_words
from minigpt.training.parallel import ALONE, patience
from tests.helpers.ranks import train
from tests.helpers.runs import ROOT, corpus, files
from tests.helpers.together import together
from tests.helpers.tuning import base, instructions, resumed, trainer_of
from tests.helpers.warm import warm

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
# A large eps: else AdamW makes whole steps of gradients that are nothing but rounding.
COMMON = {
    "steps": 5, "warmup_steps": 1, "lr": 1e-2, "eps": 1e-3, "seed": 5, "log_every": 1,
    "eval_every": 3, "eval_tokens": 2000, "sample_every": 0, "save_every": 0, "block_size": 48,
    "device": "cpu",
}  # fmt: skip
OLD = torch.__version__.startswith("1.")  # its gloo cannot send bfloat16
CASES = {
    "text": {"batch_size": 6, "sample_every": 3, "tensorboard": bool(find_spec("tensorboard"))},
    "text, micro-batches": {"batch_size": 12, "micro_batch_size": 2},
    "packed": {"batch_size": 6, "micro_batch_size": 2, "block_size": 200},
    "one to a row": {"batch_size": 6, "micro_batch_size": 1, "block_size": 200, "packing": False},
    "adapter": {"batch_size": 6, "lora_rank": 4, "lora_dropout": 0.0, "block_size": 200},
    "frozen": {"batch_size": 6, "freeze_layers": 1, "micro_batch_size": 3},
    "recompute": {"batch_size": 6, "recompute": True},
    "clipped": {"batch_size": 6, "grad_clip": 0.01},
    "bf16-mixed": {"batch_size": 6, "precision": "bf16-mixed"},
    **({} if OLD else {"bf16": {"batch_size": 6, "precision": "bf16"}}),
}
TYPED = {
    "batch_size": 8, "block_size": 32, "device": "cpu", "log_every": 1, "eval_tokens": 2000,
    "sample_every": 0, "eval_every": 0, "seed": 3, "warmup_steps": 1, "eps": 1e-3,
}  # fmt: skip
LONG = {"steps": 30, "save_every": 5, "keep": 10}
COMPARED = [(case, 2) for case in CASES] + [("text", 3), ("packed", 3)]
if not OLD:  # the model itself divided, among two, and where its rows do not divide
    DIVIDED = {"%s, divided" % case: {**CASES[case], "parallel": "fsdp"} for case in CASES}
    DIVIDED["fused backward, divided"] = {
        "batch_size": 6, "fused_backward": True, "parallel": "fsdp",
    }  # fmt: skip
    DIVIDED["from scratch, divided"] = {"batch_size": 6, "parallel": "fsdp", "init": "scratch"}
    CASES.update(DIVIDED)
    COMPARED += [(case, 2) for case in DIVIDED if case != "recompute, divided"]
    COMPARED += [("adapter, divided", 3), ("clipped, divided", 3)]


def flags_of(tmp_path, case, name):
    data = tmp_path / ("functions.jsonl" if CASES[case].get("block_size") else "corpus")
    start = {"init": str(tmp_path / "base"), "data": str(data), "out": str(tmp_path / name)}
    return {**COMMON, **start, **CASES[case]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every case by one process (here) and by two and three, as torchrun starts them: the
    directory. By two an undisturbed run of 30 steps, too.
    """
    tmp_path = tmp_path_factory.mktemp("parallel")
    base(tmp_path / "base")
    instructions(tmp_path / "functions.jsonl")
    corpus(tmp_path / "corpus")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    try:
        for case in CASES:
            train(flags_of(tmp_path, case, "%s 1" % case))
        for size in (2, 3):
            names = [case for case, several in COMPARED if several == size]
            cases = [flags_of(tmp_path, case, "%s %d" % (case, size)) for case in names]
            if size == 2:
                start = {"data": str(tmp_path / "corpus"), "out": str(tmp_path / "whole")}
                cases.append({**TYPED, **LONG, **start})
            (tmp_path / "cases.json").write_text(json.dumps(cases))
            with terminal(tmp_path / ("terminal %d" % size)) as shown:
                said = together(
                    size, ROOT / "tests" / "helpers" / "ranks.py", tmp_path / "cases.json",
                    stderr=shown, TERM="xterm",
                )  # fmt: skip
            (tmp_path / ("said %d" % size)).write_text(json.dumps(said))
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before
    return tmp_path


@contextlib.contextmanager
def terminal(path):
    """A terminal; when it is closed, what was shown there is in the file."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))  # lines, columns
    shown = []

    def read():
        with contextlib.suppress(OSError):  # when nobody has it any more
            while True:
                shown.append(os.read(ours, 1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield theirs
    finally:
        os.close(theirs)
        reader.join(30)
        os.close(ours)
        path.write_bytes(b"".join(shown))


def started(command, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=str(ROOT), env=environment, timeout=300, **more
    )


@pytest.mark.skipif(OLD, reason="it has no FSDP2")
def test_one_process_of_torchrun_divides_the_model_too_if_asked(trained):
    """What a machine with one GPU can try of it; the numbers are those without."""
    case, one = {**CASES["text, divided"], "parallel": "fsdp"}, trained / "text, divided 1"
    flags = {**flags_of(trained, "text", "alone"), **case}
    (trained / "alone.json").write_text(json.dumps([flags]))
    together(1, ROOT / "tests" / "helpers" / "ranks.py", trained / "alone.json")
    for name in ("loss", "grad_norm", "val_loss"):
        assert numbers(trained / "alone", name) == pytest.approx(numbers(one, name), rel=2e-6)


def numbers(run, *names):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [line[name] for line in lines for name in names if name in line]


@pytest.mark.parametrize(("case", "size"), COMPARED)
def test_processes_give_the_numbers_of_one(trained, case, size):
    one, several = (trained / ("%s %d" % (case, n)) for n in (1, size))
    narrow = case.startswith("bf16")
    tolerance = 2e-2 if narrow else 2e-6
    for names in (["loss"], ["grad_norm"], ["val_loss"], ["tokens", "step", "lr"]):
        assert numbers(several, *names) == pytest.approx(numbers(one, *names), rel=tolerance)
    if case.startswith("adapter"):
        return
    pairs = zip(*(load_model(run).parameters() for run in (one, several)))
    for mine, theirs in pairs:
        scale = theirs.abs().max().item()
        assert (mine - theirs).abs().max().item() <= (5e-2 if narrow else 2e-6) * scale


ENGINES = ["text 2"] if OLD else ["text 2", "text, divided 2"]


@pytest.mark.parametrize("name", ENGINES)
def test_the_speed_is_that_of_all_and_each(trained, name):
    lines = [json.loads(line) for line in (trained / name / "metrics.jsonl").open()]
    line = next(line for line in lines if "tokens_per_second_per_device" in line)
    assert line["tokens_per_second_per_device"] * 2 == pytest.approx(line["tokens_per_second"])
    assert line["tokens_per_second"] * line["step_seconds"] == pytest.approx(6 * 48)


@pytest.mark.parametrize("name", ENGINES)
def test_one_run_directory_and_one_checkpoint_of_each_step(trained, name):
    names = [
        sorted(re.sub("tfevents.*", "", str(path.relative_to(run))) for path in run.rglob("*"))
        for run in (trained / "text 1", trained / name)
    ]
    if "divided" in name:  # each process writes its rows of the optimizer's states
        assert len([n for n in names[1] if n.endswith("-of-00002.safetensors")]) == 4
        parts = "optimizer-0000[12]-of-00002.safetensors"
        names[1] = sorted({re.sub(parts, "optimizer.safetensors", n) for n in names[1]})
    assert names[0] == names[1] and "checkpoints/step_00000005/manifest.json" in names[0]


@pytest.mark.parametrize("name", ENGINES)
def test_a_sample_is_there_once_and_is_that_of_one_process_with_these_weights(trained, name):
    text = (trained / name / "samples.md").read_text()
    assert re.findall("^## step .*$", text, re.MULTILINE) == ["## step 3", "## step 5"]
    alone = resumed(trained / name, steps=6)
    alone.loader.close()
    expected = "## step 5\n\n```\n%s\n```\n\n" % alone.sample(200, 0.8)
    assert text.endswith(expected) and len(expected) > 200


@pytest.mark.parametrize("name", ENGINES)
def test_tensorboard_has_every_number_once(trained, name):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = (trained / name / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    for key in ("loss", "val_loss", "tokens_per_second"):
        shown = [event.value for event in events.Scalars(key)]
        assert shown == pytest.approx(numbers(trained / name, key), rel=1e-6)
        steps = [event.step for event in events.Scalars(key)]
        assert steps == sorted({*steps}) and len(steps) >= 2


@pytest.mark.parametrize("size", [2, 3])
def test_one_process_speaks_and_has_a_bar(trained, size):
    """Of several on a terminal: each run has one bar, and each step one line."""
    first, *others = json.loads((trained / ("said %d" % size)).read_text())
    runs = len([case for case, several in COMPARED if several == size])
    assert first.count("step 5/5  loss ") == runs and not any(others)
    shown = (trained / ("terminal %d" % size)).read_bytes().decode()
    ends = re.findall(r"5/5 \[[^\r\n]*\r\n", shown)
    assert len(ends) == runs, shown


@pytest.mark.slow
def test_eight_processes_give_the_losses_of_one(trained):
    flags = {**flags_of(trained, "text", "eight 1"), "batch_size": 8, "steps": 3}
    flags.update(sample_every=0, tensorboard=False)
    train(flags)
    engines = ["ddp"] if OLD else ["ddp", "fsdp"]
    cases = [{**flags, "parallel": e, "out": str(trained / ("eight %s" % e))} for e in engines]
    (trained / "eight.json").write_text(json.dumps(cases))
    together(8, ROOT / "tests" / "helpers" / "ranks.py", trained / "eight.json")
    for engine in engines:
        for name in ("loss", "val_loss"):
            expected = numbers(trained / "eight 1", name)
            found = numbers(trained / ("eight %s" % engine), name)
            assert found == pytest.approx(expected, rel=1e-6) and len(found) >= 1


def test_a_share_is_every_so_manieth_row_and_counts_the_whole():
    tokens = torch.arange(24).view(6, 4)
    whole = Batch(tokens, tokens, 24, 2, lengths=[[n] for n in range(6)])
    part = whole.share(1, 3)
    assert part.tokens.tolist() == tokens[[1, 4]].tolist() and part.lengths == [[1], [4]]
    assert (part.supervised, part.padding) == (24, 2)


def test_a_rank_without_a_token_to_learn_from_adds_nothing(tmp_path):
    """As a micro-batch of padding alone: no error, and gradients of zero."""
    base(tmp_path / "base")
    trainer = trainer_of(
        init=str(tmp_path / "base"), data=str(corpus(tmp_path / "corpus")), device="cpu",
        out=str(tmp_path / "run"), block_size=32,
    )  # fmt: skip
    batch = next(trainer.loader)
    trainer.loader.close()
    empty = replace(batch, targets=torch.full_like(batch.targets, IGNORE))
    loss = trainer.objective(empty) / batch.supervised
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_does(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="does not divide among 4 processes; use 8 or 12"):
        trainer_of(batch_size=10, data=str(corpus(tmp_path / "corpus")), device="cpu")


def test_who_prepares_data_may_take_longer_than_a_step_is_waited_for():
    script = ROOT / "tests" / "helpers" / "slow_start.py"
    together(3, script, MINIGPT_PATIENCE=1)


@pytest.mark.parametrize("seconds", ["0", "-1", "abc", "1.5", "²", "99999999999999", " "])
def test_a_patience_that_is_none_is_one_sentence(monkeypatch, seconds):
    monkeypatch.setenv("MINIGPT_PATIENCE", seconds)
    with pytest.raises(UsageError, match=r"MINIGPT_PATIENCE is .*say seconds, such as 300"):
        patience()


def test_a_machine_of_its_own_is_no_hybrid(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="hsdp is for several machines; use --parallel fsdp"):
        trainer_of(
            batch_size=8, data=str(corpus(tmp_path / "corpus")), device="cpu", parallel="hsdp"
        )


def test_alone_there_is_no_process_group():
    assert not torch.distributed.is_initialized()
    assert ALONE.told("text") == "text" and ALONE.total(1.5, 2) == (1.5, 2)
    assert ALONE.largest(3) == 3 and ALONE.first and ALONE.speaks()


# From the command line --------------------------------------------------------------------------


def command(tmp_path, *words, size=2, restarts=0, anew=False):
    """torchrun and its processes, these started anew or as copies of one (helpers/warm)."""
    flags = {**TYPED, "data": str(tmp_path / "corpus")}
    launch = [*TORCHRUN, str(size), "--max_restarts", str(restarts)]
    script = [str(ROOT / "train.py"), *flag_words(flags), *words]
    return launch + (script if anew else ["--no_python", *warm(*script)])


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    corpus(tmp_path / "corpus")
    return tmp_path


def test_an_error_is_said_once_and_ends_all(place):
    began = time.monotonic()
    done = started(command(place, "--steps", "3", "--batch-size", "7", "--out", str(place / "run")))
    assert done.returncode != 0 and time.monotonic() - began < 60
    assert (done.stdout + done.stderr).count("error: --batch-size 7 does not divide") == 1
    assert not (place / "run").exists()


@pytest.mark.skipif(not OLD, reason="of old versions alone")
def test_bf16_is_refused_in_a_sentence_where_it_cannot_be_sent(place):
    words = ["--precision", "bf16", "--steps", "3", "--out", str(place / "run")]
    done = started(command(place, *words))
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("cannot send bfloat16 between processes on CPUs") == 1


def launched(words, **told):
    """torchrun, whose processes cannot be waited for yet."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **told}
    return subprocess.Popen(
        words, env=environment, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp"] if OLD else ["ddp", "fsdp"])
def test_killed_it_is_started_again_and_ends_with_the_weights_of_an_undisturbed_run(
    place, trained, parallel
):
    run, whole = place / "killed", trained / "whole"
    words = flag_words({**LONG, "out": str(run), "parallel": parallel})
    process = launched(command(trained, *words, restarts=1))
    wait_for(lambda: (run / "checkpoints" / "step_00000005" / "manifest.json").exists())
    killed = ranks_of(process.pid)[-1]
    if parallel == "fsdp":  # process 0, while both write: it leaves a half
        killed = next(one for one in ranks_of(process.pid) if rank_of(one) == "0")
        wait_for(lambda: [*run.glob("checkpoints/.*/optimizer-*")], every=0)
    os.kill(killed, signal.SIGKILL)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert not [*(run / "checkpoints").glob(".*")]
    last = "checkpoints/step_00000030"
    if parallel == "ddp":
        assert files(run / last) == files(whole / last)
    else:  # of two processes, too, but added up in another order
        assert numbers(run, "loss") == pytest.approx(numbers(whole, "loss"), rel=1e-6)


@pytest.mark.slow
def test_a_second_torchrun_is_refused_and_a_process_that_does_not_answer_is_named(place):
    run = place / "stopped"
    words = ["--steps", "100000", "--save-every", "0", "--out", str(run)]
    process = launched(command(place, *words, anew=True), MINIGPT_PATIENCE="5")
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(numbers(run, "loss")) > 3)
    done = started(command(place, *words))  # a second torchrun on the directory of the first
    assert done.returncode != 0 and done.stderr.count("error: ") == 1, done.stderr
    assert "%s is in use by minigpt, process " % run in done.stderr
    stopped = next(one for one in ranks_of(process.pid) if rank_of(one) == "1")
    os.kill(stopped, signal.SIGSTOP)
    try:
        said = [next(line for line in process.stdout if line.startswith("error: "))]
    finally:
        os.kill(stopped, signal.SIGKILL)  # or torchrun waits for it for half a minute
    said += process.communicate(timeout=60)[0].splitlines()
    assert said[0].startswith("error: process 1 on ") and " for 5 s (MINIGPT_PATIENCE)" in said[0]
    assert process.returncode != 0 and not any(line.startswith("error: ") for line in said[1:])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves_once_and_another_number_of_processes_goes_on(place, number):
    words, run = ["--steps", "40", "--save-every", "0", "--out"], place / "run"
    process = launched(command(place, *words, str(run)))
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(numbers(run, "loss")) > 3)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert said.count("stopped after step") == 1, said
    (stopped,) = (run / "checkpoints").iterdir()
    assert 3 <= int(stopped.name[5:]) < 40
    done = started(warm(ROOT / "train.py", "--resume", run))
    assert done.returncode == 0, done.stdout + done.stderr
    whole = command(place, *words, str(place / "whole"))
    done = started(warm(*whole[whole.index(str(ROOT / "train.py")) :]))
    assert done.returncode == 0, done.stdout + done.stderr
    losses = numbers(run, "loss")
    assert len(losses) == 40
    assert losses == pytest.approx(numbers(place / "whole", "loss"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(OLD, reason="it has no FSDP2")
def test_any_number_of_processes_goes_on_with_the_run_of_any_other(place):
    """Divided among two, then by one, then among four and three, then by two that both have the
    whole model, then divided again. One that has no room for its rows ends the save, and by the
    same number of processes it is what it would have been, byte for byte.
    """
    flags = {**TYPED, "batch_size": 12, "schedule": "constant", "data": str(place / "corpus")}
    run, script, cases = place / "run", ROOT / "tests" / "helpers" / "ranks.py", place / "cases"
    more, divided = {"resume": str(run)}, {**flags, "parallel": "fsdp"}

    def go_on(size, *settings, **how):
        cases.write_text(json.dumps(settings))
        return "".join(together(size, script, cases, **how))

    said = go_on(
        2, {**divided, "steps": 3, "out": str(run)},
        {**divided, "steps": 5, "out": str(place / "same")}, {**more, "steps": 5},
        {**more, "steps": 6, "full": 1}, fails=True,
    )  # fmt: skip
    second = run / "checkpoints" / "step_00000006" / "optimizer-00002-of-00002.safetensors"
    assert said.count("no room left to write %s: File too large" % second) == 1, said
    assert not [n for n in os.listdir(run / "checkpoints") if n[0] == "." or n.endswith("06")]
    last, same = (path / "checkpoints" / "step_00000005" for path in (run, place / "same"))
    assert (last / second.name).exists() and {*os.listdir(last)} == {*os.listdir(same)}
    assert all(path.read_bytes() == (same / path.name).read_bytes() for path in last.iterdir())
    train({**more, "steps": 6})
    go_on(4, {**more, "steps": 7})
    go_on(3, {**more, "steps": 8})
    go_on(2, {**more, "steps": 9, "parallel": "ddp"}, {**more, "steps": 10, "parallel": "fsdp"})
    train({**flags, "steps": 10, "out": str(place / "whole")})
    newest = run / "checkpoints" / "step_00000010"
    assert len([*newest.glob("optimizer-*-of-00002.safetensors")]) == 2
    assert len(numbers(run, "loss")) == 10
    for name in ("loss", "grad_norm", "tokens"):
        expected = numbers(place / "whole", name)
        assert numbers(run, name) == pytest.approx(expected, rel=1e-6 if name == "loss" else 1e-5)
    ends = (newest, place / "whole" / "checkpoints" / newest.name)  # not the best: that may differ
    first, second = (load_model(end).parameters() for end in ends)
    for mine, theirs in zip(first, second):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def ranks_of(torchrun):
    """The processes that torchrun has started, by /proc."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open("/proc/%s/stat" % entry) as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent == torchrun:
            found.append(int(entry))
    return sorted(found)


def rank_of(process):
    with open("/proc/%d/environ" % process) as file:
        return dict(word.partition("=")[::2] for word in file.read().split("\0")).get("RANK")


def wait_for(there, seconds=120, every=0.05):
    ends = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < ends, "it took too long"
        time.sleep(every)
