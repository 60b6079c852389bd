"""What processes run for tests/training/test_parallel.py: the first takes its time to prepare."""

import time

from minigpt.devices.device import find_device
from minigpt.training.parallel import joined, patience

if __name__ == "__main__":
    with joined(find_device("cpu"), alone=False) as world:
        for _ in range(2):
            with world.one_by_one():
                time.sleep(2 * patience().total_seconds() if world.first else 0)
            assert world.total(1) == [world.size]
