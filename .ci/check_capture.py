#!/usr/bin/env python3
"""Private images: what is captured is the disk, whole or not at all, and the disk is not written.

Usage: check_capture.py BINARY FLIPS [SEED]. Flips FLIPS single bytes of captured images, and rebuilds from each.
"""

import concurrent.futures
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time

import holders
import host
import images
from faulty import Faulty
from host import MIB, tool
from kernel import forget_cache

PACKINGS = ("zstd", "zlib", "none")
SEED = 71
FLIPS = 300
KILLS = 16
TEMPORARY = ".image.qcow2.reimage-unfinished"
CLUSTERS = [4096 << power for power in range(10)]


def capture(program, disk, image, *flags, **more):
    return program.run("capture", disk, image, *flags, **more)


class Captures:
    """A folder of images, and what must be true of each that was made."""

    def __init__(self, program, scratch, tally):
        self.program, self.scratch, self.tally = program, scratch, tally
        self.folder = scratch.folder_of("captured")
        self.image = os.path.join(self.folder, "image.qcow2")
        self.manifest = f"{self.image}.manifest.json"

    def clear(self):
        for name in os.listdir(self.folder):
            os.unlink(os.path.join(self.folder, name))

    def make(self, name, disk, *flags, **more):
        """An image that there was not before; the report, or None."""
        self.clear()
        outcome = capture(self.program, disk, self.image, *flags, **more)
        if not self.tally.expect(outcome.code == 0, f"{name}: captured", outcome):
            return None
        self.tally.expect(not self.beside(), f"{name}: nothing is left beside it", self.beside())
        return outcome.report

    def beside(self):
        return set(os.listdir(self.folder)) - {"image.qcow2", "image.qcow2.manifest.json"}

    def holds(self, name, source, *source_flags):
        """What qemu says of the image, and that it holds the same disk as the source."""
        code, text = host.speak("qemu-img", "check", "-f", "qcow2", self.image)
        self.tally.expect(code == 0 and "No errors" in text, f"{name}: qemu-img check", text)
        code, text = host.speak("qemu-img", "compare", *source_flags, "-F", "qcow2", source, self.image)
        self.tally.expect(code == 0, f"{name}: qemu-img compare", text)

    def restores(self, name, content, **more):
        """A rebuild from it gives the bytes of the disk."""
        target = self.scratch / "restored.raw"
        if os.path.exists(target):
            os.unlink(target)
        outcome = self.program.rebuild(self.image, target, **more)
        if self.tally.expect(outcome.code == 0, f"{name}: rebuilt from it", outcome):
            self.tally.expect(host.read(target) == content, f"{name}: the disk again")
            os.unlink(target)

    def said(self):
        """The manifest beside the image."""
        try:
            with open(self.manifest, encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return {}

    def belongs(self, name):
        """A manifest beside the image is that image's."""
        if not os.path.exists(self.manifest):
            return
        said = self.said()["image"]
        there = os.path.exists(self.image)
        if self.tally.expect(there, f"{name}: no manifest without an image"):
            self.tally.expect(said["sha256"] == host.checksum(self.image), f"{name}: the manifest is the image's", said)


def sources(captures, scratch, tally):
    """Every kind of disk, however it is packed."""
    m = images.Maker(scratch.folder_of("sources"))
    images.chains(m)
    content = host.read(m.raw)
    snapshots = m.convert("snapshots")
    m.io(snapshots, "write -P 1 0 8M")
    tool("qemu-img", "snapshot", "-c", "first", snapshots)
    m.fill(snapshots)
    chain = next(variant for variant in m.variants if variant.name == "chain: nothing in the overlay")
    deep = next(variant for variant in m.variants if variant.name == "chain: three deep")
    copied = scratch / "copied.raw"
    tool("cp", m.raw, copied)
    loop = scratch.loop(copied, "--read-only")
    raw = ("-f", "raw")
    disks = [("raw file", m.raw, (), raw), ("read-only loop device", loop, (), raw),
             ("snapshots", snapshots, (), ("-f", "qcow2")), ("chain", chain.path, chain.flags, ("-f", "qcow2")),
             ("three deep", deep.path, deep.flags, ("-f", "qcow2"))]
    roots = set()
    for kind, disk, flags, format in disks:
        for packing in PACKINGS:
            name = f"{kind}, {packing}"
            before = host.checksum(disk)
            report = captures.make(name, disk, *flags, "--compress", packing)
            if report is None:
                continue
            captures.holds(name, disk, *format)
            captures.belongs(name)
            tally.expect(host.checksum(disk) == before, f"{name}: the disk is as it was")
            if kind != "three deep":
                roots.add(report["root"])
                captures.restores(name, content)
    tally.expect(len(roots) == 1, "the same disk has one root", roots)
    for cluster in CLUSTERS:
        report = captures.make(f"clusters of {cluster}", m.raw, "--cluster-size", cluster, "--whole-digest")
        captures.holds(f"clusters of {cluster}", m.raw, *raw)
        roots.add((report or {}).get("root"))
        whole = tool("b3sum", "--no-names", m.raw).strip()
        tally.expect((report or {}).get("whole_digest") == whole, f"clusters of {cluster}: b3sum", report)
    tally.expect(len(roots) == 1, "and so it has with every cluster size", roots)
    scratch.unloop(loop)
    # Nothing is replaced or written, so that none of this is in the way.
    os.link(copied, scratch / "another-name.raw")
    os.chmod(copied, 0o444)
    bound = host.make(scratch / "bound.raw", 0)
    tool("mount", "--bind", copied, bound)
    scratch.mounts.append(bound)
    report = captures.make("a bind mount", bound)
    roots.add((report or {}).get("root"))
    scratch.unmount(bound)
    scratch.immutable(copied)
    report = captures.make("immutable, with two names", copied)
    roots.add((report or {}).get("root"))
    tool("chattr", "-i", copied)
    tally.expect(len(roots) == 1, "and so it has under whatever conditions", roots)
    return m.raw


def sizes(captures, scratch, tally):
    """Disks of any size, and a large one with hardly anything on it."""
    for size in (0, 1, 512, 4095, 65536, 3 * MIB + 1, 5 * MIB - 513):
        disk = scratch / "sized.raw"
        content = host.noise(size, size // 2).ljust(size, b"\0")
        host.write(host.make(disk, 0), content)
        for packing in ("zstd", "none"):
            name = f"{size} bytes, {packing}"
            report = captures.make(name, disk, "--compress", packing)
            sectors = content.ljust(-(-size // 512) * 512, b"\0")
            tally.expect((report or {}).get("virtual_size") == len(sectors), f"{name}: in whole sectors", report)
            said = json.loads(tool("qemu-img", "info", "--output=json", captures.image))
            tally.expect(said["virtual-size"] == len(sectors), f"{name}: qemu says the same size", said)
            captures.holds(name, disk, "-f", "raw")
            captures.restores(name, sectors)
    large = host.make(scratch / "large.raw", 2 << 40)
    for at in (0, 1 << 40, (2 << 40) - 777):
        host.write(large, host.noise(at, 777), at)
    outcome = captures.make("2 TiB", large)
    captures.holds("2 TiB", large, "-f", "raw")
    tally.expect(os.path.getsize(captures.image) < 8 * MIB, "2 TiB of holes are small", outcome)
    target = scratch / "restored.raw"
    outcome = captures.program.rebuild(captures.image, target)
    same = outcome.code == 0 and host.size_of(target) == 2 << 40
    same = same and all(host.read(target, at, 777) == host.noise(at, 777) for at in (0, 1 << 40, (2 << 40) - 777))
    tally.expect(same, "2 TiB: the disk again", outcome)
    os.unlink(target)
    os.unlink(large)


def threads(captures, disk, tally):
    """How many threads there are makes no difference to the file."""
    for packing in PACKINGS:
        found = set()
        for count in (1, 2, 8):
            captures.make(f"{count} threads, {packing}", disk, "--compress", packing, "--threads", count)
            found.add(host.checksum(captures.image))
        tally.expect(len(found) == 1, f"1, 2 and 8 threads give the same {packing} file", found)


def refusals(captures, scratch, tally):
    """What is no stopped machine's disk, or no place for an image, and the disk and the old image as they were."""
    program = captures.program
    disk = host.make(scratch / "disk.raw", 0)
    host.write(disk, host.noise(31, 3 * MIB))
    data = host.make(scratch / "data.raw", 0)
    host.write(data, host.noise(32, MIB))
    before = host.checksum(disk), host.checksum(data)

    def refused(name, code, *words, what=disk, image=captures.image, **more):
        outcome = capture(program, what, image, *words, **more)
        tally.expect(outcome.code == code and outcome.state == "untouched", f"{name}: {code}", outcome)
        tally.expect((host.checksum(disk), host.checksum(data)) == before, f"{name}: nothing has changed")
        tally.expect(not captures.beside(), f"{name}: nothing is left", captures.beside())
        return outcome

    captures.clear()
    holders_of = (
        ("qemu", holders.qemu_io(disk)), ("a reader", holders.opener(disk)), ("a writer", holders.writer(disk)))
    for name, holder in holders_of:
        with holder:
            refused(f"in use by {name}", 10)
    loop = scratch.loop(disk)
    refused("under a loop device", 10)
    tool("mkfs.ext4", "-q", "-F", scratch / "fs.raw", "8M")
    mounted = scratch.loop(scratch / "fs.raw")
    where = scratch.mount(mounted, "mounted")
    refused("mounted", 10, what=mounted)
    refused("the image on a data disk", 11, "--data-disk", mounted, what=loop, image=os.path.join(where, "image"))
    scratch.unmount(where)
    scratch.unloop(mounted)
    refused("a data disk, by the device over it", 11, "--data-disk", loop)
    link = scratch / "link.raw"
    os.link(disk, link)
    refused("a data disk, by another name", 11, "--data-disk", link)
    for name, image in (("its own name", disk), ("a hard link", link)):
        refused(f"the image in the disk's place, by {name}", 11, "--replace", what=loop, image=image)
    refused("the image in a data disk's place", 11, "--replace", "--data-disk", data, what=loop, image=data)
    refused("the manifest in a data disk's place", 11, "--replace", "--data-disk", data, "--manifest", data, what=loop)
    os.link(data, captures.manifest)
    flags = ("--replace", "--manifest", "none", "--data-disk", data)
    refused("a data disk's other name where an old manifest would be removed", 11, *flags, what=loop)
    os.unlink(captures.manifest)
    soft = scratch / "soft.raw"
    os.symlink(disk, soft)
    refused("the image in the place of a link", 14, "--replace", what=loop, image=soft)
    scratch.unloop(loop)
    os.unlink(link)
    for image, code in (("/dev/image", 14), ("/proc/image", 14), (captures.folder, 2), (scratch / "no/image", 14)):
        refused(f"the image at {image}", code, image=image)
    qcow2 = scratch / "disguised.raw"
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, qcow2)
    refused("qcow2 under a raw name", 14, what=qcow2)
    plain = scratch / "plain.qcow2"
    tool("cp", disk, plain)
    refused("raw under a qcow2 name", 14, what=plain)
    refused("clusters of 3K", 2, "--cluster-size", "3K")
    refused("a disk that is not there", 14, what=scratch / "nowhere")
    refused("a folder", 14, what=captures.folder)
    refused("another disk than was meant", 11, "--expect", "size=4M")
    room = scratch.tmpfs("small", 2 * MIB)
    refused("no room for what is not compressed", 12, "--compress", "none", image=os.path.join(room, "image"))
    outcome = capture(program, disk, os.path.join(room, "image"))
    tally.expect(outcome.code == 30 and outcome.state == "untouched", "no room for what does not compress: 30", outcome)
    tally.expect(os.listdir(room) == [], "and nothing is left", os.listdir(room))
    scratch.unmount(room)
    for flags in (("--disk-format", "raw"), ("--disk-format", "qcow2")):
        captures.make(f"a disk that is said to be {flags[1]}", qcow2, *flags)
        captures.holds(f"a disk that is said to be {flags[1]}", qcow2, "-f", flags[1])
    captures.make("a device that begins like qcow2", scratch.loop(qcow2))
    captures.holds("a device that begins like qcow2", qcow2, "-f", "raw")
    replacing(captures, scratch, tally, disk)


def replacing(captures, scratch, tally, disk):
    """An image and its manifest are replaced only when that is said, and only where nobody uses them."""
    captures.make("an old image", disk, "--compress", "none")
    files = captures.image, captures.manifest
    old = [host.checksum(path) for path in files]
    outcome = capture(captures.program, disk, captures.image)
    tally.expect(outcome.code == 2, "an image that is there: 2", outcome)
    with holders.opener(captures.image):
        outcome = capture(captures.program, disk, captures.image, "--replace")
        tally.expect(outcome.code == 10, "an image that is in use: 10", outcome)
    scratch.immutable(captures.image)
    outcome = capture(captures.program, disk, captures.image, "--replace")
    tool("chattr", "-i", captures.image)
    tally.expect(outcome.code == 14, "an image that is immutable: 14", outcome)
    tally.expect([host.checksum(path) for path in files] == old, "the old image and its manifest are there")
    outcome = capture(captures.program, disk, captures.image, "--replace")
    replaced = outcome.code == 0 and host.checksum(captures.image) != old[0]
    tally.expect(replaced and not captures.beside(), "an image that may be replaced is", outcome)
    captures.belongs("replaced")
    captures.restores("replaced", host.read(disk))
    outcome = capture(captures.program, disk, captures.image, "--replace", "--manifest", "none")
    left = os.listdir(captures.folder)
    tally.expect(outcome.code == 0 and left == ["image.qcow2"], "no old manifest beside a new image", left)


def bad_sectors(captures, scratch, tally):
    """A disk that cannot be read here and there."""
    disk = host.make(scratch / "bad.raw", 0)
    content = bytearray(host.noise(41, 6 * MIB))
    host.write(disk, content)
    places = (MIB + 17, 3 * MIB + 4096, 6 * MIB - 1)
    places = (17, *places)
    with Faulty(scratch, disk, *(f"read:{at}" for at in places)) as faulty:
        faulty.fails(True)
        forget_cache()
        captures.clear()
        outcome = capture(captures.program, faulty.mount_point, captures.image)
        tally.expect(outcome.code == 32 and outcome.state == "untouched", "a disk that cannot be read: 32", outcome)
        at, length = outcome.error.get("offset") or 0, outcome.error.get("length") or 0
        also = [(found.get("offset") or 0, found.get("length") or 0) for found in outcome.error.get("also") or ()]
        told = length and all(any(at <= place < at + length for at, length in [(at, length), *also]) for place in places)
        tally.expect(told and outcome.error.get("path") == faulty.mount_point, "and where", outcome)
        tally.expect(not os.listdir(captures.folder), "and nothing is left", os.listdir(captures.folder))
        forget_cache()
        flag = "--skip-bad-sectors"
        report = captures.make("bad sectors that are passed over", faulty.mount_point, flag) or {}
        filled = [(found["offset"], found["len"]) for found in report.get("filled", ())]
        hit = all(any(at <= place < at + length for at, length in filled) for place in places)
        tally.expect(hit and sum(length for _, length in filled) <= len(places) * 4096, "every one is listed", filled)
        for at, length in filled:
            content[at : at + length] = bytes(length)
        made = captures.said().get("made", {})
        said = [(found["offset"], found["len"]) for found in made.get("filled", ())]
        tally.expect(said == filled, "the manifest lists them, too", made)
        captures.restores("bad sectors that are passed over", bytes(content))


def warnings(captures, scratch, tally):
    """What an image carries along is told, and half a disk is none."""
    disk = host.make(scratch / "carries.raw", 16 * MIB)
    layout = "label: gpt\n2048,8192,L\n10240,8192,S\n18432,10240,L\n"
    tool("sfdisk", "-q", disk, stdin=layout.encode())
    fat = ("mkfs.fat", "-F", "12", "-n", "CIDATA")
    for sector, make in ((2048, fat), (10240, ("mkswap",)), (18432, ("mkfs.ext4", "-q"))):
        part = host.make(scratch / "part", (8192 if sector < 18432 else 10240) * 512)
        tool(*make, part)
        if "mkfs.ext4" in make:
            # As the kernel leaves it that has mounted it and lost its power.
            with open(part, "r+b") as file:
                file.seek(1024 + 0x60)
                features = file.read(1)[0]
                file.seek(1024 + 0x60)
                file.write(bytes([features | 4]))
        host.write(disk, host.read(part), sector * 512)
    report = captures.make("a disk that carries things", disk) or {}
    for wanted in ("labelled CIDATA (partition 1)", "swap space (partition 2)", "ext4 file system (partition 3)"):
        told = any(wanted in warning for warning in report.get("warnings", ()))
        tally.expect(told, f"told: {wanted}", report.get("warnings"))
    host.write(host.make(disk, 0), host.noise(1, MIB))
    image = host.make(scratch / "half.raw", 0)
    host.write(image, host.noise(2, MIB))
    outcome = captures.program.killed_at("fdatasync", 3, image, disk, "--in-place")
    captures.clear()
    outcome = capture(captures.program, disk, captures.image)
    tally.expect(outcome.code == 14 and "unfinished" in str(outcome.messages), "half a disk is no image: 14", outcome)


def signals(captures, scratch, tally):
    """A signal ends a capture, and nothing is left of it."""
    disk = host.make(scratch / "cancelled.raw", 0)
    host.write(disk, host.noise(51, 96 * MIB))
    for signal, code in (("HUP", 129), ("INT", 130), ("TERM", 143)):
        captures.clear()
        words = captures.program.words("capture", disk, captures.image, "--threads", "1")
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        holders.until(lambda: os.path.exists(os.path.join(captures.folder, TEMPORARY)))
        tool("kill", f"-{signal}", process.pid)
        out = process.communicate(timeout=60)[0]
        tally.expect(process.returncode == code, f"SIG{signal}: {code}", out[-500:])
        left = os.listdir(captures.folder), os.listdir(os.path.join(captures.program.state, "captures"))
        tally.expect(left == ([], []), f"SIG{signal}: nothing is left", left)


class Killed:
    """A disk that is captured again and again, each time up to another moment."""

    def __init__(self, captures, scratch, tally):
        self.captures, self.tally = captures, tally
        self.disk = host.make(scratch / "killed.raw", 0)
        host.write(self.disk, b"".join(host.noise(at, MIB) + bytes(MIB) for at in range(20)))
        self.other = host.make(scratch / "other.raw", 0)
        host.write(self.other, host.noise(61, MIB))
        began = time.monotonic()
        captures.make("whole", self.disk)
        self.seconds = time.monotonic() - began
        self.whole = host.checksum(captures.image)
        captures.make("the old image", self.other)
        self.old = host.checksum(captures.image)
        self.before = {path: host.read(path) for path in (captures.image, captures.manifest)}

    def place(self, replaces):
        self.captures.clear()
        if replaces:
            for path, content in self.before.items():
                host.write(path, content)
        return ("--replace",) if replaces else ()

    def look(self, name, replaces, prunes):
        """The name does not exist or is whole; the next capture comes to its end, and nothing is left."""
        captures = self.captures
        found = host.checksum(captures.image) if os.path.exists(captures.image) else None
        allowed = (self.old, self.whole) if replaces else (None, self.whole)
        self.tally.expect(found in allowed, f"{name}: absent or whole", found)
        captures.belongs(name)
        if prunes:
            tool(captures.program.binary, "status", "--prune", "--state-dir", captures.program.state)
            left = captures.beside(), os.listdir(os.path.join(captures.program.state, "captures"))
            self.tally.expect(not left[0] and not left[1], f"{name}: pruned", left)
        outcome = capture(captures.program, self.disk, captures.image, "--replace")
        again = outcome.code == 0 and host.checksum(captures.image) == self.whole and not captures.beside()
        self.tally.expect(again, f"{name}: the next capture", (outcome, captures.beside()))
        captures.belongs(f"{name}: the next capture")


def kills(captures, scratch, tally, count=KILLS, rng_seed=SEED):
    """SIGKILL at random instants, and at every step that gives something a name or takes one away."""
    killed, rng, ends = Killed(captures, scratch, tally), random.Random(rng_seed), [0, 0]
    for number in range(count):
        replaces = number % 2 == 1
        words = captures.program.words("capture", killed.disk, captures.image, *killed.place(replaces))
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.02, killed.seconds * 1.1))
        process.kill()
        ends[process.wait() == 0] += 1
        killed.look(f"seed {rng_seed}, kill {number}", replaces, number % 3 == 0)
    tally.expect(ends[0] > 0, "some were killed", ends)
    for call in ("linkat", "renameat2", "unlinkat", "unlink", "fchmod", "fsync"):
        for replaces in (False, True):
            for nth in range(1, 40):
                before = host.kill_at(call, nth)
                outcome = capture(captures.program, killed.disk, captures.image, *killed.place(replaces), before=before)
                if outcome.code == 0:
                    break
                killed.look(f"{call} {nth}, replaces: {replaces}", replaces, nth % 2 == 0)
            tally.expect(outcome.code == 0 and (nth > 1 or call in ("unlink", "unlinkat")), f"an end of {call}", nth)


class Flipped:
    """A captured image, of which one byte after another is changed."""

    def __init__(self, captures, scratch, packing):
        self.program, self.scratch = captures.program, scratch.inside(f"flips-{packing}")
        disk = host.make(self.scratch / "disk.raw", 0)
        text = b"".join(b"line %07d of a file that compresses well\n" % number for number in range(20000))
        self.content = text[:400_000] + bytes(300_000) + host.noise(81, 200_000) + text[:100_001]
        # Whole sectors, so that the image is of the same size.
        self.content += bytes(-len(self.content) % 512)
        host.write(disk, self.content)
        self.image = self.scratch / "image.qcow2"
        outcome = capture(self.program, disk, self.image, "--compress", packing, "--cluster-size", "16K")
        if outcome.code != 0:
            raise host.Broken(f"no image to flip: {outcome}")
        self.packed = host.read(self.image)
        self.manifest = host.read(f"{self.image}.manifest.json")
        self.old = host.noise(82, len(self.content))

    def rebuilt(self, at, bit, bare):
        """What a rebuild from the image with that bit flipped comes to: exit code, and what the disk holds then."""
        folder = self.scratch.folder_of(f"at-{at}-{bit}-{bare}")
        image, target = os.path.join(folder, "image.qcow2"), os.path.join(folder, "disk.raw")
        changed = bytearray(self.packed)
        changed[at] ^= 1 << bit
        files = [(image, changed), (target, self.old), (f"{image}.manifest.json", self.manifest)]
        for path, content in files[: 2 if bare else 3]:
            with open(path, "wb") as file:
                file.write(content)
        words = [self.program.binary, "rebuild", image, target, "--keep-image-credentials", "--yes", "--json",
                 "--progress", "none", "--state-dir", os.path.join(folder, "state")]
        ended = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        with open(target, "rb") as file:
            now = file.read()
        shutil.rmtree(folder)
        return ended.returncode, {self.old: "old", self.content: "new"}.get(now, "other")


def flips(captures, scratch, tally, count=FLIPS, rng_seed=SEED):
    """Single flipped bits: refused with the disk as it was, or the right disk nevertheless."""
    rng, ends = random.Random(rng_seed), {}
    for packing in PACKINGS:
        flipped = Flipped(captures, scratch, packing)
        length = len(flipped.packed)
        share = count // len(PACKINGS)
        # Half of them in the tables: the header and what lies at both ends of the file.
        starts = ((0, length), (0, 512), (length - length // 4, length))
        places = [rng.randrange(*rng.choice(starts)) for _ in range(share)]
        cases = [(at, rng.randrange(8), bare) for at in places for bare in (False, True)]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(lambda case: flipped.rebuilt(*case), cases)
            for (at, bit, bare), (code, holds) in zip(cases, results):
                name = f"seed {rng_seed}, {packing}, byte {at}, bit {bit}{', no manifest' if bare else ''}"
                end = (packing, bare, code, holds)
                ends[end] = ends.get(end, 0) + 1
                # Some bytes are in no use. Without the manifest nobody knows what a cluster that is not compressed, or
                # that still decodes, should hold; but what is refused is not written.
                right = code in (12, 20, 21, 32) and holds == "old" or code == 0 and (bare or holds == "new")
                tally.expect(right, name, (code, holds))
    return ends


def captures_section(program, scratch, tally):
    """All of it, in about a minute and a half."""
    captures = Captures(program, scratch, tally)
    disk = sources(captures, scratch, tally)
    sizes(captures, scratch, tally)
    threads(captures, disk, tally)
    refusals(captures, scratch, tally)
    bad_sectors(captures, scratch, tally)
    warnings(captures, scratch, tally)
    signals(captures, scratch, tally)
    kills(captures, scratch, tally)
    flips(captures, scratch, tally)


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    tally, scratch = host.Tally(), host.Scratch("flips")
    captures = Captures(host.Program(sys.argv[1], scratch), scratch, tally)
    rng_seed = int(sys.argv[3]) if len(sys.argv) == 4 else SEED
    ends = flips(captures, scratch, tally, int(sys.argv[2]), rng_seed)
    for (packing, bare, code, holds), count in sorted(ends.items()):
        manifest = "without" if bare else "with"
        print(f"{packing}, {manifest} its manifest: exit {code}, the disk is {holds}: {count}")
    tally.end()


if __name__ == "__main__":
    main()
