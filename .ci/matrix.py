#!/usr/bin/env python3
"""Every image of `images.py` onto every kind of target; the result must be what qemu-img reads.

Usage: matrix.py BINARY [WORD]. With a word, only the images whose name contains it.

For each image: onto a new file; into a file full of noise that is 8 MiB larger; onto a loop device full of
noise that is 8 MiB larger. Each time the target must hold, byte for byte, what `qemu-img convert -O raw`
gives, over the image's own size, and zeroes behind it; `reimage verify` must agree; the root of the digests
must be one for all targets and for all images of the same disk; `whole_digest` must be what b3sum says.
"""

import os
import struct
import sys

import host
import images
from host import MIB, Program, Scratch, Tally, tool

BEHIND = 8 * MIB


def virtual_size(variant):
    """The image's own size, from its header: qemu-img rounds it."""
    with open(variant.path, "rb") as image:
        head = image.read(32)
    if variant.path.endswith(".qcow2"):
        return struct.unpack(">Q", head[24:32])[0]
    return os.path.getsize(variant.path)


def expected_disk(variant, scratch):
    """The bytes of the image's disk: what qemu-img reads, or what is known where it rounds."""
    if variant.path.endswith(".raw"):
        return host.read(variant.path)
    raw = scratch / "expected.raw"
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", variant.path, raw)
    found = host.read(raw)
    os.unlink(raw)
    size = virtual_size(variant)
    if not variant.disk:
        if len(found) != size:
            raise host.Broken(f"{variant.name}: qemu-img gives {len(found)} bytes, the header says {size}")
        return found
    disk = host.read(variant.disk)
    whole = size // 512 * 512
    if found[:whole] != disk[:whole]:
        raise host.Broken(f"{variant.name}: qemu-img does not read the disk that was written")
    return disk


class DirtyLoop:
    """A loop device full of noise; made anew only when its size changes."""

    def __init__(self, scratch, dirt):
        self.scratch, self.dirt, self.device, self.size = scratch, dirt, None, None

    def of(self, size):
        size = -(-size // 4096) * 4096
        if size != self.size:
            if self.device:
                self.scratch.unloop(self.device)
            self.device = self.scratch.loop(host.make(self.scratch / "loop.img", size))
            self.size = size
        host.write(self.device, self.dirt[:size])
        return self.device


def b3sum(data, scratch):
    path = scratch / "b3sum.raw"
    host.write(host.make(path, 0), data)
    digest = tool("b3sum", "--no-names", path).strip()
    os.unlink(path)
    return digest


def examine(variant, targets, program, scratch, tally):
    """One image onto each target; returns its root."""
    disk = expected_disk(variant, scratch)
    whole = b3sum(disk, scratch)
    roots = set()
    for kind, prepare, flags in targets:
        name = f"{variant.name}, {kind}"
        target = prepare(len(disk) + BEHIND)
        outcome = program.rebuild(variant.path, target, "--whole-digest", *variant.flags, *flags)
        if not tally.expect(outcome.code == 0, name, outcome):
            continue
        tally.expect(not (why := host.holds(target, disk)), f"{name}: content", f"{why}\n    after {outcome}")
        size = os.path.getsize(target) if kind == "new file" else host.size_of(target)
        right = len(disk) if kind == "new file" else -(-(len(disk) + BEHIND) // (4096 if "loop" in kind else 1)) * (
            4096 if "loop" in kind else 1)
        tally.expect(size == right, f"{name}: size", f"{size}, not {right}")
        digest = outcome.report.get("whole_digest")
        tally.expect(digest == whole, f"{name}: whole digest", f"{digest}, b3sum says {whole}")
        roots.add(outcome.report.get("root"))
        verified = program.run("verify", variant.path, target, *variant.flags)
        tally.expect(verified.code == 0, f"{name}: verify", verified)
    tally.expect(len(roots) == 1 and None not in roots, f"{variant.name}: one root", roots)
    return next(iter(roots), None)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    scratch, tally = Scratch("matrix"), Tally()
    program = Program(sys.argv[1], scratch)
    variants = images.make(scratch.folder_of("images"))
    if len(sys.argv) == 3:
        variants = [variant for variant in variants if sys.argv[2] in variant.name]
    dirt = host.noise(5, images.SIZE + 2 * BEHIND)
    loop = DirtyLoop(scratch, dirt)

    def new_file(_size):
        if os.path.exists(new := scratch / "new.raw"):
            os.unlink(new)
        return new

    def dirty_file(size):
        path = host.make(scratch / "dirty.raw", 0)
        host.write(path, dirt[:size])
        return path

    targets = (
        ("new file", new_file, ()),
        ("dirty file in place", dirty_file, ("--in-place",)),
        ("dirty loop device", loop.of, ()),
    )
    same = {}
    for variant in variants:
        root = examine(variant, targets, program, scratch, tally)
        if variant.same:
            same.setdefault(root, []).append(variant.name)
    if len(sys.argv) == 2:
        tally.expect(len(same) == 1, "one root for one disk in every format", same)
        tally.expect(len(variants) >= 40, "at least 40 images", len(variants))
    left = [name for name in os.listdir(scratch.folder) if "unfinished" in name]
    tally.expect(not left, "no temporary file is left", left)
    print(f"{len(variants)} images, {len(targets)} targets each")
    tally.end()


if __name__ == "__main__":
    main()
