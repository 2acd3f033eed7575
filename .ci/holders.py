"""Who holds a disk, made for the checks: each of these begins when the disk is really held, and ends it.

A holder that cannot be made is a failure of the check, never a reason to skip it.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

import host
from host import Broken

PATIENCE = 20
NUMBERS = itertools.count()


def named(process):
    """Patterns of a message that names the process: its number and its command."""
    with open(f"/proc/{process.pid}/comm", encoding="utf-8") as comm:
        # The kernel keeps 15 bytes of the name.
        return (rf"\b(pid|process) {process.pid}\b", re.escape(comm.read().strip()))


def storage_of(path):
    found = os.stat(path)
    return found.st_rdev if stat.S_ISBLK(found.st_mode) else (found.st_dev, found.st_ino)


def has_open(process, path):
    """Whether the process has this file or device open, under whatever name."""
    folder = f"/proc/{process.pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if storage_of(os.path.join(folder, name)) == storage_of(path):
                    return True
    return False


@contextlib.contextmanager
def running(words, ready, path, **more):
    """A program that holds `path` from when `ready(process)` is true; what it says is in the failure."""
    words = [str(word) for word in words]
    try:
        process = subprocess.Popen(words, **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **more},
                                   stderr=subprocess.STDOUT)
    except FileNotFoundError as error:
        raise Broken(f"{words[0]} is not installed") from error
    try:
        if not ready(process) or not has_open(process, path):
            process.kill()
            said = process.communicate()[0]
            raise Broken(f"{' '.join(words)} does not hold {path}: {(said or b'').decode()[-500:]}")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def until(condition, patience=PATIENCE):
    late = time.monotonic() + patience
    while not condition():
        if time.monotonic() > late:
            return False
        time.sleep(0.005)
    return True


def at_once(*works):
    """Does several things that mostly wait; the first that cannot be done is the caller's failure."""
    broken = []

    def guarded(work):
        try:
            work()
        except Exception as error:
            # A mistake in a check is a failure, too.
            broken.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise Broken(f"{broken[0]!r}") from broken[0]


@contextlib.contextmanager
def opener(path, flags=os.O_RDONLY, seconds="infinity"):
    """`sleep`, with the disk as its standard input."""
    handle = os.open(path, flags)
    try:
        with running(("sleep", seconds), lambda process: until(lambda: has_open(process, path), 5), path,
                     stdin=handle) as process:
            os.close(handle)
            handle = None
            # Until then it is this program under another number.
            until(lambda: named(process)[1] == "sleep", 5)
            yield process
    finally:
        if handle is not None:
            os.close(handle)


def writer(path):
    return opener(path, os.O_RDWR)


def qemu_io(path, *flags):
    def ready(process):
        process.stdin.write(b"read 0 512\n")
        process.stdin.flush()
        return any(b"ops/sec" in line for line in process.stdout)

    return running(("qemu-io", "-f", "raw", *flags, path), ready, path, stdin=subprocess.PIPE)


def connect(path, process, patience=PATIENCE):
    """A connection to a Unix socket as soon as somebody listens; None if the process ends before."""
    late = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < late:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(patience)
        try:
            client.connect(path)
            return client
        except OSError:
            client.close()
            time.sleep(0.002)
    return None


def receive(client, length):
    data = b""
    while len(data) < length:
        part = client.recv(length - len(data))
        if not part:
            raise ConnectionError("the server closed the connection")
        data += part
    return data


class Nbd:
    """A client of an NBD server: as much of the protocol as writes some bytes.

    The server greets when the disk is open, and not before.
    """

    def __init__(self, path, process):
        self.client = connect(path, process)
        self.greeted = False
        if self.client:
            with contextlib.suppress(OSError):
                self.greeted = receive(self.client, 18).startswith(b"NBDMAGICIHAVEOPT")

    def write(self, *pieces):
        """Writes pieces (offset, data), each through to the disk; whether the server says that they are there."""
        try:
            self.client.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))
            receive(self.client, 10)
            for offset, data in pieces:
                request = struct.pack(">IHHQQI", 0x25609513, 1, 1, offset, offset, len(data))
                self.client.sendall(request + data)
                magic, error, handle = struct.unpack(">IIQ", receive(self.client, 16))
                if (magic, error, handle) != (0x67446698, 0, offset):
                    return False
            return True
        except OSError:
            return False

    def close(self):
        if self.client:
            self.client.close()


def greets(path):
    """Readiness of an NBD server on this socket."""
    def ready(process):
        client = Nbd(path, process)
        client.close()
        return client.greeted

    return ready


def socket_of(scratch):
    return scratch / f"{next(NUMBERS)}.sock"


def qemu_nbd_words(path, where, *flags):
    return ("qemu-nbd", "-f", "raw", "--persistent", "--cache", "writeback", *flags, "--socket", where, path)


def qemu_nbd(scratch, path, *flags):
    where = socket_of(scratch)
    return running(qemu_nbd_words(path, where, *flags), greets(where), path)


def storage_daemon(scratch, path):
    where = socket_of(scratch)
    driver = "host_device" if stat.S_ISBLK(os.stat(path).st_mode) else "file"
    disk = json.dumps({"driver": driver, "node-name": "disk", "filename": path})
    words = ("qemu-storage-daemon", "--blockdev", disk, "--nbd-server", f"addr.type=unix,addr.path={where}",
             "--export", "nbd,id=disk,node-name=disk,writable=on,name=")
    return running(words, greets(where), path)


