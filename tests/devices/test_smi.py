"""Every published table is read, and no text makes a parser fail."""

import os
import signal
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.base.errors import DeviceError
from minigpt.devices.smi import (
    Accelerator,
    Gcd,
    Process,
    Smi,
    parse_ap_smi,
    parse_gcds,
    parse_moreh_smi,
    read_smi,
    run_tool,
)
from tests.helpers import smi_samples as samples

MOAI = "MoAI Accelerator"


def idle(index, default, name, flavor):
    return Accelerator(index, default, name, flavor, None, None, None)


def test_a_running_accelerator_and_its_process():
    assert parse_moreh_smi(samples.RUNNING) == Smi(
        "24.5.0",
        "24.5.0",
        [Accelerator(0, True, MOAI, "xLarge.512GB", 397, 524160, 0)],
        [Process(0, "976356", 1548305, "python tutorial/train_gpt.py", 397)],
    )


def test_an_excerpt_without_frame_or_version():
    assert parse_moreh_smi(samples.TUTORIAL) == Smi(
        "",
        "",
        [Accelerator(0, True, MOAI, "4xLarge.2048GB", 1806648, 2096640, 71)],
        [Process(0, "977780", 2219280, "python tutorial/train_gpt.py", 1806648)],
    )


def test_the_flavor_is_headed_flavor_or_model():
    [device] = parse_moreh_smi(samples.SLIP).devices
    assert device == Accelerator(0, True, MOAI, "8xLarge.2048GB", 3516969, 4193280, 100)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (samples.IDLE, Smi("24.2.0", "24.2.0", [idle(0, True, MOAI, "Large.256GB")], [])),
        (samples.BLANK_VERSION, Smi("", "24.5.0", [idle(0, True, MOAI, "4xlarge")], [])),
        (
            samples.TRIAL,
            Smi("25.1.202", "25.1.202", [idle(0, True, "Ambre AI Accelerator", "micro")], []),
        ),
    ],
)
def test_an_idle_accelerator_shows_dashes(sample, expected):
    assert parse_moreh_smi(sample) == expected


def test_several_accelerators_and_processes():
    smi = parse_moreh_smi(samples.SEVERAL)
    assert [(d.index, d.default, d.flavor, d.used_mib) for d in smi.devices] == [
        (0, False, "8xLarge.4096GB", 2340037),
        (1, True, "4xLarge.2048GB", 789281),
    ]
    assert [(p.device, p.pid, p.command) for p in smi.processes] == [
        (0, 1552601, "python tutorial/train_gpt.py --batch-size 16"),
        (1, 1553195, "python tutorial/train_gpt.py --batch-size 8"),
    ]


def test_accelerators_without_a_flavor():
    smi = parse_moreh_smi(samples.UNSET)
    assert (smi.version, smi.latest) == ("23.9.0", "23.8.1")
    assert [device.flavor for device in smi.devices] == ["4xLarge.2048GB", "", ""]


@pytest.mark.parametrize("sample", [samples.AP_SMI, samples.AP_SMI_EXCERPT])
def test_ap_smi(sample):
    device = Accelerator(0, False, "1779", "flavor-default-8", None, None, 100, used_percent=43)
    assert parse_ap_smi(sample) == Smi("25.5.3005", "25.5.3005", [device], [])


def test_the_physical_gpus():
    gcds = parse_gcds(samples.GCDS)
    assert gcds[0] == Gcd(0, "back01:0", 36, 35)
    assert [(gcd.index, gcd.utilization) for gcd in gcds] == [(0, 35), (1, 63), (8, 99), (31, 72)]


def test_a_command_line_may_hold_bars():
    text = samples.RUNNING.replace("train_gpt.py", "x.py --sep '|' | tee log")
    [process] = parse_moreh_smi(text).processes
    assert process.command == "python tutorial/x.py --sep '|' | tee log"
    assert process.used_mib == 397


