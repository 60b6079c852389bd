"""Fails or kills a command at one of its writes, and looks at what it leaves.

`python faults.py PLAN` reads a JSON file (`Plan` says what is in it) and prints one as its last
line. It is meant for warm.py: each command runs in a copy (fork) of a process that has imported
everything and computed nothing, a few hundredths of a second each.

A write is a call to the system that changes something below the command's directory: opening a
file to write it, each write(2), fsync, rename, link, mkdir, unlink, rmdir, truncate. The first run
counts them, and is what later ones have to end like. In the others one of them, the `number`th,
goes wrong in the way `how`:

    ENOSPC, EIO, EACCES    it does nothing and reports that, once
    short                  of a write(2), half is written, and the next one finds the disk full
    before, after, torn    the process is killed (SIGKILL) before it, after it, or, of a write(2),
                           when half is written
"""

import builtins
import errno
import functools
import hashlib
import io
import json
import os
import pathlib
import shutil
import signal
import sys

ERRORS = ("ENOSPC", "EIO", "EACCES", "short")
KILLS = ("before", "after", "torn")
WAYS = (*ERRORS, *KILLS)
_CHANGES = [
    "fsync", "mkdir", "rename", "replace", "link", "symlink", "unlink", "remove", "rmdir",
    "truncate", "ftruncate",
]  # fmt: skip
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Writes:
    """Every write of this process below `root`, of which one goes wrong."""

    def __init__(self, root, number=None, how=None):
        self.root, self.number, self.how, self.seen, self.full = root, number, how, [], False

    def install(self):
        for name in _CHANGES:
            self._replace(name, functools.partial(self._change, name, getattr(os, name)))
        real_open = os.open

        def opened(path, flags, *rest, **named):
            if flags & _FOR_WRITING and self._ours(path, named):
                return self.do("open", path, lambda: real_open(path, flags, *rest, **named))
            return real_open(path, flags, *rest, **named)

        self._replace("open", opened)
        io.open = builtins.open = functools.partial(self._file, io.open)

    def _replace(self, name, function):
        setattr(os, name, function)
        accessor = getattr(pathlib, "_NormalAccessor", None)  # which Python 3.8 takes them from
        if hasattr(accessor, name):
            setattr(accessor, name, staticmethod(function))

    def _ours(self, path, named=()):
        if isinstance(path, int) or "dir_fd" in named:
            return True
        return os.path.realpath(os.fspath(path)).startswith(self.root)

    def _change(self, name, real, path, *rest, **named):
        if not self._ours(path, named):
            return real(path, *rest, **named)
        return self.do(name, path, lambda: real(path, *rest, **named))

    def _file(self, real, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None,
              closefd=True, opener=None):  # fmt: skip
        if not {*mode} & {*"wax+"} or isinstance(file, int) or not self._ours(file):
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        writes, plain = self, "".join(letter for letter in mode if letter not in "bt")

        class Raw(io.FileIO):
            def write(self, data):
                return writes.write(file, super().write, data)

        raw = self.do("open", file, lambda: Raw(file, plain, True, opener))
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

    def do(self, kind, path, call):
        number, self.seen = len(self.seen), [*self.seen, (kind, str(path))]
        if number != self.number:
            return call()
        if self.how in ("before", "torn"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how != "after":
            code = getattr(errno, self.how, errno.ENOSPC)
            raise OSError(code, os.strerror(code), str(path))
        try:
            return call()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, path, real, data):
        if self.full:
            self.full = False
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        half = memoryview(data)[: max(1, len(memoryview(data)) // 2)]
        if self.number == len(self.seen) and self.how in ("short", "torn"):
            self.seen.append(("write", str(path)))
            done, self.full = real(half), True
            if self.how == "torn":
                os.kill(os.getpid(), signal.SIGKILL)
            return done
        return self.do("write", path, lambda: real(data))


class Plan:
    """start      a directory that the command finds; each run has a copy of it
    place      where those copies are made
    words      the command
    outputs    what it makes in there: a run, whose checkpoints are looked at one by one, or
               directories that are there whole or not at all
    most       how many writes fail, evenly spread, each in one way, and these in turn; None for
               every write in every way
    """

    def __init__(self, start, place, words, outputs, most=None):
        self.start, self.place, self.words, self.outputs = start, place, words, outputs
        self.most = most
        self.here = os.path.join(place, "w")

    def carry_out(self):
        os.makedirs(self.place, exist_ok=True)
        code, said, seen = self.run(self.words, fresh=True)
        if code:
            return {"writes": 0, "cases": 0, "wrong": [said]}
        before, after = contents(self.start), contents(self.here)
        cases = [(n, how) for n in range(len(seen)) for how in WAYS if fits(seen[n], how)]
        if self.most:
            count = min(self.most, len(seen))
            chosen = [(2 * i + 1) * len(seen) // (2 * count) for i in range(count)]
            ways = [[how for n, how in cases if n == number] for number in chosen]
            cases = [(n, fit[i % len(fit)]) for i, (n, fit) in enumerate(zip(chosen, ways))]
        wrong = []
        for number, how in cases:
            for what in self.case(number, how, before, after):
                wrong.append("%s at write %d, %s: %s" % (how, number, seen[number], what))
        return {"writes": len(seen), "cases": len(cases), "wrong": wrong, "seen": seen}

    def case(self, number, how, before, after):
        """What is wrong after the command failed at that write, and after it was run again."""
        code, said, _ = self.run(self.words, Writes(self.here, number, how), fresh=True)
        lines, killed = said.splitlines(), code == -signal.SIGKILL
        sentence = len(lines) == 1 and lines[0].startswith("error: ") and code == 1
        if not (killed if how in KILLS else code == 0 or sentence):
            yield "it ended with %d and said %r" % (code, said[-600:])
        now = contents(self.here)
        yield from self.half(now, before, after)
        if code == 0:  # it could do without; what it could not remove, the next one does
            there = {name: digest for name, digest in now.items() if not hidden(name)}
            yield from differences(there, after)
        code, said, _ = self.run(self.words)
        if "is not an empty directory" in said:  # it was done, but for the last sync
            yield from differences(contents(self.here), after)
        elif code:
            yield "run again, it ended with %d and said %r" % (code, said[-600:])
        else:
            yield from differences(contents(self.here), after, "run again, ")

    def half(self, now, before, after):
        """Whatever is half there, and passes for whole; or is gone."""
        for name, digest in before.items():
            if now.get(name) not in (digest, after.get(name)) and not owned(name, self.outputs):
                yield "%s was there before, and is not as it was" % name
        signs = ("manifest.json", "dataset.json")  # which are written last
        whole = {path for path in now if os.path.basename(path) in signs}
        for path in whole:
            folder = os.path.dirname(path) + "/"
            if hidden(folder):
                continue
            there = {n: d for n, d in now.items() if n.startswith(folder)}
            known = [{n: d for n, d in s.items() if n.startswith(folder)} for s in (before, after)]
            mine = [k for k in known if k]
            if mine and not any(k.items() <= there.items() for k in mine):
                yield "%s passes for whole" % folder
        for pointer in (path for path in now if os.path.basename(path) in ("latest", "best")):
            where = os.path.join(self.here, os.path.dirname(pointer))
            with open(os.path.join(self.here, pointer)) as file:
                named = file.read().strip()
            if not os.path.isfile(os.path.join(where, named, "manifest.json")):
                yield "%s names %r, which is not whole" % (pointer, named)

    def run(self, words, writes=None, fresh=False):
        """(how it ended, what it said on stderr, its writes), in a process of its own."""
        if fresh:
            shutil.rmtree(self.here, ignore_errors=True)
            shutil.copytree(self.start, self.here, symlinks=True)
        out, err, seen = (os.path.join(self.place, name) for name in ("out", "err", "seen"))
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = self._command(words, writes or Writes(self.here), out, err, seen)
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        with open(err, errors="replace") as file:
            said = file.read()
        if code < 0:
            return code, said, []
        with open(seen) as file:
            return code, said, json.load(file)

    def _command(self, words, writes, out, err, seen):
        import traceback

        from minigpt.__main__ import command
        from minigpt.commands.cli import run

        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        os.chdir(self.here)
        os.environ["XDG_CACHE_HOME"] = os.path.join(self.here, "cache")
        sys.modules["matplotlib"] = None  # pictures take longer than all the rest
        real = open
        writes.install()
        try:
            code = run(command, words)
        except BaseException:
            traceback.print_exc()
            code = 70
        sys.stdout.flush()
        sys.stderr.flush()
        with real(seen, "w") as file:
            json.dump(writes.seen, file)
        return code


def fits(write, how):
    return write[0] == "write" or how not in ("short", "torn")


def owned(name, outputs):
    return any(name == output or name.startswith(output + "/") for output in outputs)


def hidden(path):
    return any(part.startswith(".") for part in path.split("/"))


def contents(folder):
    """{name below it: sha256}, a log without its times; of a directory, nothing."""
    found = {}
    for path in pathlib.Path(folder).rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.name == "lock":
            continue  # says which process had it, and when
        data = b"" if path.is_dir() else path.read_bytes()
        if path.name == "metrics.jsonl":
            records = [json.loads(line) for line in data.splitlines() if line.endswith(b"}")]
            kept = ("step", "loss", "grad_norm", "lr", "val_loss")
            data = json.dumps([[r.get(key) for key in kept] for r in records]).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def differences(now, wanted, when=""):
    for name in sorted({*now} | {*wanted}):
        if now.get(name) != wanted.get(name):
            how = "is left" if name not in wanted else "differs" if name in now else "is missing"
            yield "%s%s %s" % (when, name, how)


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        print(json.dumps(Plan(**json.load(file)).carry_out()))
