"""What goes wrong in the middle: the exit code, what is said of the disk, and what the disk says itself."""

import json
import os
import signal
import subprocess
import time

import disks
import host
from check_refusals import spoil_compressed, text_image
from host import MIB, inject, tool

CHUNK = disks.CHUNK


def says_unfinished(program, tally, name, disk):
    """The disk's head says so, `status` reads it, and nothing boots from it."""
    status = program.run("status", disk)
    good = status.code == 0 and (status.doc or {}).get("state") == "failed"
    tally.expect(good, f"{name}: status", status)
    head = host.read(disk, 0, 4096)
    marked = head.startswith(b"reimage: unfinished rebuild\n") and head[510:512] != b"\x55\xaa"
    tally.expect(marked, f"{name}: the marker", head[:64])


def io_errors(program, scratch, tally):
    image = scratch / "image.raw"
    host.write(host.make(image, 0), host.noise(31, 8 * MIB))
    for part in (no_room, every_call_fails, odd_holes, sync_fails, replaced_fails, reads_back_wrong, image_fault, data_disk_changes, seed_fails):
        part(program, scratch, tally, image)


def failed(tally, name, outcome, code, states):
    tally.expect(outcome.code == code, f"{name}: exit {code}", outcome)
    tally.expect(outcome.state in states, f"{name}: says {states}", outcome)


def no_room(program, scratch, tally, image):
    """A disk that takes less than it says."""
    room = scratch.tmpfs("room", "4M")
    thin = host.make(os.path.join(room, "thin.raw"), 16 * MIB)
    outcome = program.rebuild(image, thin, "--in-place")
    failed(tally, "a file on a full file system", outcome, 30, ("invalidated", "partial"))
    tally.expect(outcome.error.get("path") == thin, "a file on a full file system: its path", outcome)
    says_unfinished(program, tally, "a file on a full file system", thin)
    device = scratch.loop(host.make(thin, 16 * MIB))
    outcome = program.rebuild(image, device)
    failed(tally, "a device that is full", outcome, 30, ("invalidated", "partial"))
    says_unfinished(program, tally, "a device that is full", device)
    scratch.unloop(device)
    scratch.unmount(room)

    disk = host.make(scratch / "limited.raw", 16 * MIB)
    outcome = program.rebuild(
        image, disk, "--in-place", before=("bash", "-c", 'ulimit -f 4096; exec "$@"', "limited")
    )
    failed(tally, "a limit on file sizes", outcome, 30, ("invalidated", "partial"))
    says_unfinished(program, tally, "a limit on file sizes", disk)
    outcome = program.rebuild(image, disk, "--in-place")
    tally.expect(outcome.code == 0, "the next run without the limit", outcome)


def every_call_fails(program, scratch, tally, image):
    """The nth of each system call fails: what is said of the disk is true, and no half of it looks complete."""
    calls = ("newfstatat", "renameat2", "fsync", "fdatasync", "unlinkat", "ftruncate", "fallocate", "pwritev2")
    for placement, flags in (("replaced", ()), ("in place", ("--in-place", "--size", "24M"))):
        folder = scratch.folder_of(placement.replace(" ", "-"))
        disk = os.path.join(folder, "disk.raw")
        old = host.noise(17, 16 * MIB)
        host.write(host.make(disk, 16 * MIB), old)
        outcome = program.rebuild(image, disk, *flags)
        tally.expect(outcome.code == 0, f"{placement}: the rebuild that is going to fail", outcome)
        new = host.read(disk)
        for call in calls:
            for nth in range(1, 100):
                os.unlink(disk)
                host.write(host.make(disk, 16 * MIB), old)
                outcome = program.rebuild(image, disk, "--threads", "1", *flags,
                                          before=inject(call, f"error=EIO:when={nth}"))
                name, now = f"{placement}, {call} {nth} fails", host.read(disk)
                if outcome.state == "untouched":
                    tally.expect(now == old, f"{name}: not one byte has changed", outcome)
                unfinished = now.startswith(b"reimage: unfinished rebuild\n")
                tally.expect(now in (old, new) or unfinished, f"{name}: old, new or unfinished", outcome)
                if outcome.code and placement == "in place":
                    tally.expect(now == old or unfinished or outcome.state == "verified", f"{name}: not complete", outcome)
                for left in set(os.listdir(folder)) - {"disk.raw"}:
                    # Only what could not be removed, or the old disk behind an exchange, may stay.
                    tally.expect(call == "unlinkat" or now == new, f"{name}: leaves {left}", outcome)
                    os.unlink(os.path.join(folder, left))
                if outcome.code == 0:
                    break


