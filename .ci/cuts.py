"""Rebuilds that are met in the middle: their events as they come, their journals, a kill, a file system that stops."""

import contextlib
import json
import os
import signal
import subprocess

import holders
import host
from host import MIB, Broken, inject, tool

"""Notes what is durable so often that a run that is cut off soon has some."""
OFTEN = ("--checkpoint", "0.05")
"""Each write takes a while; with -D the program is the process that is started here."""
SLOWLY = ("strace", "-D", *inject("pwrite64,pwritev2", "delay_enter=30000")[1:])
"""Bytes before the first note of a chunk."""
NOTES_HEAD = 80


class Run:
    """A rebuild whose events are read while it runs."""

    def __init__(self, program, image, target, *flags, before=()):
        self.words = [*before, program.binary, "rebuild", image, target, "--keep-image-credentials", "--yes", *flags,
                      "--json", "--progress", "json", "--state-dir", program.state, "--threads", "1"]
        self.process = subprocess.Popen(self.words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)
        self.said = []

    def until(self, wanted):
        """Reads events until one is wanted, or to their end."""
        for line in self.process.stderr:
            self.said.append(line)
            event = json.loads(line) if line.startswith(b"{") else {}
            if wanted(event):
                return event
        raise Broken(f"it was over before: {b''.join(self.said[-3:])}")

    def until_copying(self):
        return self.until(lambda event: event.get("phase") == "copy" and event.get("bytes_done"))

    def end(self, patience=60):
        try:
            out, err = self.process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            err += f"\nno end after {patience} s".encode()
        err = b"".join(self.said[-3:]) + err
        return host.Outcome(self.words, self.process.returncode, out.decode(), err.decode())


def journals(program):
    """The journals of a state folder, by name, and the files of notes beside them."""
    folder = os.path.join(program.state, "journals")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    paths = [os.path.join(folder, name) for name in sorted(names)]
    return ([path for path in paths if path.endswith(".journal")],
            [path for path in paths if not path.endswith(".journal")])


def noted(program):
    """How many bytes of notes there are of chunks that are durable."""
    sizes = 0
    for path in journals(program)[1]:
        with contextlib.suppress(FileNotFoundError):
            sizes += max(os.path.getsize(path) - NOTES_HEAD, 0)
    return sizes


def cut(program, image, target, *flags):
    """Kills a rebuild in its copy, behind its first notes."""
    run = Run(program, image, target, *OFTEN, *flags, before=SLOWLY)
    # Notes may be those of an earlier run, and strace must not lose its program while it takes hold of it.
    run.until_copying()
    holders.until(lambda: noted(program) or run.process.poll() is not None)
    run.process.kill()
    outcome = run.end()
    if outcome.code != -signal.SIGKILL or not noted(program):
        raise Broken(f"it was not cut off in its copy: {outcome}")


class Frozen:
    """A file system of its own that is frozen: whatever writes to it waits until it is thawed."""

    def __init__(self, scratch, name, content):
        store = host.make(scratch / f"{name}.ext4", 160 * MIB)
        tool("mkfs.ext4", "-q", "-F", store)
        self.scratch, self.is_frozen = scratch, False
        self.device = scratch.loop(store)
        self.where = scratch.mount(self.device, f"mount-{name}")
        self.disk = os.path.join(self.where, "disk.raw")
        host.write(host.make(self.disk, 0), content)

    def freeze(self):
        tool("fsfreeze", "--freeze", self.where, timeout=20)
        self.is_frozen = True

    def thaw(self):
        if self.is_frozen:
            tool("fsfreeze", "--unfreeze", self.where)
            self.is_frozen = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.thaw()
        self.scratch.unmount(self.where)
        self.scratch.unloop(self.device)
