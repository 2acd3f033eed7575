"""Partition tables move whole, and a disk whose rebuild was interrupted shows nothing to anybody."""

import contextlib
import os
import signal
import subprocess
import time

import disks
import host
from host import MIB, tool


def loop_of(scratch, name, size, *flags):
    return scratch.loop(host.make(scratch / name, size), *flags)


def unchanged_but_for(ranges, found, image):
    """Where a disk differs from the image with zeroes behind it, outside of the ranges; '' if nowhere."""
    expected = bytearray(image + bytes(len(found) - len(image)))
    found = bytearray(found)
    for part in ranges:
        nothing = bytes(part["len"])
        expected[part["offset"] : part["offset"] + part["len"]] = nothing
        found[part["offset"] : part["offset"] + part["len"]] = nothing
    at = host.first_difference(bytes(found), bytes(expected))
    return "" if at is None else f"byte {at} differs and the report does not name it: {ranges}"


def gpt(program, scratch, tally):
    """The backup GPT moves to the end of a larger disk; everything else stays as the image has it."""
    image = disks.gpt_image(scratch / "debian.raw", 64 * MIB)
    qcow2 = scratch / "debian.qcow2"
    tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", image, qcow2)
    before, bytes_before = disks.table(image), host.read(image)
    sizes = (64 * MIB, 64 * MIB + 512, 65 * MIB, 96 * MIB + 512, 3 * 1024 * MIB)
    for size in sizes:
        for kind in ("file", "in place", "loop"):
            name = f"gpt onto {kind} of {size} bytes"
            target, flags = scratch / "disk.raw", ()
            host.make(target, size)
            if kind == "in place":
                disks.labelled(target, "ext4")
                flags = ("--in-place",)
            elif kind == "loop":
                target = scratch.loop(target)
            outcome = program.rebuild(qcow2, target, *flags)
            if tally.expect(outcome.code == 0, name, outcome):
                tally.expect(not (why := disks.problems(target)), f"{name}: sgdisk --verify", why)
                tally.expect(disks.table(target) == before, f"{name}: partitions and GUIDs", disks.table(target))
                moved = outcome.report.get("gpt", {})
                changed = moved.get("changed", [])
                tally.expect(sum(part["len"] for part in changed) <= 64 << 10, f"{name}: few bytes change", moved)
                if size < 1024 * MIB:
                    found = host.read(target)
                    tally.expect(found[:440] == bytes_before[:440], f"{name}: boot code")
                    why = unchanged_but_for(changed, found, bytes_before)
                    tally.expect(not why, f"{name}: the other bytes", why)
                    verified = program.run("verify", qcow2, target)
                    tally.expect(verified.code == 0, f"{name}: verify", verified)
                tally.expect(host.size_of(target) == size, f"{name}: size", host.size_of(target))
            if kind == "loop":
                scratch.unloop(target)
    target = host.make(scratch / "disk.raw", 96 * MIB)
    outcome = program.rebuild(image, target, "--gpt", "keep")
    why = host.holds(target, bytes_before) if outcome.code == 0 else outcome
    tally.expect(not why, "gpt kept: every byte as in the image", why)
    sectors(program, scratch, tally, image)


def sectors(program, scratch, tally, image):
    """An image goes only onto a disk of its own sector size."""
    mbr = host.make(scratch / "mbr.raw", 8 * MIB)
    tool("sfdisk", "--quiet", mbr, stdin=b"label: dos\nstart=2048, type=83, bootable\n")
    device = loop_of(scratch, "4kn.raw", 80 * MIB, "--sector-size", "4096")
    host.write(device, host.noise(11, 80 * MIB))
    before = host.checksum(device)
    for name, source in (("a GPT of 512-byte sectors", image), ("an MBR", mbr)):
        for command in ("rebuild", "plan"):
            words = ("--keep-image-credentials", *(("--yes",) if command == "rebuild" else ()))
            outcome = program.run(command, source, device, *words)
            name_of = f"{command} {name} onto 4096-byte sectors"
            tally.expect(outcome.code == 12, f"{name_of}: exit 12", outcome)
            tally.expect(outcome.state == "untouched", f"{name_of}: says untouched", outcome)
            tally.expect(host.checksum(device) == before, f"{name_of}: device unchanged")
    large = scratch / "large-sectors.raw"
    made = loop_of(scratch, "large-sectors.raw", 16 * MIB, "--sector-size", "4096")
    tool("sgdisk", "--clear", "--new=1:0:0", made)
    host.flush(made)
    scratch.unloop(made)
    outcome = program.rebuild(large, device)
    tally.expect(outcome.code == 0, "a GPT of 4096-byte sectors onto such a device", outcome)
    tally.expect(not (why := disks.problems(device)), "a GPT of 4096-byte sectors: sgdisk --verify", why)
    small = loop_of(scratch, "small-sectors.raw", 32 * MIB)
    outcome = program.rebuild(large, small)
    tally.expect(outcome.code == 12, "a GPT of 4096-byte sectors onto 512-byte sectors: exit 12", outcome)
    for device in (device, small):
        scratch.unloop(device)


DISK = 64 * MIB + 65536


