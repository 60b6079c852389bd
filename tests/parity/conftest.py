"""`python -m pytest -s tests/parity/test_NN...` ends with a table of what was compared: for each
test the largest difference found, over the largest magnitude, and what is allowed.
"""

import pytest

from tests.helpers.reference import COMPARED

CASES = {}  # of each test, (outcome, what it compared) of each of its cases


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    COMPARED.clear()


def pytest_runtest_logreport(report):
    if report.when == "call" and "parity/" in report.nodeid and COMPARED:
        name = report.nodeid.partition("[")[0].rpartition("/")[2]
        CASES.setdefault(name, []).append((report.outcome, [*COMPARED]))


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("capture") != "no" or not CASES:
        return
    terminalreporter.section("compared")
    terminalreporter.write_line("largest difference  allowed  numbers or tensors  test")
    for name, cases in CASES.items():
        compared = [pair for _, pairs in cases for pair in pairs]
        (difference, allowed), failed = max(compared), sum(how != "passed" for how, _ in cases)
        says = "  as it must be: a mistake is seen" if difference > allowed else ""
        says = "  FAILED in %d of %d cases" % (failed, len(cases)) if failed else says
        row = "%18.1e  %7.0e  %18d  %s%s" % (difference, allowed, len(compared), name, says)
        terminalreporter.write_line(row)
