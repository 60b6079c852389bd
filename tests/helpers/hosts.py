"""Several machines on this one: network namespaces with an address each, joined by a bridge, whose
cables can be pulled out. For root on Linux, with iproute2.
"""

import contextlib
import os
import shutil
import subprocess

ENDPOINT = "10.99.0.1:29400"  # of machine 0; nobody else is in their network


def ip(*words):
    done = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise OSError("ip %s: %s" % (" ".join(map(str, words)), done.stderr.strip()))


def why_not():
    """Why there can be no such machines here, in words; empty where there can."""
    if shutil.which("ip") is None:
        return "machines are network namespaces, made by ip of iproute2, which is not installed"
    try:
        with machines(1):
            return ""
    except OSError as error:
        return "machines are network namespaces, which cannot be made here (as root?): %s" % error


@contextlib.contextmanager
def machines(count):
    """As many machines: their network namespaces and cables, removed at the end."""
    sign, made = "mg%d" % os.getpid(), []
    with contextlib.ExitStack() as undone:

        def make(kind, name, *words):
            ip(*kind, "add", name, *words)
            undone.callback(subprocess.run, ["ip", *kind, "del", name], capture_output=True)

        make(["link"], sign, "type", "bridge")
        ip("link", "set", sign, "up")
        for number in range(count):
            name = "%s-%d" % (sign, number)
            make(["netns"], name)
            make(["link"], name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", sign, "up")
            ip("-n", name, "addr", "add", "10.99.0.%d/24" % (number + 1), "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", name, "link", "set", device, "up")
            made.append(name)
        yield made


def cut(machine):
    """Pulls its cable."""
    ip("link", "set", machine, "down")


def join(machine):
    """Puts its cable back."""
    ip("link", "set", machine, "up")


def torchrun(hosts, number, restarts, python, *command, processes=2):
    """The command line that runs `command` on the machine `number` of `hosts`, with the others; by
    `python`, a function that makes a command line of words for Python.
    """
    launch = python(
        "-m", "torch.distributed.run", "--nnodes", len(hosts), "--nproc_per_node", processes,
        "--rdzv_backend", "c10d", "--rdzv_endpoint", ENDPOINT, "--rdzv_id", "mine",
        # Their names are all this machine's, so that addresses are said.
        "--rdzv_conf", "is_host=%d" % (number == 0), "--local_addr", "10.99.0.%d" % (number + 1),
        "--max_restarts", restarts, "--no_python", *python(*command),
    )  # fmt: skip
    return ["ip", "netns", "exec", hosts[number], *map(str, launch)]
