"""What the checks need of the host: programs, loop devices, mounts, one temporary folder, and a tally.

Everything that is made here is removed when the program ends, also when it fails. A program that is
missing is a failure.
"""

import atexit
import copy
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time

MIB = 1 << 20


class Broken(Exception):
    """Something that a check needs, and that has nothing to do with the engine, does not work."""


def _end(number, _frame):
    raise SystemExit(128 + number)


for _number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(_number, _end)
# Programs that are made to abort here leave no core files.
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.environ["LC_ALL"] = "C.UTF-8"
os.environ["PATH"] += ":/usr/sbin:/sbin"


def tool(*words, codes=(0,), cwd=None, stdin=None, timeout=300):
    """Runs a program of the host and returns what it printed; any other exit code is a failure."""
    words = [str(word) for word in words]
    try:
        done = subprocess.run(words, cwd=cwd, input=stdin, capture_output=True, timeout=timeout)
    except FileNotFoundError as error:
        raise Broken(f"{words[0]} is not installed") from error
    out = done.stdout.decode(errors="replace")
    if codes is not None and done.returncode not in codes:
        err = done.stderr.decode(errors="replace")
        raise Broken(f"{' '.join(words)}: exit {done.returncode}: {out[-500:]}{err[-1500:]}")
    return out


def speak(*words, **more):
    """Like `tool`, whatever the exit code: (exit code, standard output and error together)."""
    words = [str(word) for word in words]
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, **more)
    except FileNotFoundError as error:
        raise Broken(f"{words[0]} is not installed") from error
    return done.returncode, done.stdout.decode(errors="replace")


class Scratch:
    """A temporary folder on disk, with the loop devices and mounts that were made for it."""

    def __init__(self, name):
        base = os.environ.get("TMPDIR", "/var/tmp")
        self.folder = tempfile.mkdtemp(prefix=f"reimage-{name}-", dir=base)
        self.loops = []
        self.mounts = []
        self.flagged = []
        atexit.register(self.close)

    def __truediv__(self, name):
        return os.path.join(self.folder, name)

    def inside(self, name):
        """The same with another folder, for checks that look at what is made in theirs."""
        twin = copy.copy(self)
        twin.folder = self.folder_of(name)
        return twin

    def folder_of(self, name):
        path = self / name
        os.makedirs(path, exist_ok=True)
        return path

    def loop(self, path, *flags):
        """Attaches a free loop device; another program may take the free one first, hence the attempts."""
        for attempt in range(5):
            code, text = speak("losetup", "--find", "--show", *flags, path)
            if code == 0:
                device = text.strip().splitlines()[-1]
                self.loops.append(device)
                return device
            time.sleep(0.2 * (attempt + 1))
        raise Broken(f"losetup {path}: {text}")

    def unloop(self, device):
        self.loops.remove(device)
        tool("losetup", "--detach", device)

    def mount(self, what, name, *flags):
        where = self.folder_of(name)
        tool("mount", *flags, what, where)
        self.mounts.append(where)
        return where

    def tmpfs(self, name, size):
        return self.mount("tmpfs", name, "-t", "tmpfs", "-o", f"size={size},mode=0700")

    def unmount(self, where):
        self.mounts.remove(where)
        tool("umount", where)

    def immutable(self, path):
        tool("chattr", "+i", path)
        self.flagged.append(path)

    def close(self):
        for path in self.flagged:
            speak("chattr", "-i", path)
        for where in reversed(self.mounts):
            if speak("umount", where)[0] != 0:
                speak("umount", "--lazy", where)
        for device in reversed(self.loops):
            speak("partx", "--delete", device)
            speak("losetup", "--detach", device)
        self.flagged, self.mounts, self.loops = [], [], []
        shutil.rmtree(self.folder, ignore_errors=True)


class Outcome:
    """What a run of the program came to."""

    def __init__(self, words, code, out, err, usage=None):
        self.words, self.code, self.err, self.usage = words, code, err, usage
        self.out = out
        try:
            self.doc = json.loads(out)
        except ValueError:
            self.doc = None

    @property
    def report(self):
        """The report of a rebuild that succeeded."""
        doc = self.doc or {}
        return doc.get("report", doc)

    @property
    def error(self):
        """The error document."""
        doc = self.doc or {}
        error = doc.get("error", doc)
        return error if isinstance(error, dict) else doc

    @property
    def messages(self):
        """The message of each refusal."""
        found, left = [], [self.error]
        while left:
            one = left.pop()
            found.append(str(one.get("message")))
            left += one.get("also") or []
        return found

    @property
    def state(self):
        return self.error.get("target_state")

    def __str__(self):
        said = f"`{' '.join(self.words)}`: exit {self.code}"
        # On success the document is long and the exit code says it all.
        return said if self.code == 0 else f"{said}\n    {self.out[-1200:]}\n    {self.err[-600:]}"


# Starts a program, waits for it, and writes what it used to a file.
STARTER = """
import os, sys
child = os.fork()
if child == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
_, status, used = os.wait4(child, 0)
with open(sys.argv[1], "w") as figures:
    figures.write(f"{used.ru_maxrss} {used.ru_utime + used.ru_stime}")
sys.exit(os.waitstatus_to_exitcode(status))
"""


def inject(calls, what, *paths):
    """Words before the program that change what these calls do; all others run at full speed.

    No signal can be sent so: strace sends none to a process that its filter has stopped. `kill_at` can.
    """
    only = [word for path in paths for word in ("-P", path)]
    return ("strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", *only, "-e", f"trace={calls}",
            "-e", f"inject={calls}:{what}")


