"""A packed image is decoded once where a file is replaced whole, and what comes of it is what its unpacked disk gives.

How often each packed byte is read is counted by strace. The disks are longer than a plan looks ahead, and their noise,
which packs to nearly all of the file, lies behind that."""

import os
import re

import check_streams
import disks
import host
from check_streams import packed, without_length
from host import MIB, tool

SHAPES = [
    ("gzip", "one member", packed("gzip", "-1")),
    ("gzip", "members", check_streams.in_parts(packed("gzip", "-1"), 3)),
    ("xz", "one block", packed("xz", "-0")),
    ("zstd", "a length", packed("zstd", "-q", "-1")),
    ("zstd", "no length", without_length),
]
# Of a report, what must be the same whether the image was packed.
SAME = ("root", "whole_digest", "gpt", "target_bytes", "target_state")
SIZE = 100 * MIB


def decoded_once(program, scratch, tally):
    for part in (once, before_as_well, supposed_wrongly, too_long, continues, undone):
        part(program, scratch.inside(f"once-{part.__name__}"), tally)


def noisy(path):
    """Noise where no plan looks."""
    host.write(path, host.noise(11, 6 * MIB), 80 * MIB)
    host.write(path, host.noise(12, 700_001), SIZE - 3 * MIB)
    return path


def with_gpt(path):
    return noisy(disks.gpt_image(path, SIZE, 3))


def without_table(path):
    """No table, and an end in the middle of a sector."""
    host.write(host.make(path, SIZE + 333), host.noise(13, 65536))
    host.write(path, b"the end", SIZE + 326)
    return noisy(path)


def old_disk(scratch, kind):
    """A disk that a run finds, and the words that say how it is to be written."""
    path = scratch / ("disk.qcow2" if "qcow2" in kind else "disk.img")
    flags = ["--target-format", "qcow2"] if "qcow2" in kind else []
    if kind == "replaced":
        host.write(host.make(path, SIZE + 2 * MIB), host.noise(14, MIB))
    elif kind == "replaced qcow2":
        tool("qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE + 2 * MIB))
    return path, flags


def rebuilt(program, scratch, image, kind, *more, before=()):
    """A rebuild, and the sha256 of the disk that came of it; the disk is removed."""
    disk, flags = old_disk(scratch, kind)
    outcome = program.rebuild(image, disk, *flags, *more, before=before)
    found = None
    if outcome.code == 0 and "qcow2" in kind:
        tool("qemu-img", "check", "-q", disk)
        tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, scratch / "flat.raw")
        found = host.checksum(scratch / "flat.raw")
        os.unlink(scratch / "flat.raw")
    elif outcome.code == 0:
        found = host.checksum(disk)
    if os.path.exists(disk):
        os.unlink(disk)
    return outcome, found


def traced(scratch):
    """The words that let a command tell into a file what it reads, and that file."""
    trace = scratch / "trace"
    calls = "trace=read,pread64,preadv,preadv2"
    return ("strace", "-f", "-qq", "-y", "--seccomp-bpf", "-o", trace, "-e", calls), trace