def odd_holes(program, scratch, tally, _image):
    """Images with a hole at an odd end, onto larger devices of both sector sizes."""
    for size, sector in ((10 * MIB + 100, 512), (10 * MIB + 512, 4096), (3 * MIB + 1, 4096)):
        image = host.make(scratch / f"hole-{size}.raw", size)
        host.write(image, host.noise(5, 2 * MIB))
        store = scratch / "odd-holes.raw"
        host.write(host.make(store, 32 * MIB), b"\xaa" * 32 * MIB)
        device = scratch.loop(store, "-b", str(sector))
        outcome = program.rebuild(image, device)
        tally.expect(outcome.code == 0, f"a hole that ends at {size}, {sector}-byte sectors", outcome)
        scratch.unloop(device)
        right = host.read(image).ljust(32 * MIB, b"\0")
        tally.expect(host.read(store) == right, f"a hole that ends at {size}, {sector}-byte sectors: content")


def sync_fails(program, scratch, tally, image):
    """Every sync, write and zeroing in turn fails: never `done`, and the disk says that it is unfinished."""
    old, done = host.noise(33, 16 * MIB), host.read(image).ljust(16 * MIB, b"\0")
    for place in ("in place", "device"):
        backing = host.make(scratch / "sync.raw", 16 * MIB)
        flags = ("--in-place",) if place == "in place" else ()
        disk = backing if flags else scratch.loop(backing)
        for call in ("fdatasync", "fsync", "pwrite64,pwritev2", "ioctl" if place == "device" else "fallocate"):
            nth = 1
            while nth < 60:
                host.write(disk, old)
                fault = inject(call, f"error=EIO:when={nth}")
                outcome = program.rebuild(image, disk, "--threads", "1", *flags, before=fault)
                if outcome.code == 0:
                    break
                after_fault(program, tally, f"{place}: {call} {nth} fails", outcome, disk, (old, done))
                nth += 1
            tally.expect(nth < 60, f"{place}: an end of {call}")
            why = host.holds(disk, host.read(image))
            tally.expect(not why, f"{place}: the disk of the run in which no {call} fails", why)
        if not flags:
            scratch.unloop(disk)


def after_fault(program, tally, name, outcome, disk, contents):
    """The exit code and the state that is told agree with what the disk holds."""
    old, done = contents
    now = host.read(disk)
    if outcome.state == "untouched":
        tally.expect(now == old, f"{name}: untouched is true", outcome)
        return
    # The fault may hit the very last step, whose bytes then lie there and may not be durable.
    states = ("written", "verified") if now == done else ("invalidated", "partial", "written")
    failed(tally, name, outcome, 30, states)
    if now not in (old, done):
        says_unfinished(program, tally, name, disk)


def replaced_fails(program, scratch, tally, image):
    """A file that cannot be replaced is the old one, and nothing is left beside it."""
    folder = scratch.folder_of("replaced")
    disk = os.path.join(folder, "disk.raw")
    for call, error in (("renameat2", "EIO"), ("pwritev2,pwrite64", "ENOSPC"), ("fdatasync", "EIO"),
                        ("fsetxattr,fchmod", "EPERM"), ("ftruncate", "EFBIG")):
        nth = 1
        while nth < 40:
            host.write(host.make(disk, 0), host.noise(34, 12 * MIB))
            before = host.checksum(disk)
            outcome = program.rebuild(
                image, disk, "--threads", "1", before=inject(call, f"error={error}:when={nth}")
            )
            name = f"replaced file: {call} {nth} fails"
            if outcome.code == 0 or outcome.state == "verified":
                # What was written before a sync that fails is written again; behind the exchange the disk is complete.
                why = host.holds(disk, host.read(image))
                tally.expect(not why, f"{name}: it is the new disk", why)
                if call != "fdatasync" or nth == MOST_SYNCS:
                    break
                nth += 1
                continue
            # The first of some calls is about the state folder.
            tally.expect(outcome.code in (2, 12, 14, 30), f"{name}: exit", outcome)
            tally.expect(outcome.state == "untouched", f"{name}: says untouched", outcome)
            tally.expect(host.checksum(disk) == before, f"{name}: it is the old disk")
            tally.expect(os.listdir(folder) == ["disk.raw"], f"{name}: nothing is left", os.listdir(folder))
            nth += 1
        tally.expect(1 < nth < 40, f"replaced file: {call} is called, and an end of it", nth)