def guest_words(path, where, *drive):
    return ("qemu-system-x86_64", "-S", "-accel", "tcg", "-m", "32", "-display", "none", "-nodefaults",
            "-drive", ",".join((f"file={path},format=raw,if=virtio", *drive)),
            "-qmp", f"unix:{where},server=on,wait=off")


def guest(scratch, path, *drive):
    """A virtual machine that has the disk and is paused; `drive` are further options of its drive."""
    where = socket_of(scratch)

    def ready(process):
        client = connect(where, process)
        if not client:
            return False
        # It greets before it has its disks; what is asked of it is answered when it has.
        with client, contextlib.suppress(OSError):
            client.sendall(b'{"execute": "qmp_capabilities"}{"execute": "query-status"}')
            said = b""
            while more := client.recv(4096):
                said += more
                if b'"status": "prelaunch"' in said or b'"status": "paused"' in said:
                    return True
        return False

    return running(guest_words(path, where, *drive), ready, path)


def fresh(path):
    """A path at which nothing lies."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return path


# A new namespace begins with a copy of every mount: those of other checks must end when they end them.
ELSEWHERE = """
import os, subprocess, sys, time
scratch, device, where, *flags = sys.argv[1:]
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
top = scratch.split("/lane-")[0] + "/"
with open("/proc/self/mountinfo") as table:
    points = [line.split(" ")[4].replace("\\\\040", " ") for line in table]
for point in reversed(points):
    if point.startswith(top):
        subprocess.run(["umount", "--lazy", point], check=True)
subprocess.run(["mount", *flags, device, where], check=True)
print("mounted", flush=True)
os.execvp("sleep", ["sleep", "infinity"])
"""


@contextlib.contextmanager
def mounted_elsewhere(scratch, device, *flags):
    """The device mounted in a mount namespace of its own: (a process there, the mount point)."""
    where = scratch.folder_of("elsewhere")
    words = ("unshare", "--mount", sys.executable, "-c", ELSEWHERE, scratch.folder, device, where, *flags)
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        said = process.stdout.readline()
        if said != b"mounted\n" or os.path.ismount(where):
            raise Broken(f"{device} is not mounted in another namespace: {said.decode()}")
        yield process, where
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def swapped_on(path):
    host.tool("swapon", path)
    try:
        yield
    finally:
        host.tool("swapoff", path)


class Paused:
    """A rebuild that is stopped in the middle of its copy, until it is told to go on."""

    def __init__(self, program, image, target, *flags):
        # It gives way to whoever waits for its copy, so that the signal comes before the copy is over. A fast host may
        # be through with it nevertheless, now and then several times in a row.
        self.words = ["chrt", "--idle", "0", program.binary, "rebuild", image, target, "--keep-image-credentials",
                      "--yes", "--mode", "full", "--restart", *flags, "--json", "--progress", "json",
                      "--state-dir", program.state, "--threads", "1"]
        for _ in range(50):
            said = self.start()
            if said is None:
                return
        raise Broken(f"the rebuild was not stopped in its copy: {said}")

    def start(self):
        """Starts it and stops it in its copy; what it said if it was over before."""
        self.process = subprocess.Popen(self.words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)
        for line in self.process.stderr:
            event = json.loads(line) if line.startswith(b"{") else {}
            if event.get("type") == "progress" and event.get("phase") == "copy":
                self.process.send_signal(signal.SIGSTOP)
                break
        # What its threads were doing is done, and has reached the disk.
        if until(lambda: self.states() <= {"T", "Z"}) and self.states() == {"T"} and self.is_copying():
            os.sync()
            return None
        return self.end()

    def is_copying(self):
        """Whether its journal is open and says nothing yet of what comes after the copy."""
        folder = f"/proc/{self.process.pid}/fd"
        for handle in os.listdir(folder):
            name = os.readlink(os.path.join(folder, handle))
            if name.endswith(".journal"):
                with open(name, "rb") as journal:
                    return b'"record":"verified"' not in journal.read()
        return False

    def states(self):
        """The states of its threads, as `ps` prints them; Z when it is over."""
        found = set()
        # A thread may end just now, or all of them.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.listdir(f"/proc/{self.process.pid}/task"):
                with open(f"/proc/{self.process.pid}/task/{thread}/stat", encoding="utf-8") as text:
                    found.add(text.read().rsplit(")", 1)[1].split()[0])
            return found
        return found | {"Z" if self.process.poll() is not None else "R"}

    def go_on(self):
        """Lets it run to its end."""
        for thread in os.listdir(f"/proc/{self.process.pid}/task"):
            os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))
        self.process.send_signal(signal.SIGCONT)
        out, err = self.process.communicate(timeout=120)
        return host.Outcome(self.words, self.process.returncode, out.decode(), err.decode())

    def end(self):
        """Kills it where it is."""
        if self.process.poll() is None:
            self.process.kill()
        out, err = self.process.communicate()
        return (out + err).decode(errors="replace")[-1000:]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.returncode is None:
            self.end()