WHOLE = ("--threads", "1", "--mode", "full", "--restart")
"""A run that makes all its calls, whatever the one before it left."""


class Interrupted:
    """One disk with old labels, rebuilt again and again, and killed each time one system call later."""

    def __init__(self, program, scratch, tally, kind, place):
        self.program, self.tally = program, tally
        self.name = f"old {kind} disk, {place}"
        self.image = scratch / "new-system.raw"
        self.image_bytes = host.read(self.image)
        self.flags = ("--in-place",) if place == "in place" else ()
        path = host.make(scratch / "interrupted.raw", DISK)
        self.target = path if self.flags else scratch.loop(path)
        disks.labelled(self.target, kind)
        self.old = host.read(self.target)
        self.old_pieces = host.pieces(self.old)
        outcome = program.rebuild(self.image, self.target, *self.flags)
        if outcome.code != 0:
            raise host.Broken(f"{self.name}: {outcome}")
        self.done = host.read(self.target)
        tail_start = (DISK - MIB) // disks.CHUNK * disks.CHUNK
        self.tail = slice(tail_start, DISK)
        self.seen = {}

    def state(self):
        """Which step the disk stands at, by its bytes."""
        now = host.read(self.target)
        if now == self.old:
            return "untouched"
        if now == self.done:
            return "done"
        if not now.startswith(b"reimage: unfinished rebuild\n"):
            return "broken"
        head, tail = now[4096 : disks.CHUNK], now[self.tail]
        if not any(head) and not any(tail):
            return "between"
        # The old tail goes last of the two ends, and the new one comes first.
        return "invalidating" if tail == self.old[self.tail] else "finishing"

    def examine(self, where):
        state = self.state()
        self.seen[state] = self.seen.get(state, 0) + 1
        name = f"{self.name}, killed at {where}: {state}"
        self.tally.expect(state != "broken", name, "neither the old disk, nor the marker, nor the new disk")
        if state == "between":
            self.tally.expect(not (seen := disks.sightings(self.target)), f"{name}: nothing to see", seen)
        if state in ("invalidating", "finishing"):
            # One end is there and the other is not: nothing that mounts or boots by itself may see it.
            code, text = host.speak("blkid", "--probe", "--cache-file", "/dev/null", self.target)
            old = {"zfs_member", "linux_raid_member"} if state == "invalidating" else set()
            good = code == 2 or any(word in text for word in old)
            self.tally.expect(good, f"{name}: blkid", text)
        if state in ("between", "invalidating", "finishing"):
            status = self.program.run("status", self.target)
            good = status.code == 0 and (status.doc or {}).get("state") == "failed"
            self.tally.expect(good, f"{name}: status", status)
        return state

    def again(self, where):
        outcome = self.program.rebuild(self.image, self.target, *self.flags)
        name = f"{self.name}, run again after {where}"
        if self.tally.expect(outcome.code == 0, name, outcome):
            self.tally.expect(host.read(self.target) == self.done, f"{name}: content")

    def at_every(self, call, step):
        """Kills the program at more and more of one system call, until it ends by itself."""
        nth = 1
        while nth < 400:
            host.restore(self.target, self.old_pieces)
            where = f"{call} {nth}"
            outcome = self.program.killed_at(call, nth, self.image, self.target, *WHOLE, *self.flags)
            if outcome.code == 0:
                self.tally.expect(nth > 1, f"{self.name}: {call} is called", "never")
                return
            state = self.examine(where)
            if state not in ("untouched", "broken") and nth % step == 1:
                self.again(where)
            nth += 1
        self.tally.expect(False, f"{self.name}: an end of {call}", "no end after 400")

    def in_the_end(self):
        """Kills the program while it writes the ends: every sync takes a while, so that the moment can be met."""
        for _ in range(10):
            host.restore(self.target, self.old_pieces)
            slow = host.inject("fdatasync", "delay_enter=400000", self.target)
            words = [*slow, *self.program.words("rebuild", self.image, self.target, *WHOLE, *self.flags)]
            words += ["--keep-image-credentials", "--yes"]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL, start_new_session=True)
            late = time.monotonic() + 60
            while process.poll() is None and self.state() != "finishing" and time.monotonic() < late:
                time.sleep(0.01)
            # It may have come to its end meanwhile.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if self.examine("the end") == "finishing":
                self.again("the end")
                return


def unfinished(program, scratch, tally):
    """Killed at any instant, the disk is old, or unfinished and says so and shows nothing, or complete."""
    disks.gpt_image(scratch / "new-system.raw", 12 * MIB, 3)
    calls = {"loop": ("pwrite64", "ioctl", "fdatasync"), "in place": ("pwritev2,pwrite64", "fallocate", "fdatasync")}
    for kind, place in (("gpt", "loop"), ("ext4", "in place"), ("ext4", "loop")):
        disk = Interrupted(program, scratch, tally, kind, place)
        for call in calls[place]:
            disk.at_every(call, 5)
        disk.in_the_end()
        for state in ("between", "finishing"):
            tally.expect(disk.seen.get(state), f"{disk.name}: seen {state}", disk.seen)
        if place == "loop":
            scratch.unloop(disk.target)
        print(f"  {disk.name}: {disk.seen}")
