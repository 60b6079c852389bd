"""The table of accelerators, how people write their names, and the peak that is measured."""

import pytest
import torch

from minigpt.base.errors import UsageError
from minigpt.devices.device import find_device
from minigpt.planning import peaks
from minigpt.planning.peaks import FLAVORS

CPU, GB = find_device("cpu"), 10**9


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h200", "H200 SXM"), ("H100-80GB", "H100 SXM"), ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"), ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"), ("a100", "A100 80GB"), ("MI300X", "MI300X"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"), ("AMD Instinct MI300X VF", "MI300X"),
        ("AMD Instinct MI250X/MI250", "MI250 (one of its two GCDs)"), ("4xlarge", "4xLarge.2048GB"),
    ],
)  # fmt: skip
def test_accelerators_are_found_as_people_write_them(name, found):
    assert peaks.find_accelerator(name).name == found


def test_flavors_are_halves_of_mi250():
    for flavor in FLAVORS:
        found = peaks.find_accelerator(flavor.name)
        assert found.memory == 128 * GB * flavor.mi250
        assert found.bf16 == pytest.approx(362.1e12 * flavor.mi250)


def test_an_unknown_accelerator_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean h200"):
        peaks.find_accelerator("h20")


@pytest.mark.parametrize(
    ("text", "count"),
    [("80GB", 80 * GB), ("1.5 tb", 1500 * GB), ("2GiB", 2**31), ("512MB", 512 * 10**6)],
)
def test_memory_is_read_as_people_write_it(text, count):
    assert peaks.parse_memory(text) == count


@pytest.mark.parametrize("text", ["80", "lots", "0GB", "-3GB", "80Gb/s"])
def test_memory_that_is_none_is_named(text):
    with pytest.raises(UsageError, match="--memory is"):
        peaks.parse_memory(text)


def test_the_peak_of_this_machine_is_measured_in_a_moment():
    assert 1e8 < peaks.measured_peak(find_device("cpu"), torch.float32, 0.1) < 1e14


def test_the_measured_peak_does_not_count_the_loading_of_libraries(monkeypatch):
    """A GPU's first product takes a second, whatever its size."""
    now, calls = [0.0], []

    def product(factor):
        calls.append(factor.size(0))
        took = 0.8 if len(calls) == 1 else 2.0 * factor.size(0) ** 3 / 1e14
        now[0] += took
        return took

    monkeypatch.setattr(peaks, "_product_seconds", product)
    monkeypatch.setattr(peaks.time, "perf_counter", lambda: now[0])
    assert peaks.measured_peak(CPU, torch.float32) == pytest.approx(1e14)
    assert max(calls) > 1000
