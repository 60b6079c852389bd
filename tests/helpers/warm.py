"""Starts a command without waiting for its imports: most of the seconds of a short command go into
importing PyTorch, and they would be most of the tests' time.

`warm("train.py", ...)` is a command line as `[sys.executable, "train.py", ...]` is one, for
subprocess. Three processes are behind it:

- a server, one for each process of pytest, which has imported what the commands import, has
  computed nothing and has no thread, and makes a copy of itself (fork) for each command;
- that copy, which runs the script or module as Python would: with the arguments, the directory,
  the environment and the streams of the third, and signals at their defaults;
- the process that subprocess starts: it hands all that over, passes signals on and ends as the
  copy ends; if it is killed, the copy is.

So what Python or a library reads of the environment when it starts, a terminal, limits, the memory
and the number of a process are not those of a command started anew. Tests of these start it anew.
"""

import array
import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile

PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
SERVERS = {}


def warm(*words, **variables):
    """The command line that runs `python *words`: a script, or -m and a module, and arguments.
    `variables` are in the environment already when the server starts.
    """
    if not hasattr(os, "fork") or "--compile" in words:  # which makes a copy wait for ever
        return [sys.executable, *map(str, words)]
    return [sys.executable, "-I", "-S", __file__, _server(variables), *map(str, words)]


def _server(variables):
    """The address of this process's server, which ends when this process does, however that is."""
    import subprocess

    known = tuple(sorted(variables.items()))
    if known not in SERVERS or SERVERS[known][0].poll() is not None:
        address = os.path.join(tempfile.mkdtemp(prefix="warm"), "s")
        server = subprocess.Popen(
            [sys.executable, __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables}, start_new_session=True,
        )  # fmt: skip
        assert server.stdout.readline() == b"ready\n"
        SERVERS[known] = server, address
        atexit.register(lambda: (server.stdin.close(), server.wait(10)))
    return SERVERS[known][1]


# The server and its copies -----------------------------------------------------------------------


def serve(address):
    """Returns in a copy alone, with the words of the command that it is to run."""
    import_everything()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    os.write(1, b"ready\n")
    running = {}  # each connection's copy
    while True:
        wait = 0.005 if running else None
        ready = select.select([listener, 0, *running], [], [], wait)[0]
        if 0 in ready:
            break
        for connection, copy in list(running.items()):
            if connection in ready:  # whoever has asked for it is not there any more
                os.kill(copy, signal.SIGKILL)
            ended, status = os.waitpid(copy, 0 if connection in ready else os.WNOHANG)
            if ended:
                del running[connection]
                tell(connection, status)
                connection.close()
        if listener in ready:
            connection, _ = listener.accept()
            request, streams = received(connection)
            copy = os.fork()
            if copy == 0:
                for one in (listener, connection, *running):
                    one.close()
                become(request, streams)
                return request["words"]
            for stream in streams:
                os.close(stream)
            running[connection] = copy
            tell(connection, copy)
    for copy in running.values():
        os.kill(copy, signal.SIGKILL)
    shutil.rmtree(os.path.dirname(address), ignore_errors=True)
    os._exit(0)


def tell(connection, number):
    with contextlib.suppress(OSError):  # that nobody is there is seen above
        connection.sendall(struct.pack("i", number))


def import_everything():
    """What the commands import, sooner or later."""
    import gc
    import importlib
    import pkgutil

    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import minigpt

    for module in pkgutil.walk_packages(minigpt.__path__, "minigpt."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    late = ["torch._dynamo", "torch.utils.checkpoint"]  # by PyTorch, with its first optimizer
    late += ["torch.distributed.run"]  # which starts several processes
    late += ["matplotlib.pyplot", "matplotlib.backends.backend_agg"]  # with the first picture
    for name in late:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # or the first collection of each copy would write to all of these pages


def received(connection):
    ours = array.array("i")
    data, control, _, _ = connection.recvmsg(1 << 16, socket.CMSG_SPACE(3 * ours.itemsize))
    for _, _, some in control:
        ours.frombytes(some[: len(some) - len(some) % ours.itemsize])
    (size,) = struct.unpack("i", data[:4])
    while len(data) < 4 + size:
        data += connection.recv(1 << 16)
    return json.loads(data[4:].decode()), list(ours)


def become(request, streams):
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    enter(request["network"])
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # TMPDIR may be another
    for name in PASSED_ON:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    encoding, _, errors = request["environment"].get("PYTHONIOENCODING", "").partition(":")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before, tty = getattr(sys, name), os.isatty(number)
        how = errors or ("strict" if encoding else before.errors)
        stream = open(  # noqa: SIM115
            number, "r" if name == "stdin" else "w", closefd=False,
            buffering=1 if tty or (name == "stderr" and sys.version_info >= (3, 9)) else -1,
            encoding=encoding or before.encoding, errors=before.errors if number == 2 else how,
        )  # fmt: skip
        setattr(sys, name, stream)
        setattr(sys, "__%s__" % name, stream)


def enter(network):
    """Goes into the network namespace of whoever asks, which tests of several machines make."""
    import ctypes

    with contextlib.suppress(OSError), open(network) as there, open("/proc/self/ns/net") as here:
        if os.fstat(there.fileno()).st_ino != os.fstat(here.fileno()).st_ino:
            assert ctypes.CDLL(None).setns(there.fileno(), 0) == 0


def run(words):
    """As Python would, up to its last act: the streams are flushed, the interpreter is not taken
    apart, which would take longer than most commands.
    """
    import runpy
    import threading

    sys.argv[:] = words[words[0] == "-m" :]
    code = 0
    try:
        if words[0] == "-m":
            sys.path[0] = os.getcwd()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = os.path.dirname(os.path.abspath(words[0]))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, (int, type(None))):
            raise
        code = end.code or 0
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        code = 120  # as Python has it
    sys.stderr.flush()
    os._exit(code)


# The process that subprocess starts --------------------------------------------------------------


def ask(address, words):
    """Has the server run the command; ends as it ends."""
    numbers = [getattr(signal, name) for name in PASSED_ON]
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # until there is something to pass them to
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    request = {"words": words, "directory": os.getcwd(), "environment": dict(os.environ)}
    request["network"] = "/proc/%d/ns/net" % os.getpid()
    data = json.dumps(request).encode()
    streams = array.array("i", [0, 1, 2])
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)]
    data = struct.pack("i", len(data)) + data
    server.sendall(data[server.sendmsg([data], control) :])
    (child,) = struct.unpack("i", server.recv(4))
    for number in numbers:
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    (status,) = struct.unpack("i", server.recv(4))
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        ask(sys.argv[1], sys.argv[2:])
    run(serve(sys.argv[1]))
