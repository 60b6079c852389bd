"""Several processes that know of each other, without torchrun."""

import os
import socket
import subprocess

from tests.helpers.runs import ROOT
from tests.helpers.warm import warm


def together(size, *words, directories=(), fails=False, stderr=subprocess.STDOUT, **told):
    """Runs `python *words` in `size` processes that know of each other what torchrun tells them,
    or what it would have `told`, each in its directory; returns what each has said. `stderr` may
    go elsewhere, as to a terminal that all of them have.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks, common = [], {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "PYTHONPATH": ROOT}
    common.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    for rank, directory in zip(range(size), directories or [ROOT] * size):
        variables = {**common, "RANK": rank, "LOCAL_RANK": rank, **told}
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        pipes = {"stdout": subprocess.PIPE, "stderr": stderr, "text": True}
        ranks.append(subprocess.Popen(warm(*words), cwd=str(directory), env=environment, **pipes))
    said = [rank.communicate(timeout=250)[0] for rank in ranks]
    failed = [rank.returncode for rank in ranks if rank.returncode != 0]
    assert bool(failed) == fails, "\n".join(said)
    return said
