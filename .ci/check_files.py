"""A file that is replaced keeps all that is not its content, and is old or new at every instant."""

import os

import disks
import host
from host import MIB, speak, tool

GIB = 1024 * MIB


def dress(path):
    """Gives a file an owner, a mode, an attribute and an access list that are not the usual ones."""
    os.chown(path, 1234, 4321)
    os.chmod(path, 0o640)
    tool("setfattr", "--name=user.reimage.test", "--value=kept", path)
    tool("setfacl", "--modify=user:1001:r,group:4322:rw", path)


def dressing(path):
    found = os.stat(path)
    attributes = tool("getfattr", "--dump", "--match=-", "--absolute-names", path)
    return found.st_uid, found.st_gid, oct(found.st_mode), attributes, tool("getfacl", "--numeric", "-p", path)


def data_runs(path):
    """The parts of a sparse file that may hold something."""
    with open(path, "rb") as handle:
        end, at = os.fstat(handle.fileno()).st_size, 0
        while at < end:
            try:
                at = os.lseek(handle.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            hole = os.lseek(handle.fileno(), at, os.SEEK_HOLE)
            while at < hole:
                part = os.pread(handle.fileno(), min(hole - at, 4 * MIB), at)
                yield at, part
                at += len(part)


def same_but_for(ranges, left, right):
    """Whether two large sparse files hold the same, outside of some ranges."""
    where = {at: len(part) for path in (left, right) for at, part in data_runs(path)}
    with open(left, "rb") as one, open(right, "rb") as other:
        for at, length in where.items():
            parts = []
            for handle in (one, other):
                part = bytearray(os.pread(handle.fileno(), length, at).ljust(length, b"\0"))
                for skip in ranges:
                    start = max(skip["offset"] - at, 0)
                    end = min(skip["offset"] + skip["len"] - at, length)
                    if start < end:
                        part[start:end] = bytes(end - start)
                parts.append(bytes(part))
            if parts[0] != parts[1]:
                return f"they differ at {at + host.first_difference(*parts)}"
    return ""


def replaced(program, scratch, tally):
    """A 2 GiB image onto a 40 GiB disk file: the machine keeps its 40 GiB disk, and whose it is."""
    folder = scratch.folder_of("machine")
    image = disks.gpt_image(scratch / "system.raw", 2 * GIB, 5)
    qcow2 = scratch / "system.qcow2"
    tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", image, qcow2)
    disk = host.make(os.path.join(folder, "disk.raw"), 40 * GIB)
    disks.labelled(disk, "gpt")
    dress(disk)
    before, was, holder = dressing(disk), os.stat(disk).st_ino, open(disk, "rb")
    outcome = program.rebuild(qcow2, disk, "--allow-open-reader", os.getpid())
    name = "2 GiB onto a 40 GiB file"
    if tally.expect(outcome.code == 0, name, outcome):
        tally.expect(os.path.getsize(disk) == 40 * GIB, f"{name}: size", os.path.getsize(disk))
        tally.expect(not (why := disks.problems(disk)), f"{name}: sgdisk --verify", why)
        with open(disk, "rb") as handle:
            handle.seek(-512, os.SEEK_END)
            tally.expect(handle.read(8) == b"EFI PART", f"{name}: backup GPT at the end")
        tally.expect(disks.table(disk) == disks.table(image), f"{name}: partitions")
        tally.expect(dressing(disk) == before, f"{name}: owner, mode, attributes", (before, dressing(disk)))
        tally.expect(os.stat(disk).st_ino != was, f"{name}: it is a new file")
        tally.expect(os.fstat(holder.fileno()).st_nlink == 0, f"{name}: the old file is gone")
        tally.expect(os.listdir(folder) == ["disk.raw"], f"{name}: nothing else is left", os.listdir(folder))
        why = same_but_for(outcome.report["gpt"]["changed"], disk, image)
        tally.expect(not why, f"{name}: content", why)
        taken = os.stat(disk).st_blocks * 512
        tally.expect(taken < 64 * MIB, f"{name}: it is sparse", taken)
    holder.close()
    os.unlink(disk)
    sizes_asked(program, scratch, tally, qcow2)
    power_cuts(program, scratch, tally)


def sizes_asked(program, scratch, tally, image):
    """--size sets a file's size; what is smaller than the image is refused."""
    disk = scratch / "asked.raw"
    for old, asked, right in ((None, "3G", 3 * GIB), (GIB, "4G", 4 * GIB), (40 * GIB, "2G", 2 * GIB)):
        if old:
            host.make(disk, old)
        outcome = program.rebuild(image, disk, "--size", asked)
        name = f"--size {asked} on a file of {old} bytes"
        if tally.expect(outcome.code == 0, name, outcome):
            tally.expect(os.path.getsize(disk) == right, f"{name}: size", os.path.getsize(disk))
            tally.expect(not (why := disks.problems(disk)), f"{name}: sgdisk --verify", why)
        os.unlink(disk)
    host.make(disk, 3 * GIB)
    outcome = program.rebuild(image, disk, "--size", "1G")
    tally.expect(outcome.code == 12 and outcome.state == "untouched", "--size smaller than the image", outcome)
    os.unlink(disk)


def how_many(program, scratch, call, words):
    """How often a rebuild makes this system call."""
    log = scratch / "calls"
    program.rebuild(*words, "--threads", "1", before=("strace", "-f", "--seccomp-bpf", "-qq", "-e", f"trace={call}", "-o", log))
    with open(log, "rb") as lines:
        return sum(1 for _ in lines)


def power_cuts(program, scratch, tally):
    """Killed at every step, the path holds the old disk or the new one, whole, and nobody else can read it."""
    folder = scratch.folder_of("cut")
    image = disks.gpt_image(scratch / "cut.raw", 8 * MIB, 6)
    old = host.noise(13, 5 * MIB).ljust(16 * MIB, b"\0")
    disk = os.path.join(folder, "disk.raw")

    def old_disk():
        host.write(host.make(disk, 16 * MIB), old)
        dress(disk)
        return dressing(disk)

    dressed = old_disk()
    outcome = program.rebuild(image, disk)
    if not tally.expect(outcome.code == 0, "the rebuild that is going to be cut", outcome):
        return
    new = host.read(disk)
    seen = {"old": 0, "new": 0}
    calls = ("renameat2", "fsync", "fdatasync", "unlinkat", "unlink", "fchmod", "fchown", "fsetxattr",
             "ftruncate", "fallocate", "pwritev2,pwrite64", "openat", "write")
    for call in calls:
        # The program opens and writes many small things that say nothing new: as many as the host has processes.
        most, step = 300, 1
        if call in ("openat", "write"):
            old_disk()
            step = max(3, how_many(program, scratch, call, (image, disk)) // 60)
            most = 200 * step
        nth = 1
        while nth < most:
            old_disk()
            outcome = program.killed_at(call, nth, image, disk, "--threads", "1")
            if outcome.code == 0:
                break
            name = f"replaced file, killed at {call} {nth}"
            now = host.read(disk) if os.path.exists(disk) else b"nothing is there"
            which = "old" if now == old else "new" if now == new else "neither"
            seen[which] = seen.get(which, 0) + 1
            tally.expect(which != "neither", name, "the path holds neither the old nor the new disk")
            tally.expect(dressing(disk) == dressed, f"{name}: owner, mode, attributes", dressing(disk))
            if step == 1 or nth // step % 4 == 0:
                status = program.run("status", disk)
                tally.expect(status.code == 0, f"{name}: status", status)
                outcome = program.rebuild(image, disk)
                if tally.expect(outcome.code == 0, f"{name}: the next run", outcome):
                    tally.expect(host.read(disk) == new, f"{name}: content after the next run")
                    left = os.listdir(folder)
                    tally.expect(left == ["disk.raw"], f"{name}: the next run leaves nothing", left)
            for left in os.listdir(folder):
                os.unlink(os.path.join(folder, left))
            nth += step
        tally.expect(nth < most, f"replaced file: an end of {call}")
    tally.expect(seen["old"] and seen["new"], "both the old and the new disk were seen after a cut", seen)
    print(f"  replaced file, after {sum(seen.values())} cuts: {seen}")


def sizes(program, scratch, tally):
    """Raw images of every length around a border land exactly, whatever the target."""
    lengths = [0, 1, 511, 512, 513, 1000, 4095, 4096, 4097]
    lengths += [size * MIB + more for size in (1, 2, 4) for more in (-1, 0, 1)]
    image, target = scratch / "length.raw", scratch / "target.raw"
    dirt = host.noise(14, 12 * MIB)
    for length in lengths:
        data = host.noise(length, length)
        host.write(host.make(image, 0), data)
        for kind, size, flags in (
            ("new file", None, ()),
            ("larger file replaced", 7 * MIB + 5, ()),
            ("same file replaced", length, ()),
            ("larger file in place", length + 5 * MIB + 77, ("--in-place",)),
            ("same file in place", length, ("--in-place",)),
            ("one byte more, in place", length + 1, ("--in-place",)),
        ):
            name = f"raw image of {length} bytes, {kind}"
            if os.path.exists(target):
                os.unlink(target)
            if size is not None:
                host.write(host.make(target, 0), dirt[:size])
            outcome = program.rebuild(image, target, *flags)
            if not tally.expect(outcome.code == 0, name, outcome):
                continue
            why = host.holds(target, data)
            tally.expect(not why, f"{name}: content", why)
            right = length if size is None else size
            tally.expect(os.path.getsize(target) == right, f"{name}: size", os.path.getsize(target))
            verified = program.run("verify", image, target)
            tally.expect(verified.code == 0, f"{name}: verify", verified)


def device_images(program, scratch, tally):
    """A block device is an image too, read-only or not."""
    store = scratch / "image-store.raw"
    host.write(host.make(store, 9 * MIB), host.noise(21, 6 * MIB))
    right = host.read(store)
    for flags in ((), ("--read-only",)):
        device = scratch.loop(store, *flags)
        target = scratch / "from-device.raw"
        outcome = program.rebuild(device, target)
        name = f"an image on a device {' '.join(flags)}".strip()
        tally.expect(outcome.code == 0 and host.read(target) == right, name, outcome)
        outcome = program.rebuild(device, device)
        tally.expect(outcome.code == 11, f"{name}: it is not its own target", outcome)
        tally.expect(host.read(store) == right, f"{name}: as it was")
        os.unlink(target)
        scratch.unloop(device)
