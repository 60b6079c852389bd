"""The table of flavors agrees with the names, with what moreh-smi reports, and with itself."""

import re

import pytest

from minigpt.planning.peaks import FLAVORS, GCD_MIB, find_flavor


@pytest.mark.parametrize("flavor", FLAVORS, ids=lambda flavor: flavor.name)
def test_every_row_agrees_with_its_name(flavor):
    gigabytes = int(re.search(r"\.(\d+)GB$", flavor.name).group(1))
    assert flavor.gcds * 64 == gigabytes
    assert flavor.gcds == 2 * flavor.mi250
    assert flavor.nodes == max(1, -(-flavor.mi250 // 4))  # four boards on a node


def test_there_are_thirteen_and_one_is_inferred():
    assert len(FLAVORS) == 13
    assert [flavor.name for flavor in FLAVORS if flavor.inferred] == ["1.5xLarge.768GB"]


@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("Medium.128GB", 131_040),
        ("xLarge.512GB", 524_160),
        ("4xLarge.2048GB", 2_096_640),
        ("8xLarge.4096GB", 4_193_280),
    ],
)
def test_memory_is_what_moreh_smi_published(name, mib):
    flavor = find_flavor(name)
    assert flavor.memory_mib == mib == flavor.gcds * GCD_MIB


@pytest.mark.parametrize("flavor", FLAVORS, ids=lambda flavor: flavor.name)
def test_every_spelling_finds_it(flavor):
    base = flavor.name.rpartition(".")[0]
    spellings = [flavor.name, flavor.name.lower(), flavor.name[:-2], base, base.lower()]
    assert {find_flavor(" %s " % spelling) for spelling in spellings} == {flavor}


@pytest.mark.parametrize(
    "other", ["", "-", "micro", "flavor-default-8", "4xlarge.384gb", "8xLarge.2048GB", "5xLarge"]
)
def test_what_is_not_published_is_not_guessed(other):
    assert find_flavor(other) is None
