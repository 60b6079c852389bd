"""Turns itself into a program that may touch nothing: the inner half of sandbox.py.

It runs as a child of its own, `python -I -S guard.py`, imports nothing of this project, and reads
its orders, {"source", "root", "parent", "readable", "memory", "seconds"}, as JSON from stdin. What
goes wrong before the program starts is one line on stdout; what it prints goes to stderr.

    separate     own mounts, process numbers, network, IPC and host name (namespaces(7))
    build_root   an empty file system: a scratch folder, Python, three devices, all else absent
    fork         the child is process 1 of its world: when it ends, the kernel kills all the others
    lock         no capabilities, none to be gained, a user of its own, limits (getrlimit(2))
    execve       the program
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
from typing import Any, Dict, List

Orders = Dict[str, Any]

LIBC = ctypes.CDLL(None, use_errno=True)

# <sched.h>
NEW_MOUNTS, NEW_HOST, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USER, NEW_PIDS, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
# <sys/mount.h>
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC = 1, 2, 4, 8
REMOUNT, BIND, RECURSIVE, PRIVATE = 32, 4096, 16384, 1 << 18
# <sys/prctl.h>
PARENT_DEATH_SIGNAL, DROP_BOUNDING, NO_NEW_PRIVILEGES = 1, 24, 38

SCRATCH = "/tmp"
PROGRAM = "/program.py"
# Not as __main__: what a model wrote for when its file is run as a script is no part of it.
START = f"import runpy; runpy.run_path({PROGRAM!r}, run_name='program')"
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
DISK = 16 << 20  # bytes for files, and for what is printed
PROCESSES = 8  # threads count
NOBODY = 65534
# Real root starts programs as users that nobody is, one each, because the limit on processes
# counts a user's. The range is below 65536, which is as far as many containers go.
FIRST_USER, USERS = 60000, 5000


def call(name: str, *arguments: object) -> None:
    """A function of libc that returns 0, or OSError."""
    if getattr(LIBC, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2); where one means nothing, the kernel does not look at it."""
    words = map(os.fsencode, (source, target, kind))
    call("mount", *words, ctypes.c_ulong(flags), options.encode())


def prctl(option: int, value: int) -> None:
    """prctl(2)."""
    call("prctl", option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)


def separate() -> None:
    """Leaves the namespaces of the machine; without root, by way of a user namespace."""
    uid, gid = os.getuid(), os.getgid()
    user = 0 if uid == 0 else NEW_USER
    call("unshare", NEW_MOUNTS | NEW_PIDS | NEW_NETWORK | NEW_IPC | NEW_HOST | user)
    if user:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{NOBODY} {uid} 1")
        write("/proc/self/gid_map", f"{NOBODY} {gid} 1")
    for name in ("shmall", "msgmni"):  # memory that no limit of a process counts
        with contextlib.suppress(OSError):  # before Linux 5.19 only root may
            write("/proc/sys/kernel/" + name, "0")
    mount("", "/", "", RECURSIVE | PRIVATE)


def write(path: str, text: str) -> None:
    """Makes `text` the contents of a file."""
    with open(path, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)


def build_root(orders: Orders) -> None:
    """Mounts the program's whole file system on the empty folder `root`."""
    root = orders["root"]
    mount("tmpfs", root, "tmpfs", NO_SUID | NO_DEV, "size=16m,nr_inodes=10000,mode=755")
    os.mkdir(root + SCRATCH)
    # First, because Python itself may be below /tmp.
    size = f"size={DISK},nr_inodes=10000,mode=1777"
    mount("tmpfs", root + SCRATCH, "tmpfs", NO_SUID | NO_DEV, size)
    shown: List[str] = []
    for path in [*orders["readable"], *DEVICES]:
        if os.path.exists(path) and not any(path.startswith(above + "/") for above in shown):
            show(path, root)
            shown.append(path)
    write(root + PROGRAM, orders["source"])
    for place in [*mounts_below(root), root]:
        if place != root + SCRATCH:
            # A user may not take away the flags that root has given a mount.
            kept = os.statvfs(place).f_flag & NO_EXEC
            devices = 0 if place.startswith(root + "/dev/") else NO_DEV
            mount("", place, "", REMOUNT | BIND | READ_ONLY | NO_SUID | devices | kept)


def show(path: str, root: str) -> None:
    """Makes the machine's `path` appear below `root`."""
    if os.path.isdir(path):
        os.makedirs(root + path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        write(root + path, "")
    mount(path, root + path, "", BIND | RECURSIVE)  # not recursive would be refused to a user


def mounts_below(root: str) -> List[str]:
    """The mount points below `root`, those that came along with a folder included."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        places = [line.split()[4].replace("\\040", " ") for line in lines]
    return [place for place in places if place.startswith(root + "/")]


def lock(orders: Orders, user: int) -> None:
    """Gives up, for good, whatever could undo the rest; real root becomes `user`."""
    os.chroot(orders["root"])  # the kernel gives no new user namespace to who is in a chroot
    os.chdir(SCRATCH)
    with contextlib.suppress(OSError):  # at one more than this kernel knows
        for capability in range(64):
            prctl(DROP_BOUNDING, capability)
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    prctl(NO_NEW_PRIVILEGES, 1)
    limits = {
        resource.RLIMIT_AS: orders["memory"],
        resource.RLIMIT_CPU: int(orders["seconds"]) + 1,
        resource.RLIMIT_FSIZE: DISK,
        resource.RLIMIT_NPROC: PROCESSES,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for name, value in limits.items():
        most = resource.getrlimit(name)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(name, (value, value))


def become(orders: Orders, user: int, lifeline: int) -> None:
    """Ends as the program, process 1 of its world."""
    lock(orders, user)
    prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)  # last, because a change of user forgets it
    if select.select([lifeline], [], [], 0)[0]:
        os._exit(1)  # the guard had died before
    os.setsid()  # so that kill(0) means nobody outside
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(2, 1)
    environment = {"PATH": "/usr/bin:/bin", "HOME": SCRATCH, "TMPDIR": SCRATCH}
    environment.update(LANG="C.UTF-8", OMP_NUM_THREADS="1")
    program = [sys.executable, "-I", "-u", "-B", "-c", START]
    os.execve(sys.executable, program, environment)


def guard(orders: Orders) -> int:
    """Runs the program; its exit code, or 128 and the signal that ended it."""
    prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != orders["parent"]:
        return 1
    separate()
    build_root(orders)
    user = FIRST_USER + os.getpid() % USERS
    lifeline, held = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(held)
        become(orders, user, lifeline)
    status = os.waitpid(child, 0)[1]
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


if __name__ == "__main__":
    report = os.dup(1)  # not inherited by the program
    try:
        code = guard(json.load(sys.stdin))
    except Exception as error:
        os.write(report, str(getattr(error, "strerror", None) or error).encode())
        code = 1
    os._exit(code)