def kill_at(calls, nth):
    """Words before the program that kill it where it enters the nth of these calls."""
    return (os.path.join(os.path.dirname(os.path.abspath(__file__)), "kill_at.py"), calls, str(nth))


class Program:
    """The program under test, with a state folder of its own."""

    def __init__(self, binary, scratch):
        self.binary = os.path.abspath(binary)
        if not os.access(self.binary, os.X_OK):
            raise Broken(f"{binary} is no program")
        self.state = scratch.folder_of("state")

    def words(self, command, *words):
        state = ("--state-dir", self.state) if command in ("plan", "rebuild", "seed", "capture") else ()
        return [self.binary, command, *map(str, words), *state, "--json", "--progress", "none"]

    def run(self, command, *words, before=(), stdin=b"", timeout=300, env=None):
        """Runs one command; `before` are words that stand before the program, such as strace's."""
        words = [*map(str, before), *self.words(command, *words)]
        env = None if env is None else {**os.environ, **env}
        started = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
        )
        try:
            out, err = started.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            started.kill()
            out, err = started.communicate()
            err += f"\nno end after {timeout} s".encode()
        return Outcome(words, started.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

    def measured(self, command, *words, before=(), timeout=300):
        """Like `run`, with the resources that the program itself used: memory in bytes, seconds of CPU.

        The kernel counts as a program's memory what the process had that started it, so a small one does.
        """
        words = [*map(str, before), *self.words(command, *words)]
        with tempfile.NamedTemporaryFile("r") as figures:
            starter = [sys.executable, "-S", "-c", STARTER, figures.name, *words]
            ended = subprocess.run(starter, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
            memory, seconds = figures.read().split()
        texts = ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace")
        return Outcome(words, ended.returncode, *texts, (int(memory) * 1024, float(seconds)))

    def rebuild(self, image, target, *flags, **more):
        words = (image, target, "--keep-image-credentials", "--yes", *flags)
        return self.run("rebuild", *words, **more)

    def killed_at(self, call, nth, image, target, *flags):
        """A rebuild that dies as it enters the nth of a system call; exit 0 if there are fewer of them."""
        return self.rebuild(image, target, *flags, before=kill_at(call, nth))


class Tally:
    """Counts what passed and names what failed."""

    def __init__(self):
        self.passed = 0
        self.failed = []
        self.one_at_a_time = threading.Lock()

    def expect(self, good, name, why=""):
        with self.one_at_a_time:
            if good:
                self.passed += 1
            else:
                self.failed.append(name)
                print(f"FAILED {name}: {why}", flush=True)
        return bool(good)

    def end(self):
        """Prints the summary and ends the program."""
        for name in self.failed:
            print(f"failed: {name}")
        print(f"{self.passed} passed, {len(self.failed)} failed", flush=True)
        sys.exit(1 if self.failed or not self.passed else 0)


def noise(rng_seed, length):
    """Bytes that no compressor shortens; the same for the same seed."""
    return random.Random(rng_seed).randbytes(length)


def write(path, data, offset=0):
    """Writes into a file or device, syncs, and leaves a device's page cache empty."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        view = memoryview(data)
        while view:
            count = os.pwrite(handle, view[: 8 * MIB], offset)
            view, offset = view[count:], offset + count
        os.fsync(handle)
    finally:
        os.close(handle)
    flush(path)


def flush(path):
    """The next read of a device asks the device."""
    if stat.S_ISBLK(os.stat(path).st_mode):
        tool("blockdev", "--flushbufs", path)


def pieces(data):
    """The parts of a disk that are not zero, as `restore` wants them."""
    step = 64 << 10
    parts = ((at, data[at : at + step]) for at in range(0, len(data), step))
    return [(at, part) for at, part in parts if part.count(0) != len(part)]


def restore(path, parts):
    """Makes a disk hold these parts and zeroes elsewhere."""
    tool("fallocate", "--punch-hole", "--offset", 0, "--length", size_of(path), path)
    with open(path, "r+b") as disk:
        for offset, part in parts:
            disk.seek(offset)
            disk.write(part)
        disk.flush()
        os.fsync(disk.fileno())
    flush(path)


def size_of(path):
    with open(path, "rb") as handle:
        return handle.seek(0, os.SEEK_END)


def read(path, offset=0, length=None):
    flush(path)
    with open(path, "rb") as handle:
        handle.seek(offset)
        return handle.read() if length is None else handle.read(length)


def make(path, size):
    """A new sparse file."""
    if os.path.lexists(path):
        os.unlink(path)
    with open(path, "wb") as handle:
        handle.truncate(size)
    return path


def checksum(path):
    flush(path)
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while part := handle.read(4 * MIB):
            digest.update(part)
    return digest.hexdigest()


def first_difference(left, right):
    """The offset of the first byte that differs, or None."""
    if left == right:
        return None
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if left[low:middle] != right[low:middle] else (middle, high)
    return low


def holds(path, expected):
    """Why a disk does not hold `expected` and zeroes behind it; '' if it does."""
    found = read(path)
    if len(found) < len(expected):
        return f"it has {len(found)} bytes, {len(expected)} were expected"
    at = first_difference(found[: len(expected)], expected)
    if at is not None:
        return f"byte {at} is {found[at]:#04x}, {expected[at]:#04x} was expected"
    rest = found[len(expected) :]
    if rest.count(0) != len(rest):
        at = len(expected) + len(rest) - len(rest.lstrip(b"\0"))
        return f"byte {at} behind the image's end is not zero"
    return ""