def test_an_unknown_unit_is_not_taken_for_mebibytes():
    [device] = parse_moreh_smi(samples.RUNNING.replace("524160 MiB", "512 GiB   ")).devices
    assert device.total_mib is None


@pytest.mark.parametrize("digits", ["9" * 5000, "٣", "²", "-1", "0x1f", "1e3"])
def test_what_is_no_plain_number_is_left_out(digits):
    text = samples.TUTORIAL.replace("2096640", digits).replace("71%", digits)
    [device] = parse_moreh_smi(text.replace("2219280", digits)).devices
    assert (device.total_mib, device.utilization) == (None, None)
    assert parse_moreh_smi(text.replace("|       0  |", "| %s |" % digits)).processes == []
    assert parse_moreh_smi(text.replace("2219280", digits)).processes[0].pid is None


PARSERS = (parse_moreh_smi, parse_ap_smi, parse_gcds)


@given(st.one_of(st.text(), st.text(alphabet="|-+*0123456789 %#\nDeviceMPIDlocatn")))
def test_any_text_gives_a_result(text):
    for parser in PARSERS:
        parser(text)


@st.composite
def mutated(draw):
    """A published table with some of its stretches replaced."""
    text = draw(st.sampled_from(samples.ALL))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 40)))
        stretch = st.one_of(st.text(max_size=8), st.sampled_from(["|", "\n", "-", "9" * 5000, ""]))
        text = text[:start] + draw(stretch) + text[end:]
    return text


@settings(max_examples=300, deadline=None)
@given(mutated())
def test_any_damage_gives_a_result(text):
    for smi in (parse_moreh_smi(text), parse_ap_smi(text)):
        assert all(isinstance(device.index, int) for device in smi.devices)
    parse_gcds(text)


# The tools themselves, as small programs on a PATH of their own.


def test_no_tool_is_no_error(tool):
    assert read_smi(5) is None
    assert run_tool(["moreh-smi", "-p"], 5) is None


def test_moreh_smi_is_run_and_read(tool):
    tool("moreh-smi", samples.prints(samples.RUNNING))
    assert read_smi(5) == ("moreh-smi", parse_moreh_smi(samples.RUNNING))


def test_ap_smi_is_run_where_there_is_no_moreh_smi(tool):
    tool("ap-smi", samples.prints(samples.AP_SMI))
    assert read_smi(5) == ("ap-smi", parse_ap_smi(samples.AP_SMI))


def test_a_tool_that_fails_is_quoted(tool):
    tool("moreh-smi", "echo log; echo 'Traceback:' >&2; echo 'SDA token is not given.' >&2; exit 3")
    with pytest.raises(DeviceError, match=r"^moreh-smi failed with exit code 3: SDA token is not"):
        read_smi(5)


def test_a_tool_that_shows_nothing_is_quoted(tool):
    tool("moreh-smi", "printf 'caf\\351 \\033\\nThe server is away.\\n'")
    with pytest.raises(
        DeviceError, match=r"^moreh-smi shows no accelerator: The server is away\.$"
    ):
        read_smi(5)


def test_a_tool_that_cannot_be_started_is_named(tmp_path, tool):
    tool("moreh-smi", "")
    (tmp_path / "moreh-smi").write_bytes(b"#!/no/such/interpreter\n")
    with pytest.raises(DeviceError, match="cannot be started"):
        read_smi(5)


def test_a_tool_that_hangs_is_ended_with_its_children(tmp_path, tool):
    tool("moreh-smi", "sleep 60 &\necho $! > %s/child\nwait\n" % tmp_path)
    began = time.monotonic()
    with pytest.raises(DeviceError, match=r"^moreh-smi gave no answer within 1 s"):
        read_smi(1)
    assert time.monotonic() - began < 20
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not alive(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the tool's child outlived it")


def alive(pid):
    """Whether a process runs; one that ended and waits to be collected does not."""
    try:
        os.kill(pid, 0)
        with open("/proc/%d/stat" % pid) as stat_file:
            return stat_file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