def bytes_read(trace, image):
    """How many bytes of a file were read."""
    count, waits = 0, set()
    with open(trace, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            thread = line.split()[0]
            is_of_image = f"<{image}>" in line or ("resumed>" in line and thread in waits)
            waits.discard(thread)
            if is_of_image and "<unfinished" in line:
                waits.add(thread)
            elif is_of_image and (found := re.search(r" = (\d+)$", line.rstrip())):
                count += int(found[1])
    return count


def once(program, scratch, tally):
    """Each codec, with a table and without, onto each kind of file that is replaced: once."""
    for table, make in (("gpt", with_gpt), ("no table", without_table)):
        source = make(scratch / "disk.raw")
        right = {}
        for codec, shape, pack in SHAPES:
            image = check_streams.make(scratch, codec, pack, source)
            size = os.path.getsize(image)
            for kind in ("replaced", "new", "replaced qcow2", "new qcow2"):
                name = f"{codec}, {shape}, {table}, {kind}"
                if kind not in right:
                    right[kind] = rebuilt(program, scratch, source, kind, "--whole-digest")
                found = []
                while len(found) < 3 and not any(0.99 < times < 1.3 for times in found):
                    before, trace = traced(scratch)
                    run = rebuilt(program, scratch, image, kind, "--whole-digest", before=before)
                    same_as_unpacked(tally, name, run, right[kind])
                    found.append(bytes_read(trace, image) / size)
                # A thread that a busy host lets wait comes too late for its piece, which is decoded again: not thrice.
                tally.expect(0.99 < min(found) < 1.3, f"{name}: decoded so often", found)
            os.unlink(image)
        os.unlink(source)


def before_as_well(program, scratch, tally):
    """Into a file or a device that is written into, all is decoded before anything changes."""
    source = with_gpt(scratch / "disk.raw")
    for codec, shape, pack in SHAPES:
        image = check_streams.make(scratch, codec, pack, source)
        size = os.path.getsize(image)
        for kind in ("in place", "device"):
            name = f"{codec}, {shape}, {kind}"
            disk = host.make(scratch / "system.raw", SIZE + 2 * MIB)
            target, flags = (scratch.loop(disk), []) if kind == "device" else (disk, ["--in-place"])
            before, trace = traced(scratch)
            outcome = program.rebuild(image, target, *flags, before=before)
            if tally.expect(outcome.code == 0, name, outcome):
                check_streams.same_as_source(tally, name, outcome, source, target)
            times = bytes_read(trace, image) / size
            tally.expect(times > 1.9, f"{name}: decoded before as well", f"{times:.2f}")
            if kind == "device":
                scratch.unloop(target)
            os.unlink(disk)
        os.unlink(image)


def same_as_unpacked(tally, name, packed_run, plain_run):
    """The same disk, root and sizes."""
    (outcome, found), (plain, right) = packed_run, plain_run
    if not tally.expect(outcome.code == plain.code, f"{name}: the same end", outcome) or outcome.code != 0:
        return
    tally.expect(found == right, f"{name}: the same disk")
    for key in SAME:
        tally.expect(outcome.report[key] == plain.report[key], f"{name}: the same {key}", outcome.report[key])
    sizes = [run.report["plan"]["image"]["virtual_size"] for run in (outcome, plain)]
    tally.expect(sizes[0] == sizes[1], f"{name}: the same virtual size", sizes)
    after = [run.report["plan"][key] for run in (outcome, plain) for key in ("after", "size_after")]
    tally.expect(after[:2] == after[2:], f"{name}: the same plan", after)


def spoil(path, what):
    """Makes the GPT tell another length than the disk has, or nothing that could be believed."""
    if what == "cut":
        os.truncate(path, SIZE - MIB - 100)
    elif what == "grown":
        os.truncate(path, SIZE + MIB + 100)
    elif what == "as long as the disk":
        os.truncate(path, SIZE + 2 * MIB)
    elif what == "another backup":
        host.write(path, host.noise(15, 512), SIZE - 10 * 512)
    elif what == "a damaged first":
        host.write(path, b"\xff", 1024 + 60)


def supposed_wrongly(program, scratch, tally):
    """What a plan supposed of the length, the table or its backup turns out to be wrong."""
    for what in ("cut", "grown", "as long as the disk", "another backup", "a damaged first"):
        source = with_gpt(scratch / "disk.raw")
        spoil(source, what)
        kinds = ("replaced", "new", "new qcow2")
        unpacked = {kind: rebuilt(program, scratch, source, kind) for kind in kinds}
        for codec, shape, pack in (SHAPES[0], SHAPES[4]):
            image = check_streams.make(scratch, codec, pack, source)
            for kind in kinds:
                plain, right = unpacked[kind]
                outcome, found = rebuilt(program, scratch, image, kind)
                name = f"{codec}, {shape}, {what}, {kind}"
                same_as_unpacked(tally, name, (outcome, found), (plain, right))
                if plain.code == 0:
                    about = [warned(run) for run in (outcome, plain)]
                    tally.expect(about[0] == about[1], f"{name}: the same warnings", about)
                else:
                    tally.expect(outcome.state == "untouched", f"{name}: untouched", outcome)
            os.unlink(image)
        os.unlink(source)


def warned(outcome):
    return [text for text in outcome.report["plan"]["warnings"] if "backup GPT" in text]


def too_long(program, scratch, tally):
    """Longer than the disk that is replaced: refused, and the old one is there."""
    source = host.make(scratch / "disk.raw", SIZE + 3 * MIB)
    noisy(source)
    host.write(source, b"the end", SIZE + 3 * MIB - 7)
    for codec, shape, pack in (SHAPES[0], SHAPES[1], SHAPES[4]):
        image = check_streams.make(scratch, codec, pack, source)
        for kind, code in (("replaced", 20), ("replaced qcow2", 12)):
            disk, flags = old_disk(scratch, kind)
            before, inode = host.checksum(disk), os.stat(disk).st_ino
            outcome = program.rebuild(image, disk, *flags)
            name = f"{codec}, {shape}, too long, {kind}"
            tally.expect(outcome.code == code and outcome.state == "untouched", name, outcome)
            same = os.stat(disk).st_ino == inode and host.checksum(disk) == before
            tally.expect(same, f"{name}: the old disk")
            left = [found for found in os.listdir(scratch.folder) if found.endswith(".reimage-unfinished")]
            tally.expect(not left, f"{name}: nothing is left", left)
            os.unlink(disk)
        os.unlink(image)


def continues(program, scratch, tally):
    """Killed in the middle of a file whose length is not known yet, a run goes on with it."""
    source = without_table(scratch / "disk.raw")
    host.write(source, host.noise(16, 24 * MIB), 40 * MIB)
    flags = ["--checkpoint", "0.01", "--threads", "2"]
    for codec, shape, pack in (SHAPES[1], SHAPES[4]):
        image = check_streams.make(scratch, codec, pack, source)
        for kind in ("new", "replaced"):
            name = f"{codec}, {shape}, killed, {kind}"
            # In the middle, where a slow disk may have made nothing durable yet, and when all is there but the name.
            for call, nth in (("pwritev2,pwrite64", 12), ("renameat2", 1)):
                disk, _ = old_disk(scratch, kind)
                killed = program.killed_at(call, nth, image, disk, *flags)
                tally.expect(killed.code == -9, f"{name} at {call}", killed)
                outcome = program.rebuild(image, disk, *flags)
                if tally.expect(outcome.code == 0, f"{name} at {call}: the next run completes it", outcome):
                    tally.expect(begins_as(source, disk), f"{name} at {call}: content")
                os.unlink(disk)
            if outcome.code == 0:
                kept = outcome.report["mode"], outcome.report["bytes_kept"] > 20 * MIB
                tally.expect(kept == ("resumed", True), f"{name}: goes on", kept)
        os.unlink(image)


def begins_as(source, disk):
    """Whether a disk holds the source, and zeroes behind it."""
    with open(source, "rb") as right, open(disk, "rb") as found:
        content = right.read()
        return found.read(len(content)) == content and not any(found.read())


def undone(program, scratch, tally):
    """The old disk is kept and comes back."""
    source = without_table(scratch / "disk.raw")
    image = check_streams.make(scratch, "zstd", without_length, source)
    disk, _ = old_disk(scratch, "replaced")
    before = host.checksum(disk)
    outcome = program.rebuild(image, disk, "--keep-old")
    tally.expect(outcome.code == 0 and host.checksum(disk) != before, "kept: rebuilt", outcome)
    back = program.run("undo", disk, "--yes", "--state-dir", program.state)
    tally.expect(back.code == 0 and host.checksum(disk) == before, "kept: undone", back)
