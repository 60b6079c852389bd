"""Every published table is read, and no text makes a parser fail."""

import os
import signal
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.base.errors import DeviceError
from minigpt.commands.devices import VirtualDevice, find_tool, parse_smi, run_tool
from tests.helpers import smi_samples as samples

TUTORIAL = VirtualDevice("4xLarge.2048GB", 2_096_640, True)


def idle(flavor):
    return VirtualDevice(flavor, None, False)


@pytest.mark.parametrize(
    ("sample", "devices"),
    [
        (samples.RUNNING, [VirtualDevice("xLarge.512GB", 524_160, True)]),
        (samples.TUTORIAL, [TUTORIAL]),  # an excerpt, without a frame
        (samples.SLIP, [VirtualDevice("8xLarge.2048GB", 4_193_280, True)]),
        (samples.IDLE, [idle("Large.256GB")]),
        (samples.BLANK_VERSION, [idle("4xlarge")]),
        (samples.SEVERAL, [VirtualDevice("8xLarge.4096GB", 4_193_280, True), TUTORIAL]),
        (samples.UNSET, [idle("4xLarge.2048GB"), idle("-"), idle("-")]),
        (samples.TRIAL, [idle("micro")]),
        (samples.AP_SMI, [VirtualDevice("flavor-default-8", None, True)]),
        (samples.AP_SMI_EXCERPT, [VirtualDevice("flavor-default-8", None, True)]),
    ],
)
def test_every_published_table_is_read(sample, devices):
    assert parse_smi(sample) == devices


@pytest.mark.parametrize("total", ["512 GiB", "9" * 5000, "٣", "²", "-1", "0x1f", "1e3"])
def test_what_is_no_number_of_mebibytes_is_left_out(total):
    [device] = parse_smi(samples.RUNNING.replace("524160 MiB", total))
    assert device == VirtualDevice("xLarge.512GB", None, True)


@pytest.mark.parametrize("index", ["9" * 5000, "٣", "-1", "", "* *"])
def test_a_row_that_is_no_device_is_left_out(index):
    assert parse_smi(samples.TUTORIAL.replace("* 0", index)) == []


def test_a_command_line_may_hold_bars():
    text = samples.RUNNING.replace("train_gpt.py", "x.py --sep '|' | tee log")
    assert parse_smi(text) == parse_smi(samples.RUNNING)


@given(st.one_of(st.text(), st.text(alphabet="|-+*0123456789 %#\nDeviceModlMB")))
def test_any_text_gives_a_result(text):
    parse_smi(text)


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
    assert all(device.flavor for device in parse_smi(text))


# The tools themselves, as small programs on a PATH of their own.


def run(timeout=5):
    return run_tool(find_tool(), timeout)


def test_no_tool_is_no_error(tool):
    assert find_tool() is None


def test_moreh_smi_is_preferred_to_ap_smi(tool):
    tool("ap-smi", samples.prints(samples.AP_SMI))
    assert run() == samples.AP_SMI
    tool("moreh-smi", samples.prints(samples.RUNNING))
    assert run() == samples.RUNNING


def test_a_tool_that_fails_is_quoted(tool):
    tool("moreh-smi", "echo log; echo 'Traceback:' >&2; echo 'SDA token is not given.' >&2; exit 3")
    with pytest.raises(DeviceError, match=r"^moreh-smi failed with exit code 3: SDA token is not"):
        run()


@pytest.mark.parametrize("body", ["exit 1", "echo; exit 1", "printf '\\n \\n'; exit 1"])
def test_a_tool_that_fails_in_silence(tool, body):
    tool("moreh-smi", body)
    with pytest.raises(DeviceError, match=r"^moreh-smi failed with exit code 1$"):
        run()


def test_what_a_failing_tool_says_cannot_move_the_cursor(tool):
    tool("moreh-smi", "printf 'caf\\351 \\033[2J away\\r\\n'; exit 2")
    with pytest.raises(DeviceError) as caught:
        run()
    assert str(caught.value) == "moreh-smi failed with exit code 2: caf\ufffd \\x1b[2J away"


def test_a_tool_that_cannot_be_started_is_named(tmp_path, tool):
    tool("moreh-smi", "")
    (tmp_path / "moreh-smi").write_bytes(b"#!/no/such/interpreter\n")
    with pytest.raises(DeviceError, match="cannot be started"):
        run()


def test_a_tool_that_prints_without_end_is_stopped(tool):
    tool("moreh-smi", "exec yes")
    with pytest.raises(DeviceError, match=r"^moreh-smi (failed|gave no answer)"):
        run(2)


@pytest.mark.parametrize(
    "body",
    [
        "exec sleep 60",
        "exec >&- 2>&-; exec sleep 60",  # it closes its output and goes on
        "setsid sleep 30 & exit 0",  # a child out of reach keeps the output open
        "trap '' TERM HUP INT; while :; do sleep 1; done",
    ],
)
def test_a_tool_that_hangs_is_one_sentence(tool, body):
    tool("moreh-smi", body)
    began = time.monotonic()
    with pytest.raises(DeviceError, match=r"^moreh-smi gave no answer within 1 s; try it by"):
        run(1)
    assert time.monotonic() - began < 15


def test_a_tool_that_hangs_is_ended_with_its_children(tmp_path, tool):
    tool("moreh-smi", "sleep 60 &\necho $! > %s/child\nwait\n" % tmp_path)
    began = time.monotonic()
    with pytest.raises(DeviceError, match=r"^moreh-smi gave no answer within 1 s"):
        run(1)
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
