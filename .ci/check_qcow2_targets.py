"""System disks that are qcow2 files, and overlays on the image: as qemu's own tools see them."""

import json
import os
import random
import signal
import subprocess
import time

import disks
import host
from host import MIB, speak, tool

KILLS = 24
MOST_MEMORY = 128 * MIB
"""A fresh overlay on an image that is known already."""
MOST_SECONDS_LINKED = 1.0


def qcow2_targets(program, scratch, tally):
    image = disks.gpt_image(scratch / "system.raw", 48 * MIB)
    host.write(image, host.noise(21, 7 * MIB + 4096), 21 * MIB + 512)
    packed = scratch / "system.qcow2"
    tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", image, packed)
    rig = Rig(program, scratch, tally, image, packed)
    for part in (rig.shapes, rig.odd_sizes, rig.refusals, rig.faults, rig.kills, rig.linked, rig.memory):
        part()


class Rig:
    def __init__(self, program, scratch, tally, image, packed):
        self.program, self.scratch, self.tally = program, scratch, tally
        self.image, self.packed = image, packed
        self.partitions = disks.table(image)

    def made(self, name, size, *options):
        path = self.scratch / name
        words = [word for option in options for word in ("-o", option)]
        tool("qemu-img", "create", "-q", "-f", "qcow2", *words, path, size)
        return path

    def clean(self, name, path):
        """No leak and no error, by qemu's own reference counts."""
        code, said = speak("qemu-img", "check", "-f", "qcow2", path)
        self.tally.expect(code == 0, f"{name}: qemu-img check", said)
        self.tally.expect("No errors were found" in said, f"{name}: nothing leaks", said)

    def exported(self, path):
        raw = self.scratch / "export.raw"
        tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
        return raw

    def right(self, name, path, size, moved=True):
        """The disk in the file is the image, with its backup GPT at the end, and zeroes behind it."""
        self.clean(name, path)
        info = json.loads(tool("qemu-img", "info", "--output=json", path))
        self.tally.expect(info["virtual-size"] == size, f"{name}: size", info)
        # The same onto a raw file is what other checks look at byte by byte.
        plain = host.make(self.scratch / "plain.raw", size)
        flags = () if moved else ("--gpt", "keep")
        outcome = self.program.rebuild(self.packed, plain, *flags)
        if not self.tally.expect(outcome.code == 0, f"{name}: raw", outcome):
            return info
        code, said = speak("qemu-img", "compare", "-f", "raw", "-F", "qcow2", plain, path)
        self.tally.expect(code == 0, f"{name}: qemu-img compare", said)
        raw = self.exported(path)
        self.tally.expect(disks.table(raw) == self.partitions, f"{name}: partitions")
        self.tally.expect(not (why := disks.problems(raw)), f"{name}: sgdisk --verify", why)
        boot = host.read(raw, 0, 440) == host.read(self.image, 0, 440)
        self.tally.expect(boot, f"{name}: boot code")
        os.unlink(raw)
        return info

    def shapes(self):
        """Every cluster size and both versions are kept, and the table moves to the end of a larger disk."""
        for compat, bits in [("1.1", bits) for bits in (9, 10, 12, 14, 16, 18, 21)] + [("0.10", 9), ("0.10", 16)]:
            cluster = 1 << bits
            name = f"compat {compat}, clusters of {cluster}"
            disk = self.made("disk.qcow2", 96 * MIB, f"compat={compat}", f"cluster_size={cluster}")
            tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", "-c", "write -P 9 80M 3M", disk)
            outcome = self.program.rebuild(self.packed, disk)
            if not self.tally.expect(outcome.code == 0, name, outcome):
                continue
            info = self.right(name, disk, 96 * MIB)
            data = info["format-specific"]["data"]
            kept = (data["compat"], info["cluster-size"], data.get("lazy-refcounts"), info.get("backing-filename"))
            self.tally.expect(kept[:2] == (compat, cluster) and not kept[3], f"{name}: kept", info)
            verified = self.program.run("verify", self.packed, disk)
            self.tally.expect(verified.code == 0, f"{name}: verify", verified)
            left = [found for found in os.listdir(self.scratch.folder) if found.endswith("-unfinished")]
            self.tally.expect(not left, f"{name}: nothing is left", left)

    def odd_sizes(self):
        """New files, grown ones, and disks larger than any data."""
        for size in (48 * MIB, 48 * MIB + 512, 65 * MIB + 1024, 3 << 30, 1 << 40):
            name, disk = f"new, {size} bytes", self.scratch / f"new-{size}.img"
            outcome = self.program.rebuild(self.packed, disk, "--target-format", "qcow2", "--size", size)
            if self.tally.expect(outcome.code == 0, name, outcome):
                if size < 1 << 40:
                    self.right(name, disk, size)
                else:
                    self.clean(name, disk)
                taken = os.stat(disk).st_blocks * 512
                self.tally.expect(taken < 48 * MIB, f"{name}: takes no more than the image", taken)
                os.unlink(disk)
        for bits in (9, 16, 21):
            disk = self.made("kept.qcow2", 49 * MIB + 512, f"cluster_size={1 << bits}")
            outcome = self.program.rebuild(self.packed, disk, "--gpt", "keep", "--verify", "written")
            if self.tally.expect(outcome.code == 0, f"clusters of {1 << bits}, GPT kept", outcome):
                self.clean(f"clusters of {1 << bits}, GPT kept", disk)
                code, said = speak("qemu-img", "compare", "-f", "raw", "-F", "qcow2", self.image, disk)
                self.tally.expect(code == 0, f"clusters of {1 << bits}, GPT kept: compare", said)

    def refused(self, code, name, target, *flags):
        before = host.checksum(target)
        for command, words in (("plan", ()), ("rebuild", ("--yes",))):
            outcome = self.program.run(command, self.packed, target, "--keep-image-credentials", *words, *flags)
            self.tally.expect(outcome.code == code, f"{command} {name}: exit {code}", outcome)
            self.tally.expect(outcome.state == "untouched", f"{command} {name}: says untouched", outcome)
        self.tally.expect(host.checksum(target) == before, f"{name}: unchanged")
        return outcome

    def refusals(self):
        """What would be lost, and who would be hurt."""
        disk = self.made("snapshots.qcow2", 64 * MIB)
        tool("qemu-img", "snapshot", "-c", "before", disk)
        self.refused(14, "a disk with a snapshot", disk)
        outcome = self.program.rebuild(self.packed, disk, "--allow-losing-snapshots")
        self.tally.expect(outcome.code == 0, "a disk with a snapshot that may go", outcome)
        self.clean("a disk with a snapshot that may go", disk)
        disk = self.made("bitmaps.qcow2", 64 * MIB)
        tool("qemu-img", "bitmap", "--add", disk, "backup")
        self.refused(14, "a disk with a bitmap", disk)
        disk = self.made("external.qcow2", 64 * MIB, f"data_file={self.scratch / 'external.data'}")
        self.refused(14, "a disk with its data elsewhere", disk)
        # qemu-img itself makes none on a busy host, whose speed it cannot measure for the key.
        disk = self.made("luks.qcow2", 64 * MIB)
        host.write(disk, (2).to_bytes(4, "big"), 32)
        self.refused(14, "an encrypted disk", disk)
        device = self.scratch.loop(self.made("device.qcow2", 64 * MIB))
        self.refused(14, "a qcow2 file as a device", device, "--target-format", "qcow2")
        self.scratch.unloop(device)
        self.built_upon()

    def built_upon(self):
        """A disk below another one, however it is named there; raw ones, too."""
        folder = self.scratch.folder_of("chain")
        for kind in ("raw", "qcow2"):
            base, over = os.path.join(folder, f"base.{kind}"), os.path.join(folder, "over.img")
            tool("qemu-img", "create", "-q", "-f", kind, base, "64M")
            names = (f"base.{kind}", base, f"json:{{\"driver\":\"{kind}\",\"file.filename\":\"{base}\"}}")
            for name in names:
                tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", name, "-F", kind, over, cwd=folder)
                outcome = self.refused(11, f"a {kind} disk below another ({name[:5]})", base)
                self.tally.expect("over.img" in str(outcome.doc), f"a {kind} disk below another: named", outcome)
            tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", over, "-F", "qcow2", self.scratch / "far.qcow2")
            os.rename(over, self.scratch / "over.img")
            tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", self.scratch / "over.img", "-F", "qcow2",
                 self.scratch / "far.qcow2")
            self.refused(11, f"a {kind} disk below a data disk", base, "--data-disk", self.scratch / "far.qcow2")
            os.unlink(self.scratch / "over.img")
        overlay = self.scratch / "overlay.qcow2"
        tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", self.image, "-F", "raw", overlay)
        plan = self.program.run("plan", self.packed, overlay, "--keep-image-credentials")
        self.tally.expect("becomes a flat disk" in plan.out, "an overlay becomes flat: the plan says so", plan)
        outcome = self.program.rebuild(self.packed, overlay)
        if self.tally.expect(outcome.code == 0, "an overlay becomes flat", outcome):
            self.right("an overlay becomes flat", overlay, 48 * MIB)

    def faults(self):
        """Whatever fails, the old disk is there."""
        disk = self.made("old.qcow2", 64 * MIB)
        tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 16M", disk)
        old = host.read(disk)
        beside = self.scratch / ".old.qcow2.reimage-unfinished"
        met = 0
        for call, last in (("pwrite64", 6), ("pwritev2", 3), ("fdatasync", 9), ("fsync", 12), ("ftruncate", 3),
                           ("linkat", 1), ("renameat2", 1)):
            for number in range(last):
                fault, when = ("EIO", "ENOSPC")[number % 2], f"{number + 1}"
                # Every one from there on, or one alone, whichever file it is of: the new one has no name that strace knows.
                when += "+" if number % 3 == 2 else ""
                before = host.inject(call, f"error={fault}:when={when}")
                outcome = self.program.rebuild(self.packed, disk, before=before)
                name = f"{fault} of {call} {when}"
                is_late = outcome.code == 30 and outcome.state == "verified"
                if outcome.code == 0 or is_late:
                    # A failed sync is made good, some calls are not made so often, and the new disk may have its place.
                    self.clean(name, disk)
                    code, said = speak("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", disk, self.reference())
                    self.tally.expect(code == 0, f"{name}: content", said)
                    host.write(disk, old)
                    os.truncate(disk, len(old))
                    continue
                met += 1
                # 2 is a state folder that cannot be used.
                self.tally.expect(outcome.code in (2, 14, 30, 31), f"{name}: exit", outcome)
                self.tally.expect(outcome.state == "untouched", f"{name}: says untouched", outcome)
                self.tally.expect(host.read(disk) == old, f"{name}: the old disk", outcome)
                self.tally.expect(not os.path.exists(beside), f"{name}: nothing is left")
        self.tally.expect(met >= 8, "faults were met", met)
        small = self.scratch.tmpfs("small", "30M")
        disk = os.path.join(small, "disk.qcow2")
        tool("qemu-img", "create", "-q", "-f", "qcow2", disk, "64M")
        before = host.checksum(disk)
        full = host.make(os.path.join(small, "filler"), 0)
        host.write(full, bytes(26 * MIB))
        outcome = self.program.rebuild(self.packed, disk)
        self.tally.expect(outcome.code in (12, 30), "a full file system", outcome)
        self.tally.expect(host.checksum(disk) == before, "a full file system: the old disk", outcome)
        self.scratch.unmount(small)

    def kills(self):
        """At any instant: the old file, or the new one whole; and the next run gets there."""
        disk = self.made("killed.qcow2", 64 * MIB)
        tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 16M", disk)
        old = host.read(disk)
        started = time.monotonic()
        self.program.rebuild(self.packed, disk)
        whole_run = time.monotonic() - started
        chance, met = random.Random(9), {"old": 0, "new": 0}
        for number in range(KILLS):
            os.unlink(disk)
            host.write(disk, old)
            words = self.program.words("rebuild", self.packed, disk, "--keep-image-credentials", "--yes")
            running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(chance.random() * whole_run * 1.1)
            running.send_signal(signal.SIGKILL)
            running.wait()
            is_old = host.read(disk) == old
            met["old" if is_old else "new"] += 1
            if not is_old:
                self.clean(f"kill {number}: the new file", disk)
            outcome = self.program.rebuild(self.packed, disk)
            if self.tally.expect(outcome.code == 0, f"kill {number}: the next run", outcome):
                self.clean(f"kill {number}: the next run", disk)
            code, said = speak("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", disk, self.reference())
            self.tally.expect(code == 0, f"kill {number}: content", said)
            left = [found for found in os.listdir(self.scratch.folder) if found.endswith("-unfinished")]
            self.tally.expect(not left, f"kill {number}: nothing is left", left)
        print(f"  {KILLS} kills within {whole_run * 1.1:.2f} s: {met['old']} met the old file, {met['new']} the new one")

    def reference(self):
        path = self.scratch / "reference.img"
        if not os.path.exists(path):
            self.program.rebuild(self.packed, path, "--target-format", "qcow2", "--size", 64 * MIB)
        return path

    def linked(self):
        """A fresh overlay in no time, which reads as the image."""
        for image, kind in ((self.image, "raw"), (self.packed, "qcow2")):
            for size in (48 * MIB, 80 * MIB):
                name = f"linked to {kind}, {size} bytes"
                disk = self.made("linked.qcow2", size, "cluster_size=16384")
                outcome = self.program.rebuild(image, disk, "--linked")
                if not self.tally.expect(outcome.code == 0, name, outcome):
                    continue
                self.right(name, disk, size)
                info = json.loads(tool("qemu-img", "info", "--output=json", disk))
                named = (info["backing-filename"], info["backing-filename-format"], info["cluster-size"])
                self.tally.expect(named == (os.path.realpath(image), kind, 16384), f"{name}: backing file", info)
                taken = os.stat(disk).st_blocks * 512
                self.tally.expect(taken < 2 * MIB, f"{name}: takes nothing", taken)
                started = time.monotonic()
                outcome = self.program.rebuild(image, disk, "--linked")
                seconds = time.monotonic() - started
                self.tally.expect(outcome.code == 0, f"{name}: again", outcome)
                steps = outcome.report.get("durations")
                print(f"  {name}: again in {seconds * 1000:.0f} ms with the process, {steps}")
                self.tally.expect(seconds < MOST_SECONDS_LINKED, f"{name}: time", seconds)
                folder = self.scratch.folder
                verified = self.program.run("verify", image, disk, "--allow-backing", folder)
                self.tally.expect(verified.code == 0, f"{name}: verify", verified)
                tool("qemu-io", "-f", "qcow2", "-c", "write -P 3 30M 64k", disk)
                verified = self.program.run("verify", image, disk, "--allow-backing", folder)
                self.tally.expect(verified.code == 31, f"{name}: verify what was written to", verified)

    def memory(self):
        """A large disk with much data, in small clusters too."""
        image = self.made("large.img", 1 << 40)
        writes = [word for place in (0, 300, 700, 1023) for word in ("-c", f"write -P {place % 200 + 1} {place}G 256M")]
        tool("qemu-io", "-f", "qcow2", *writes, image)
        for bits in (12, 16):
            target = self.made("large.qcow2", 1 << 40, f"cluster_size={1 << bits}")
            outcome = self.program.measured("rebuild", image, target, "--image-format", "qcow2",
                                            "--keep-image-credentials", "--yes")
            name = f"1 TiB with 1 GiB of data in clusters of {1 << bits}"
            self.tally.expect(outcome.code == 0, name, outcome)
            memory, seconds = outcome.usage
            print(f"  {name}: {memory / MIB:.1f} MiB, {seconds:.2f} s of CPU")
            self.tally.expect(memory < MOST_MEMORY, f"{name}: memory", memory)
            self.clean(name, target)
            os.unlink(target)
        os.unlink(image)
