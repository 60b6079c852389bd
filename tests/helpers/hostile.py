"""Programs that harm, spy, or pretend: what they do, and the reasons for which each may fail.

`OUTSIDE` comes before each and tells it what there is outside the sandbox.
"""

OUTSIDE = """
import os, socket, sys, time
VICTIM, PRIVATE, TCP, UNIX, ABSTRACT, SECRET, PIDS, MARK = %r
def survive():
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", MARK])
def connect(family, address):
    caller = socket.socket(family)
    caller.settimeout(1)
    caller.connect(address)
"""

HOSTILE = {
    "infinite loop": ("while True: pass", "timed out"),
    "sleeping": ("time.sleep(600)", "timed out"),
    "not to be interrupted": (
        """
import signal
for number in range(1, 65):
    try: signal.signal(number, lambda *a: 0)
    except (OSError, ValueError): pass
while True:
    try: time.sleep(9)
    except: pass
""",
        "timed out",
    ),
    "fork bomb": (
        """
while True:
    try: os.fork()
    except OSError: pass
""",
        "timed out",
    ),
    "processes that stay": (
        """
for _ in range(99):
    if os.fork() == 0:
        os.setsid()
        survive()
""",
        "BlockingIOError",
    ),
    "a daemon": (
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: survive()
    os._exit(0)
time.sleep(0.5)
assert False
""",
        "AssertionError",
    ),
    "threads": (
        """
import threading
while True: threading.Thread(target=time.sleep, args=(9,)).start()
""",
        "RuntimeError, timed out",
    ),
    "memory": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "MemoryError"),
    "memory at once": ("x = bytearray(10 ** 12)", "MemoryError"),
    "disk": (
        """
for number in range(10 ** 9): open("f%d" % number, "wb").write(bytes(1 << 20))
""",
        "OSError",
    ),
    "one large file": ("f = open('f', 'wb')\nwhile True: f.write(bytes(1 << 20))", "OSError"),
    "many files": ("for n in range(10 ** 9): open('f%d' % n, 'w').close()", "OSError"),
    "printing": ("while True: print('x' * 10 ** 6)", "printed too much"),
    "deleting": ("os.remove(VICTIM)", "FileNotFoundError"),
    "overwriting": ("open(VICTIM, 'w').write('')", "FileNotFoundError"),
    "deleting a folder": (
        "import shutil\nshutil.rmtree(os.path.dirname(VICTIM))",
        "FileNotFoundError",
    ),
    "writing beside Python": ("open(sys.prefix + '/' + MARK, 'w')", "OSError, PermissionError"),
    "writing at the root": ("open('/x', 'w')", "OSError, PermissionError"),
    "reading the home": ("open(PRIVATE).read()", "FileNotFoundError"),
    "reading passwords": ("open('/etc/passwd').read()", "FileNotFoundError"),
    "environment": ("os.environ['MINIGPT_TEST_SECRET']", "KeyError"),
    "environment of others": (
        """
import glob
assert SECRET in "".join(open(name).read() for name in glob.glob("/proc/*/environ"))
""",
        "AssertionError",
    ),
    "network": ("connect(socket.AF_INET, TCP)", "OSError"),
    "a socket file": ("connect(socket.AF_UNIX, UNIX)", "FileNotFoundError"),
    "a named socket": ("connect(socket.AF_UNIX, ABSTRACT)", "ConnectionRefusedError"),
    "killing the parent": ("os.kill(os.getppid(), 9)\nraise KeyError", "KeyError"),
    "killing others": (
        """
for number in PIDS:
    try: os.kill(number, 9)
    except ProcessLookupError: continue
    break
else: raise KeyError
""",
        "KeyError",
    ),
    "killing everyone": ("os.kill(-1, 9)\nraise KeyError", "KeyError, ProcessLookupError"),
    "a child that kills": (
        """
if os.fork() == 0:
    os.kill(0, 9)
    os.kill(1, 9)
    os._exit(0)
os.wait()
raise KeyError
""",
        "KeyError",
    ),
    "new namespaces": (
        "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
        "AssertionError",
    ),
    "mounting": (
        "import ctypes\nassert ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, b'') == 0",
        "AssertionError",
    ),
    "becoming root": ("os.setuid(0)", "PermissionError, OSError"),
    "leaving the root": ("os.chroot('/tmp')", "PermissionError"),
    "leaving": ("sys.exit(0)", "ended early"),
    "leaving at once": ("os._exit(0)", "ended early"),
    "breaking Python": ("import ctypes\nctypes.string_at(0)", "killed"),
    "wrong": ("assert 1 == 2", "AssertionError"),
    "no Python": ("def f(:", "SyntaxError"),
    "no text": ("\0", "SyntaxError"),
}
