"""Several machines: network namespaces joined by cables, torchrun on each, and a cable pulled."""

import os
import shutil
import subprocess
import time

import pytest
import torch

from minigpt.training.config_file import flag_words
from tests.helpers.hosts import cut, join, machines, torchrun, why_not
from tests.helpers.runs import ROOT, corpus, records
from tests.helpers.together import together
from tests.helpers.warm import warm

OLD = torch.__version__.startswith("1.")
WHY_NOT = "its torchrun knows no --local-addr" if OLD else why_not()
pytestmark = pytest.mark.slow
networked = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
FLAGS = {
    "batch_size": 8, "block_size": 32, "device": "cpu", "log_every": 1, "eval_tokens": 2000,
    "sample_every": 0, "eval_every": 0, "seed": 3, "warmup_steps": 1, "eps": 1e-3, "steps": 20,
    "save_every": 5, "keep": 10,
}  # fmt: skip
PATIENCE = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A corpus, and what one process makes of it."""
    place = tmp_path_factory.mktemp("machines")
    corpus(place / "corpus")
    done = subprocess.run(
        warm(ROOT / "train.py", *words(place, "one")), env=environment(place), capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def words(place, name, **more):
    return flag_words({**FLAGS, "data": place / "corpus", "out": place / name, **more})


def environment(place):
    told = {"GLOO_SOCKET_IFNAME": "eth0", "MINIGPT_PATIENCE": str(PATIENCE)}
    told.update(OMP_NUM_THREADS="1", XDG_CACHE_HOME=str(place / "cache"))
    return {**os.environ, **told}


def started(place, hosts, *flags, restarts=0, processes=2):
    return [
        subprocess.Popen(
            torchrun(hosts, number, restarts, warm, ROOT / "train.py", *flags, processes=processes),
            env=environment(place), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(len(hosts))
    ]  # fmt: skip


def ended(launches, codes):
    said = [launch.communicate(timeout=200)[0] for launch in launches]
    assert [launch.returncode for launch in launches] == codes, "\n".join(said)
    return said


def same_as_one(place, name):
    for key in ("loss", "val_loss"):
        one = records(place / "one", key)
        assert one and records(place / name, key) == pytest.approx(one, rel=1e-6)


def until_step(run, step):
    ends = time.monotonic() + 100
    while not (run / "checkpoints" / ("step_%08d" % step) / "manifest.json").exists():
        assert time.monotonic() < ends, "it took too long"
        time.sleep(0.05)


@networked
def test_two_machines_without_a_cable_say_so_and_go_on_once_it_is_back(place):
    with machines(2) as hosts:
        flags = words(place, "cut", parallel="hsdp")
        launches = started(place, hosts, *flags, restarts=2)
        until_step(place / "cut", 5)
        cut(hosts[1])
        time.sleep(PATIENCE + 4)
        join(hosts[1])
        said, _ = ended(launches, [0, 0])
    assert said.count("error: ") == 1, said
    assert "did not answer for %d s (MINIGPT_PATIENCE), or ended; go on" % PATIENCE in said
    assert said.count("go on    from") == 1
    same_as_one(place, "cut")


@networked
def test_a_machine_that_is_cut_off_for_good_says_so_itself(place):
    with machines(2) as hosts:
        launches = started(place, hosts, *words(place, "gone", steps=10_000), processes=1)
        until_step(place / "gone", 5)
        cut(hosts[1])
        alone = "error: the machine of process 0 did not answer for"
        assert any(alone in line for line in launches[1].stdout)
        launches[1].kill()  # or torchrun itself looks for the other one for minutes
        launches[1].communicate()
        (said,) = ended(launches[:1], [1])
    assert said.count("error: process 1 on ") == 1


@networked
def test_four_machines_that_divide_the_model_give_the_numbers_of_one_process(place):
    with machines(4) as hosts:
        ended(started(place, hosts, *words(place, "four", parallel="fsdp"), processes=1), [0] * 4)
    same_as_one(place, "four")


def test_a_run_directory_that_is_not_shared_is_noticed_at_the_start(place):
    """Two machines, each of which has a place of its own under the same name."""
    here = [place / "machine 0", place / "machine 1"]
    for directory in here:
        directory.mkdir()

    def started(*flags, fails=False):
        machines = {"directories": here, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        said = together(2, ROOT / "train.py", *flags, fails=fails, **machines)
        return "".join(said)

    said = started(*words(place, "", out="mine", steps=5))
    assert said.count("note     machines that do not share mine: 1. ") == 1, said
    assert not (here[1] / "mine").exists()
    shutil.copytree(here[0] / "mine", here[1] / "mine")
    started("--resume", "mine", "--steps", "10")
    said = started("--resume", "mine", "--steps", "15", fails=True)
    assert said.count("error: not all machines have mine/checkpoints/step_00000010 as the") == 1
