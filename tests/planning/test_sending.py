"""What processes send each other in a step, against numbers worked out by hand."""

from dataclasses import replace

import pytest

from minigpt.model.config import GPTConfig, LoRAConfig
from minigpt.planning import peaks
from minigpt.planning.memory import Job, trained_count
from minigpt.planning.sending import Cluster, all_sent, sending_seconds
from minigpt.training.resolve import pace

# A block has 4 x 8 x 8 + 2 x 8 x 32 weights, and 9 x 8 + 32 in biases and norms: 872. Embeddings
# and last norm have 100 x 8 + 16 x 8 + 2 x 8 = 944. Together 2 x 872 + 944 = 2,688.
JOB = Job(GPTConfig(100, 16, 2, 2, 8), rows=1, batch=1, block=16)
MIXED = replace(JOB, precision="bf16-mixed")
AT_ONCE = {"turn": 0.0, "far_turn": 0.0}
BETWEEN = Cluster("hsdp", 2, 2, link=1000.0, network=500.0, **AT_ONCE)


def sent(job, *cluster):
    return sum(one.sent for one in all_sent(job, Cluster(*cluster)))


def test_ddp_sends_gradients_in_float32_twice_around():
    assert sent(JOB, "ddp", 4) == 2 * 3 / 4 * 4 * 2688 == 16_128
    assert sent(MIXED, "ddp", 2, 2) == 16_128
    assert sent(replace(JOB, batch=2), "ddp", 4) == 16_128  # once for all micro-batches
    assert sent(JOB, "ddp", 1) == 0


def test_fsdp_gathers_a_block_twice_and_the_rest_once():
    gathered, gradients = 4 * (944 + 2 * 2 * 872), 4 * 2688
    assert sent(JOB, "fsdp", 4) == 3 / 4 * (gathered + gradients) == 21_360
    assert sent(MIXED, "fsdp", 4) == 3 / 4 * (4 * 944 + 2 * 2 * 2 * 872 + gradients) == 16_128
    assert sent(replace(JOB, batch=2), "fsdp", 4) == 2 * 21_360  # for each micro-batch
    adapter = replace(JOB, lora=LoRAConfig(2))
    assert sent(adapter, "fsdp", 4) == 3 / 4 * (gathered + 4 * trained_count(adapter))
    frozen = replace(JOB, freeze_layers=1)  # which no backward pass needs: one block, last norm
    assert sent(frozen, "fsdp", 4) == 3 / 4 * (gathered - 4 * 872 + 4 * (872 + 16))


def test_hsdp_adds_parts_up_between_machines():
    inside, between = 1 / 2 * 28_480, 2 * 1 / 2 * 10_752 / 2
    assert sent(JOB, "hsdp", 2, 2) == inside + between == 19_616


def test_seconds_are_those_of_the_slowest_link():
    took, added = sending_seconds(JOB, BETWEEN, computing=100.0)
    # The machine's 500 bytes/s are for two devices, of which each has a ring of its own.
    assert took == pytest.approx(14_240 / 1000 + 5_376 / 250)
    ends = 3776 / 2 / 1000 + 3776 / 2 / 1000 + 3776 / 2 / 250  # gathered, added up, and between
    assert added == pytest.approx(ends)
    assert sending_seconds(JOB, BETWEEN, 10.0)[1] == pytest.approx(took - 10)
    assert sending_seconds(replace(JOB, on_cpu=True), BETWEEN, 100.0) == (took, took)
    ring = BETWEEN._replace(division="fsdp")  # one of all four, through the network once each way
    assert sending_seconds(JOB, ring, 0.0)[0] == pytest.approx(21_360 / 500)


def test_under_ddp_the_last_backward_pass_hides_the_blocks():
    pair = BETWEEN._replace(division="ddp", nodes=1)
    took, added = sending_seconds(JOB, pair, computing=6.0)
    assert took == pytest.approx(10_752 / 1000) and added == pytest.approx(took - 4)
    assert sending_seconds(replace(JOB, batch=4), pair, 6.0)[1] == pytest.approx(took - 1)
    assert sending_seconds(JOB, pair, 600.0)[1] == pytest.approx(3776 / 1000)


def test_every_message_takes_its_turns():
    fast = BETWEEN._replace(division="ddp", link=1e30, network=1e30, turn=1.0, far_turn=10.0)
    # Both ways, for each block and the rest: a turn inside each machine, and one between them.
    assert sending_seconds(JOB, fast, 0.0)[0] == pytest.approx(2 * 3 * (2 * 1 + 10))


def test_a_link_that_is_not_known_is_asked_for():
    assert Cluster("ddp", 2).unknown == "--link" and Cluster("ddp", 2, link=1.0).unknown == ""
    assert Cluster("ddp", 1, 2).unknown == Cluster("ddp", 2, 2, link=1.0).unknown == "--network"


def test_processes_on_cpus_share_their_cores(monkeypatch):
    device, here = peaks.Accelerator("cores", 1, 1e9, 1e9), replace(JOB, on_cpu=True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    alone = pace(here, device)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert pace(here, device).seconds == pytest.approx(4 * alone.seconds)
    assert "which 4 processes share" in pace(here, device).assumed
    assert pace(JOB, device).seconds == alone.seconds
    cluster = Cluster("ddp", 4, link=1000.0, **AT_ONCE)
    added = 2 * 3 / 4 * 10_752 / 1000
    assert pace(here, device, cluster).seconds == pytest.approx(4 * alone.seconds + added)
