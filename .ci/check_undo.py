#!/usr/bin/env python3
"""The old disk kept and brought back, byte for byte, whenever the rebuild or the undo is killed.

Usage: check_undo.py BINARY COUNT [SEED]. Kills COUNT rebuilds and as many undos at each place. Needs root.

At each place (a file that is replaced, one of qcow2, one that is written in place, a loop device) lies a disk with a
GPT and noise. A rebuild that keeps it, or an undo, is killed by SIGKILL: at a random moment, or as it enters a random
one of the system calls by which names and data become durable. Afterwards an undo, or another rebuild and then an undo,
must bring the old disk back in every byte, and leave nothing beside it or in the folder of what is kept.
"""

import copy
import os
import random
import signal
import subprocess
import sys
import time

import disks
import host
from host import MIB, tool

KILLS = 12
SEED = 11
PLACES = ("replaced", "qcow2", "in place", "loop")
SIZE = 64 * MIB
CALLS = ("fsync", "fdatasync", "renameat2", "rename", "unlinkat", "unlink", "pwrite64")
PATIENCE = 60
NOTHING_KEPT = 14


class Place:
    """A disk that is rebuilt and brought back again and again."""

    def __init__(self, kind, program, scratch, image):
        self.kind, self.program, self.image = kind, copy.copy(program), image
        self.folder = scratch.folder_of(kind.replace(" ", "-"))
        self.program.state = scratch.folder_of(f"state-{kind}")
        self.path = host.make(os.path.join(self.folder, "disk.raw"), SIZE)
        part = host.noise(9, 3 * MIB + 512)
        host.write(self.path, (part * (SIZE // len(part) + 1))[: SIZE - 5 * MIB])
        disks.labelled(self.path, "gpt")
        if kind == "qcow2":
            raw, self.path = self.path, os.path.join(self.folder, "disk.qcow2")
            tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, self.path)
            os.unlink(raw)
        self.old = host.read(self.path)
        self.target = scratch.loop(self.path) if kind == "loop" else self.path
        self.flags = ("--in-place",) if kind == "in place" else ()
        self.finished = None

    def words(self, verb, *more):
        common = (*more, "--yes", "--state-dir", self.program.state, "--json", "--progress", "none")
        if verb == "undo":
            return [self.program.binary, "undo", self.target, "--checkpoint", "0.05", *common]
        of_image = (self.image, self.target, "--keep-image-credentials", "--checkpoint", "0.05", *self.flags)
        return [self.program.binary, "rebuild", *of_image, *common]

    def run(self, verb, *more):
        words = self.words(verb, *more)
        ended = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
        texts = ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace")
        return host.Outcome(words, ended.returncode, *texts)

    def kill(self, verb, rng, seconds, *more):
        """Lets a run die; says where, and whether it had ended before."""
        words = self.words(verb, *more)
        if rng.random() < 0.5:
            call, nth = rng.choice(CALLS), rng.randint(1, 24)
            words = [*host.kill_at(call, nth), *words]
            ended = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
            return f"{verb} at {call} {nth}", ended.returncode == 0
        moment = rng.uniform(0, seconds)
        started = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        time.sleep(moment)
        started.send_signal(signal.SIGKILL)
        return f"{verb} after {moment:.3f} s", started.wait() == 0

    def read(self):
        return host.read(self.target)

    def read_disk(self):
        """What a machine sees of it."""
        if self.kind != "qcow2":
            return self.read()
        raw = os.path.join(self.program.state, "seen.raw")
        tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.target, raw)
        seen = host.read(raw)
        os.unlink(raw)
        return seen

    def left_over(self):
        beside = {name for name in os.listdir(self.folder) if name != os.path.basename(self.path)}
        kept = os.path.join(self.program.state, "kept")
        return beside | set(os.listdir(kept) if os.path.isdir(kept) else ())

    def reset(self):
        """The old disk under its name, and nothing else."""
        for name in self.left_over() & set(os.listdir(self.folder)):
            os.unlink(os.path.join(self.folder, name))
        host.write(self.target, self.old)
        if self.target == self.path:
            os.truncate(self.path, len(self.old))
        tool("rm", "-rf", self.program.state)
        os.mkdir(self.program.state)


def timed(place, verb, *more):
    began = time.monotonic()
    outcome = place.run(verb, *more)
    if outcome.code != 0:
        raise host.Broken(f"{place.kind}: an undisturbed {verb}: {outcome}")
    return time.monotonic() - began


def round_trip(place, tally):
    """Nobody disturbs it; returns how long a rebuild and an undo take."""
    place.reset()
    rebuilding = timed(place, "rebuild", "--keep-old")
    place.finished = place.read_disk()
    tally.expect(place.read() != place.old, f"{place.kind}: the rebuild changed the disk")
    status = place.program.run("status", place.target, "--state-dir", place.program.state)
    kept = (status.doc or {}).get("kept") or {}
    form = "file" if place.kind in ("replaced", "qcow2") else "copy"
    tally.expect(kept.get("form") == form and kept.get("is_there"), f"{place.kind}: status shows what is kept", status)
    if form == "copy":
        # An independent reader of what was kept.
        raw = place.path + ".kept"
        tool("qemu-img", "check", kept["path"])
        tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", kept["path"], raw)
        tally.expect(host.read(raw) == place.old, f"{place.kind}: qemu-img reads the old disk from the copy")
        os.unlink(raw)
    undoing = timed(place, "undo")
    check_old(place, f"{place.kind}, undisturbed", tally)
    return rebuilding, undoing


def check_old(place, name, tally):
    at = host.first_difference(place.read(), place.old)
    tally.expect(at is None, f"{name}: the old disk", f"byte {at} is wrong")
    # What a killed run left of itself, and not of what it was to keep, is pruned as ever.
    place.program.run("status", "--prune", "--state-dir", place.program.state)
    left = place.left_over()
    tally.expect(not left, f"{name}: nothing is left", left)


def killed_rebuild(place, rng, seconds, tally):
    place.reset()
    where, ended = place.kill("rebuild", rng, seconds, "--keep-old")
    follow = rng.choice(("undo", "undo", "rebuild", "plain rebuild"))
    name = f"{place.kind}: {where}, then {follow}"
    if follow != "undo":
        # A run that had ended is followed by one that would keep what it made.
        keep = ("--keep-old",) if follow == "rebuild" and not ended and not is_kept(place) else ()
        again = place.run("rebuild", *keep)
        if not tally.expect(again.code == 0, f"{name}: the next rebuild", again):
            return
        at = host.first_difference(place.read_disk(), place.finished)
        tally.expect(at is None, f"{name}: the finished disk", f"byte {at} is wrong")
    undone = place.run("undo")
    if follow == "plain rebuild" and undone.code == NOTHING_KEPT:
        # The killed run had kept nothing yet.
        return
    tally.expect(undone.code == 0 or follow == "undo" and undone.code == NOTHING_KEPT, f"{name}: undo", undone)
    check_old(place, name, tally)


def is_kept(place):
    status = place.program.run("status", place.target, "--state-dir", place.program.state)
    return bool((status.doc or {}).get("kept"))


def killed_undo(place, rng, seconds, tally):
    place.reset()
    timed(place, "rebuild", "--keep-old")
    where, _ = place.kill("undo", rng, seconds)
    follow = rng.choice(("undo", "rebuild"))
    name = f"{place.kind}: {where}, then {follow}"
    was_undone = not is_kept(place)
    if follow == "rebuild":
        again = place.run("rebuild")
        if not tally.expect(again.code == 0, f"{name}: the rebuild", again):
            return
        at = host.first_difference(place.read_disk(), place.finished)
        tally.expect(at is None, f"{name}: the finished disk", f"byte {at} is wrong")
        if was_undone:
            return
    undone = place.run("undo")
    tally.expect(undone.code == 0 or was_undone and undone.code == NOTHING_KEPT, f"{name}: undo", undone)
    check_old(place, name, tally)


def no_room(place, scratch, tally):
    """A state folder in which the old disk cannot be kept."""
    place.reset()
    small = scratch.tmpfs("small", "6M")
    state, place.program.state = place.program.state, small
    try:
        refused = place.run("rebuild", "--keep-old")
        tally.expect(refused.code == 12 and refused.state == "untouched", f"{place.kind}: no room", refused)
        tally.expect(place.read() == place.old, f"{place.kind}: no room: the disk is as it was")
    finally:
        place.program.state = state
        scratch.unmount(small)


def another_disk(place, scratch, tally):
    """Another file behind the name of the loop device."""
    place.reset()
    timed(place, "rebuild", "--keep-old")
    other = scratch / "other.raw"
    tool("cp", place.path, other)
    device = place.target
    tool("losetup", "--detach", device)
    tool("losetup", device, other)
    before = host.read(other)
    refused = place.run("undo")
    tally.expect(refused.code == 11 and refused.state == "untouched", "another disk of that name", refused)
    tally.expect(host.read(other) == before, "another disk of that name is as it was")
    tool("losetup", "--detach", device)
    tool("losetup", device, place.path)
    undone = place.run("undo")
    tally.expect(undone.code == 0, "the right disk again", undone)
    check_old(place, "the right disk again", tally)


def over_the_file(place, scratch, tally):
    """A loop device over a file that was replaced is told where the old one lies, and nothing is lost."""
    place.reset()
    timed(place, "rebuild", "--keep-old")
    device = scratch.loop(place.path)
    file, place.target = place.target, device
    refused = place.run("undo")
    place.target = file
    scratch.unloop(device)
    says = str(refused)
    told = "kept beside" in says and "detach" in says and "discard-old" not in says
    tally.expect(refused.code == 14 and told, "a loop device over the file", refused)
    timed(place, "undo")
    check_old(place, "the file without its loop device", tally)


def undo(program, scratch, tally, count=KILLS, seed=SEED):
    image = disks.gpt_image(scratch / "system.raw", 20 * MIB, 3)
    for at in range(8 * MIB, 18 * MIB, 2 * MIB):
        host.write(image, host.noise(at, MIB), at)
    for kind in PLACES:
        place = Place(kind, program, scratch, image)
        rng = random.Random(f"{seed} {kind}")
        rebuilding, undoing = round_trip(place, tally)
        print(f"  {kind}: a rebuild takes {rebuilding:.2f} s, an undo {undoing:.2f} s", flush=True)
        for _ in range(count):
            killed_rebuild(place, rng, rebuilding, tally)
            killed_undo(place, rng, undoing, tally)
        if kind in ("in place", "loop"):
            no_room(place, scratch, tally)
        if kind == "replaced":
            over_the_file(place, scratch, tally)
        if kind == "loop":
            another_disk(place, scratch, tally)


def main():
    if len(sys.argv) not in (3, 4) or os.geteuid() != 0:
        sys.exit(__doc__)
    tally, scratch = host.Tally(), host.Scratch("undo")
    try:
        seed = int(sys.argv[3]) if len(sys.argv) == 4 else SEED
        undo(host.Program(sys.argv[1], scratch), scratch, tally, int(sys.argv[2]), seed)
    finally:
        scratch.close()
    tally.end()


if __name__ == "__main__":
    main()
