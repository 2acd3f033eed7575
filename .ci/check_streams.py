#!/usr/bin/env python3
"""Packed images: what comes out is what was packed, or the image is refused and the disk is the old one."""

import os
import struct
import subprocess
import time

import disks
import host
from host import MIB, tool

GIB = 1024 * MIB
MOST_MEMORY = 128 * MIB
# Faults of the image, told before anything is changed.
REFUSED = 20
ENDINGS = {"gzip": "gz", "xz": "xz", "zstd": "zst"}


def packed(codec, *flags):
    """A way to pack a file with a program of the host, from its name or from a pipe."""

    def pack(source, target, piped=False):
        with open(target, "wb") as out, open(source, "rb") as disk:
            words = [codec, *flags, "-c"] + ([] if piped else [source])
            subprocess.run(words, stdin=disk if piped else subprocess.DEVNULL, stdout=out, check=True,
                           stderr=subprocess.DEVNULL, timeout=600)

    return pack


def in_parts(pack, count):
    """The disk in several parts, each packed by itself: members, streams, frames."""

    def several(source, target):
        size = os.path.getsize(source)
        step = max(-(-size // count), 1)
        with open(source, "rb") as disk, open(target, "wb") as out:
            for part in [disk.read(step) for _ in range(count)]:
                host.write(host.make(f"{target}.part", 0), part)
                pack(f"{target}.part", f"{target}.packed")
                out.write(host.read(f"{target}.packed"))
        os.unlink(f"{target}.part")
        os.unlink(f"{target}.packed")

    return several


def without_length(source, target):
    packed("zstd", "-q", "-1")(source, target, piped=True)


def seekable(source, target):
    """Frames of 1 MiB without their lengths, and the table of zstd's seekable format behind them."""
    table, frame = b"", f"{target}.frame"
    with open(source, "rb") as disk, open(target, "wb") as out:
        while (part := disk.read(MIB)) or not table:
            host.write(host.make(f"{target}.part", 0), part)
            without_length(f"{target}.part", frame)
            out.write(host.read(frame))
            table += struct.pack("<II", os.path.getsize(frame), len(part))
            if not part:
                break
        table += struct.pack("<IBI", len(table) // 8, 0, 0x8F92EAB1)
        out.write(struct.pack("<II", 0x184D2A5E, len(table)) + table)
    os.unlink(f"{target}.part")
    os.unlink(frame)


SHAPES = [
    ("gzip", "one member", packed("gzip", "-1")),
    ("gzip", "members", in_parts(packed("gzip", "-6"), 3)),
    ("xz", "one block", packed("xz", "-0")),
    ("xz", "blocks by threads", packed("xz", "-0", "-T2", "--block-size=1MiB")),
    ("xz", "streams, sha256", in_parts(packed("xz", "-0", "-C", "sha256"), 3)),
    ("xz", "64 MiB dictionary, x86 filter", packed("xz", "--x86", "--lzma2=preset=0,dict=64MiB")),
    ("zstd", "a length", packed("zstd", "-q", "-1")),
    ("zstd", "no length", without_length),
    ("zstd", "threads", packed("zstd", "-q", "-1", "-T2")),
    ("zstd", "frames", in_parts(packed("zstd", "-q", "-1"), 3)),
    ("zstd", "64 MiB window", packed("zstd", "-q", "-1", "--long=26")),
    ("zstd", "seekable", seekable),
]


def streams(program, scratch, tally):
    for part in (sizes, targets, cut, garbage, asks_for_much, bombs, inner, continues, memory):
        began = time.monotonic()
        part(program, scratch.inside(f"streams-{part.__name__}"), tally)
        print(f"  {part.__name__}: {time.monotonic() - began:.1f} s")


def disk_of(path, size):
    """A disk with a GPT where it has room, data at several places, and holes."""
    if size < 4 * MIB:
        host.write(host.make(path, 0), host.noise(size, size // 2) + bytes(size - size // 2))
        return path
    disks.gpt_image(path, size // 512 * 512, 3)
    for number, at in enumerate(range(2 * MIB, size - 2 * MIB, max(size // 7, MIB))):
        host.write(path, host.noise(number, 300_001), at + number)
    os.truncate(path, size)
    return path


def make(scratch, codec, pack, source, name="disk.raw"):
    target = scratch / f"{name}.{ENDINGS[codec]}"
    pack(source, target)
    return target


def sizes(program, scratch, tally):
    """Each shape, for sizes around every boundary."""
    for size in (0, 1, MIB - 1, MIB + 1, 9 * MIB + 333):
        source = disk_of(scratch / "disk.raw", size)
        for codec, shape, pack in SHAPES:
            name = f"{codec}, {shape}, {size} bytes"
            image, target = make(scratch, codec, pack, source), scratch / "new.raw"
            outcome = program.rebuild(image, target)
            if tally.expect(outcome.code == 0, name, outcome):
                tally.expect(host.checksum(target) == host.checksum(source), f"{name}: content")
                os.unlink(target)
            os.unlink(image)


def targets(program, scratch, tally):
    """A file that is replaced, one that is written into, a device; then verified, compared again, looked at."""
    source = disk_of(scratch / "disk.raw", 16 * MIB)
    layout = program.run("inspect", source).doc["layout"]
    for codec, shape, pack in SHAPES[::2] + SHAPES[-1:]:
        image = make(scratch, codec, pack, source)
        for kind in ("replaced", "in place", "device"):
            name = f"{codec}, {shape}, {kind}"
            disk = host.make(scratch / "system.raw", 0)
            host.write(disk, host.noise(5, 20 * MIB))
            target = scratch.loop(disk) if kind == "device" else disk
            flags = ["--in-place"] if kind == "in place" else []
            outcome = program.rebuild(image, target, *flags)
            if tally.expect(outcome.code == 0, name, outcome):
                same_as_source(tally, name, outcome, source, target)
                again = program.run("verify", image, target)
                tally.expect(again.code == 0, f"{name}: verify", again)
                if kind != "replaced":
                    again = program.rebuild(image, target, *flags, "--mode", "delta")
                    good = again.code == 0 and again.report["bytes_written"] == 0
                    tally.expect(good, f"{name}: delta", again)
                host.write(target, b"changed", 9 * MIB)
                again = program.run("verify", image, target)
                tally.expect(again.code == 31, f"{name}: verify a changed disk", again)
            if kind == "device":
                scratch.unloop(target)
            os.unlink(disk)
        found = program.run("inspect", image)
        good = found.code == 0 and found.doc["layout"] == layout
        tally.expect(good, f"{codec}, {shape}: inspect", found)
        os.unlink(image)


def same_as_source(tally, name, outcome, source, target):
    """The disk holds the source, but for the backup GPT that moved, and zeroes behind it."""
    right, found = bytearray(host.read(source)), bytearray(host.read(target))
    right.extend(bytes(len(found) - len(right)))
    for part in outcome.report["gpt"].get("changed", []):
        for disk in (right, found):
            disk[part["offset"] : part["offset"] + part["len"]] = bytes(part["len"])
    tally.expect(right == found, f"{name}: content", host.first_difference(right, found))
    why = disks.problems(target)
    tally.expect(not why, f"{name}: sgdisk --verify", why)


def refused(program, scratch, tally, name, image, codes=(REFUSED,)):
    """The image is refused, and neither a file that would be replaced nor one that would be written into changes."""
    old = host.noise(6, 3 * MIB)
    disk = host.make(scratch / "old.raw", 0)
    host.write(disk, old.ljust(64 * MIB, b"\0"))
    before = os.stat(disk)
    for flags in ([], ["--in-place"]):
        outcome = program.rebuild(image, disk, *flags)
        what = f"{name} {' '.join(flags)}"
        good = outcome.code in codes and outcome.state == "untouched" and outcome.error.get("path")
        tally.expect(good, f"{what}: refused", outcome)
        tally.expect(outcome.error.get("hint"), f"{what}: hint", outcome)
        now = os.stat(disk)
        same = (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        tally.expect(same and host.read(disk, 0, len(old)) == old, f"{what}: the old disk")
        left = [found for found in os.listdir(scratch.folder) if found.endswith(".reimage-unfinished")]
        tally.expect(not left, f"{what}: nothing is left", left)


def cut(program, scratch, tally):
    """Cut at every 64th: right or refused."""
    source = disk_of(scratch / "disk.raw", 8 * MIB)
    whole = host.read(source)
    for codec, shape, pack in (SHAPES[1], SHAPES[2], SHAPES[4], SHAPES[6], SHAPES[7], SHAPES[11]):
        image = make(scratch, codec, pack, source)
        content = host.read(image)
        for part in range(64):
            host.write(host.make(image, 0), content[: len(content) * part // 64])
            name = f"{codec}, {shape}, cut at {part}/64"
            if part % 16 == 9:
                refused(program, scratch, tally, name, image)
                continue
            target = scratch / "new.raw"
            outcome = program.rebuild(image, target)
            if outcome.code == 0:
                # A part that was packed by itself ended there.
                tally.expect(whole.startswith(host.read(target)), f"{name}: content")
                os.unlink(target)
            else:
                good = outcome.code == REFUSED and not os.path.exists(target)
                tally.expect(good, name, outcome)
        os.unlink(image)


def garbage(program, scratch, tally):
    """What follows the stream, and damage in its middle and at its end."""
    source = disk_of(scratch / "disk.raw", 8 * MIB)
    for codec, shape, pack in SHAPES:
        image = make(scratch, codec, pack, source)
        content = host.read(image)
        refused_bytes = [
            ("garbage behind", content + b"garbage\n"),
            ("a damaged middle", content[: len(content) // 2] + b"\x5a\xa5\x77" + content[len(content) // 2 + 3 :]),
            ("a damaged end", content[:-3] + bytes(byte ^ 0x55 for byte in content[-3:])),
        ]
        for what, damaged in refused_bytes:
            if shape == "seekable" and what == "a damaged end":
                continue  # Without its table the frames are still right.
            host.write(host.make(image, 0), damaged)
            refused(program, scratch, tally, f"{codec}, {shape}, {what}", image)
        os.unlink(image)


def asks_for_much(program, scratch, tally):
    source = disk_of(scratch / "disk.raw", 8 * MIB)
    for codec, flags in (
        ("zstd", ("-q", "--long=27")),
        ("xz", ("--lzma2=preset=0,dict=65MiB",)),
        ("xz", ("--lzma2=preset=0,dict=512MiB",)),
    ):
        target = scratch / f"much.raw.{ENDINGS[codec]}"
        # From a pipe, so that zstd does not shrink the window to the file.
        packed(codec, *flags)(source, target, piped=True)
        refused(program, scratch, tally, f"{codec} {' '.join(flags)}", target)


def bombs(program, scratch, tally):
    """Much more than the disk has room for: told or not, it ends soon."""
    source = host.make(scratch / "zeroes.raw", GIB)
    for codec, pack, codes in (
        ("gzip", packed("gzip", "-1"), (REFUSED,)),
        ("xz", packed("xz", "-0"), (12, REFUSED)),
        ("zstd", packed("zstd", "-q", "-1"), (12, REFUSED)),
        ("zstd", without_length, (REFUSED,)),
    ):
        image = make(scratch, codec, pack, source, "bomb.raw")
        began = time.monotonic()
        refused(program, scratch, tally, f"{codec} bomb", image, codes)
        took = time.monotonic() - began
        tally.expect(took < 10, f"{codec} bomb: time", f"{took:.1f} s")
        os.unlink(image)


def inner(program, scratch, tally):
    """Another format in a stream is refused with the command that unpacks it, and the command does."""
    source = disk_of(scratch / "disk.raw", 8 * MIB)
    qcow2 = scratch / "inner.qcow2"
    for codec, _, pack in (SHAPES[0], SHAPES[2], SHAPES[6]):
        tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, qcow2)
        image = make(scratch, codec, pack, qcow2, "inner.qcow2")
        os.unlink(qcow2)
        refused(program, scratch, tally, f"qcow2 in {codec}", image)
        hint = program.rebuild(image, scratch / "none.raw").error.get("hint", "")
        command = hint.split("`")[1] if hint.count("`") > 1 else "false"
        tool("sh", "-c", command)
        outcome = program.rebuild(qcow2, scratch / "new.raw")
        good = outcome.code == 0 and host.checksum(scratch / "new.raw") == host.checksum(source)
        tally.expect(good, f"qcow2 in {codec}: unpacked as the hint says", outcome)
        os.unlink(scratch / "new.raw")
        plain = scratch / "plain.raw"
        os.rename(image, plain)
        refused(program, scratch, tally, f"{codec} under a raw name", plain)


def continues(program, scratch, tally):
    """Killed in the middle, a run goes on; with a manifest no first pass is needed."""
    source = disk_of(scratch / "disk.raw", 48 * MIB)
    host.write(source, host.noise(1, 20 * MIB), 4 * MIB)
    for codec, shape, pack in (SHAPES[0], SHAPES[2], SHAPES[7]):
        image = make(scratch, codec, pack, source)
        disk = host.make(scratch / "system.raw", 48 * MIB)
        device = scratch.loop(disk)
        flags = ["--checkpoint", "0.01", "--threads", "2"]
        program.killed_at("pwritev2,pwrite64", 12, image, device, *flags)
        outcome = program.rebuild(image, device, *flags)
        name = f"{codec}, {shape}, killed"
        good = outcome.code == 0 and host.checksum(device) == host.checksum(source)
        tally.expect(good, f"{name}: the next run completes it", outcome)
        scratch.unloop(device)
        os.unlink(image)


def memory(program, scratch, tally):
    """The largest dictionary and the largest window, onto a new file and into an old one."""
    source = disk_of(scratch / "disk.raw", 100 * MIB)
    # Long matches: the dictionary is filled, and the packing is quick.
    host.write(source, host.noise(2, 4 * MIB) * 20, 10 * MIB)
    for codec, pack in (
        ("xz", packed("xz", "--lzma2=preset=0,dict=64MiB")),
        ("zstd", packed("zstd", "-q", "-1", "--long=26")),
        ("gzip", packed("gzip", "-1")),
    ):
        image, target = make(scratch, codec, pack, source), scratch / "new.raw"
        for flags in ([], ["--in-place", "--mode", "delta"]):
            outcome = program.measured(
                "rebuild", image, target, "--keep-image-credentials", "--yes", "--threads", "12", *flags
            )
            tally.expect(outcome.code == 0, f"{codec}, memory {flags}", outcome)
            used, _ = outcome.usage
            print(f"  {codec} {' '.join(flags)}: {used / MIB:.1f} MiB")
            tally.expect(used < MOST_MEMORY, f"{codec}, memory {flags}", f"{used} bytes")
        os.unlink(target)
        os.unlink(image)


def large(program, scratch, tally):
    """4 GiB that are nearly all holes, in every shape."""
    source = disk_of(scratch / "large.raw", 4 * GIB)
    for codec, shape, pack in SHAPES:
        image, target = make(scratch, codec, pack, source, "large.raw"), scratch / "new.raw"
        outcome = program.rebuild(image, target)
        name = f"{codec}, {shape}, 4 GiB"
        good = outcome.code == 0 and host.checksum(target) == host.checksum(source)
        if tally.expect(good, name, outcome):
            tally.expect(os.stat(target).st_blocks * 512 < 64 * MIB, f"{name}: it is sparse")
        content = host.read(image)
        for part in range(64):
            host.write(host.make(image, 0), content[: len(content) * part // 64])
            outcome = program.rebuild(image, scratch / "cut.raw")
            tally.expect(outcome.code in (0, REFUSED), f"{name}, cut at {part}/64", outcome)
            if os.path.exists(scratch / "cut.raw"):
                # A part that was packed by itself ended there.
                size = str(os.stat(scratch / "cut.raw").st_size)
                same = outcome.code == 0 and host.speak("cmp", "-n", size, scratch / "cut.raw", source)[0] == 0
                tally.expect(same, f"{name}, cut at {part}/64: content")
                os.unlink(scratch / "cut.raw")
        os.unlink(image)
        os.unlink(target)


if __name__ == "__main__":
    import sys

    place = host.Scratch("streams")
    counted = host.Tally()
    large(host.Program(sys.argv[1], place), place, counted)
    counted.end()
