"""Every test starts from the same random numbers, on one thread, so that it can be repeated."""

import pytest
import torch


@pytest.fixture(autouse=True)
def repeatable():
    torch.manual_seed(20240417)
    torch.set_num_threads(1)