MOST_SYNCS = 9
"""A run that replaces a file makes fewer syncs of one kind on one thread."""


def reads_back_wrong(program, scratch, tally, _image):
    """A write that the disk forgets is found, repaired and reported; one that it always forgets is 31."""
    image = scratch / "twelve-chunks.raw"
    host.write(host.make(image, 0), host.noise(32, 12 * CHUNK))
    disk = scratch.loop(host.make(scratch / "forgetful.raw", 16 * CHUNK))
    words = (image, disk, "--threads", "1", "--mode", "full", "--restart")
    lost = f"retval={CHUNK}"
    # The thread that copies writes whole chunks; the other one makes fewer calls than five on the disk.
    for nth in range(5, 11):
        host.write(disk, host.noise(35, 16 * CHUNK))
        outcome = program.rebuild(*words, before=inject("pwrite64", f"{lost}:when={nth}", disk))
        repairs = outcome.report.get("repairs") or []
        name = f"write {nth} is forgotten"
        tally.expect(outcome.code == 0 and len(repairs) == 1, f"{name}: it is found and repaired", (repairs, outcome))
        for repair in repairs:
            at = repair["first_differing"]
            # The whole chunk is lost, and the noise before differs in its first byte, or soon.
            right = 0 <= at - repair["range"]["offset"] < 64 and repair["range"]["offset"] % CHUNK == 0
            tally.expect(right and repair["rewrites"] == 1, f"{name}: its offset", repairs)
        why = host.holds(disk, host.read(image))
        tally.expect(not why, f"{name}: the disk after the repair", why)
    host.write(disk, host.noise(35, 16 * CHUNK))
    # The marker is two short writes, which are left alone.
    outcome = program.rebuild(*words, before=inject("pwrite64", f"{lost}:when=3+", disk))
    failed(tally, "every write is forgotten", outcome, 31, ("partial", "written"))
    tally.expect(isinstance(outcome.error.get("offset"), int), "every write is forgotten: the offset", outcome)
    says_unfinished(program, tally, "every write is forgotten", disk)

    outcome = program.rebuild(image, disk)
    tally.expect(outcome.code == 0, "the next run", outcome)
    for offset in (0, 4095, 5 * MIB + 3, 12 * CHUNK - 1, 12 * CHUNK, 16 * CHUNK - 1):
        byte = host.read(disk, offset, 1)
        host.write(disk, bytes([byte[0] ^ 1]), offset)
        before = host.checksum(disk)
        verified = program.run("verify", image, disk)
        name = f"verify of a disk with bit 0 of byte {offset} flipped"
        tally.expect(verified.code == 31, f"{name}: exit 31", verified)
        tally.expect(str(offset // CHUNK * CHUNK) in verified.out or str(offset) in verified.out,
                     f"{name}: names its place", verified)
        tally.expect(host.checksum(disk) == before, f"{name}: writes nothing")
        host.write(disk, byte, offset)
    scratch.unloop(disk)


def image_fault(program, scratch, tally, _image):
    """A cluster that does not decode, found during the copy."""
    image = text_image(scratch)
    # Where no superblock is looked for: a fault in one of those is found before.
    spoil_compressed(image, 5 * MIB // 2)
    disk = scratch / "faulty-image.raw"
    host.write(host.make(disk, 0), host.noise(36, 9 * MIB))
    outcome = program.rebuild(image, disk, "--in-place", "--preflight", "tables")
    failed(tally, "a cluster that does not decode, in place", outcome, 32, ("invalidated", "partial"))
    says_unfinished(program, tally, "a cluster that does not decode", disk)
    host.write(host.make(disk, 0), host.noise(36, 9 * MIB))
    before = host.checksum(disk)
    outcome = program.rebuild(image, disk)
    failed(tally, "a cluster that does not decode, replaced file", outcome, 32, ("untouched",))
    tally.expect(host.checksum(disk) == before, "a cluster that does not decode, replaced file: unchanged")


def data_disk_changes(program, scratch, tally, image):
    """Somebody else writes to a data disk meanwhile: 33, and the system disk is complete."""
    disk, data = scratch / "with-data.raw", scratch / "data-disk.raw"
    host.write(host.make(disk, 0), host.noise(37, 9 * MIB))
    host.write(host.make(data, 0), host.noise(38, MIB))
    flags = ("--keep-image-credentials", "--yes", "--in-place", "--data-disk", data)
    words = [*inject("fdatasync", "delay_enter=700000"), *program.words("rebuild", image, disk, *flags)]
    started = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    late = time.monotonic() + 30
    while not host.read(disk, 0, 28).startswith(b"reimage: unfinished") and time.monotonic() < late:
        time.sleep(0.05)
    host.write(data, b"somebody else was here")
    out, err = started.communicate(timeout=120)
    outcome = host.Outcome(words, started.returncode, out.decode(), err.decode())
    failed(tally, "a data disk changes", outcome, 33, ("verified",))
    tally.expect(outcome.error.get("path") == data, "a data disk changes: its path", outcome)
    why = host.holds(disk, host.read(image))
    tally.expect(not why, "a data disk changes: the system disk is complete", why)
    outcome = program.rebuild(image, disk, "--in-place", "--data-disk", data)
    tally.expect(outcome.code == 0, "a data disk rests", outcome)


def seed_fails(program, scratch, tally, image):
    """A seed that cannot be put into place: 40, and the disk stays unfinished."""
    folder = scratch.folder_of("seed-folder")
    seed, password = os.path.join(folder, "seed.iso"), scratch / "password"
    host.write(host.make(password, 0), b"correct horse battery\n")
    words = ("--yes", "--seed", seed, "--password-file", password)
    for place in ("in place", "replaced"):
        disk = scratch / "seeded.raw"
        host.write(host.make(disk, 0), host.noise(39, 9 * MIB))
        before = host.checksum(disk)
        flags = ("--in-place",) if place == "in place" else ()
        fault = inject("rename,renameat,renameat2", "error=EIO:when=1")
        outcome = program.run("rebuild", image, disk, *words, *flags, before=fault)
        name = f"a seed that fails, {place}"
        failed(tally, name, outcome, 40, ("partial", "written") if flags else ("untouched",))
        tally.expect(os.listdir(folder) == [], f"{name}: nothing is left of it", os.listdir(folder))
        if flags:
            says_unfinished(program, tally, name, disk)
        else:
            tally.expect(host.checksum(disk) == before, f"{name}: it is the old disk")
        outcome = program.run("rebuild", image, disk, *words, *flags)
        tally.expect(outcome.code == 0, f"{name}: the next run", outcome)
        tally.expect(os.listdir(folder) == ["seed.iso"], f"{name}: the next run's seed", os.listdir(folder))
        if os.path.exists(seed):
            tally.expect(os.stat(seed).st_mode & 0o777 == 0o600, f"{name}: the seed is readable by its owner alone")
            os.unlink(seed)


def signals(program, scratch, tally):
    """A signal ends a run at a chunk's border: its own exit code, a disk that says so, and a way on."""
    image = scratch / "long.raw"
    host.write(host.make(image, 0), host.noise(40, 64 * MIB) * 6)
    disk = host.make(scratch / "cancelled.raw", 400 * MIB)
    device = scratch.loop(disk)
    for number, code in ((signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        for target in (disk, device):
            flags = ("--in-place",) if target == disk else ()
            if target == disk:
                scratch.unloop(device)
            else:
                target = device = scratch.loop(disk)
            cancel(program, tally, (image, target, *flags), number, code)
            name = f"cancelled by signal {number}"
            says_unfinished(program, tally, name, target)
    outcome = program.rebuild(image, device)
    tally.expect(outcome.code == 0, "the run after the cancelled ones", outcome)
    why = host.holds(device, host.read(image))
    tally.expect(not why, "the run after the cancelled ones: content", why)
    scratch.unloop(device)
    before = host.checksum(disk)
    cancel(program, tally, (image, disk), signal.SIGINT, 130, ("untouched",))
    tally.expect(host.checksum(disk) == before, "a replacement that was cancelled: the old disk")


def cancel(program, tally, words, number, code, states=("invalidated", "partial", "written")):
    """Starts a run, waits for its copy, and sends the signal."""
    words = [program.binary, "rebuild", *words, "--keep-image-credentials", "--yes", "--json",
             "--progress", "json", "--state-dir", program.state, "--threads", "1"]
    started = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    seen = []
    for line in started.stderr:
        seen.append(line.decode())
        event = json.loads(line)
        # The phase's first event: on a fast host the copy is over before there is another.
        if event.get("type") == "progress" and event.get("phase") == "copy":
            break
    started.send_signal(number)
    out, err = started.communicate(timeout=120)
    outcome = host.Outcome(words, started.returncode, out.decode(), "".join(seen[-3:]) + err.decode())
    failed(tally, f"signal {number}", outcome, code, states)
    tally.expect(outcome.error.get("code") == code, f"signal {number}: the document's code", outcome)
