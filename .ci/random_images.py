"""Sound qcow2 images of all kinds, made at random by the real qemu-img and qemu-io, step by step."""

import os

import host
from host import MIB, speak

CLUSTERS = (512, 4096, 65536, 2 * MIB)


class Spoiled(Exception):
    """qemu-img has spoiled its own image, or does not do what it can."""


class Made:
    """A sound image, made step by step by qemu-img and qemu-io; `steps` says how."""

    def __init__(self, folder, pattern, rng):
        self.folder, self.pattern, self.rng = folder, pattern, rng
        self.path = os.path.join(folder, "image.qcow2")
        self.steps, self.names = [], 0
        self.snapshots, self.bitmaps = [], []
        self.version = rng.choice((2, 3, 3, 3))
        self.cluster = rng.choice(CLUSTERS)
        self.count_bits = rng.choice((1, 8, 16, 16, 16, 64)) if self.version == 3 else 16
        extended = self.version == 3 and self.cluster >= 16384 and rng.random() < 0.3
        codec = rng.choice(("zlib", "zstd")) if self.version == 3 else "zlib"
        self.options = f"cluster_size={self.cluster},compat={'1.1' if self.version == 3 else '0.10'}"
        if self.version == 3:
            self.options += f",refcount_bits={self.count_bits},compression_type={codec}"
            self.options += ",extended_l2=on" if extended else ""
            self.options += ",lazy_refcounts=on" if rng.random() < 0.2 else ""
        small = {512: MIB // 2, 4096: 4 * MIB, 65536: 12 * MIB, 2 * MIB: 24 * MIB}[self.cluster]
        # What one L2 table is about.
        self.span = self.cluster * self.cluster // (16 if extended else 8)
        is_large = self.span > small and rng.random() < 0.4
        self.size = self.span * 2 + small if is_large else small + 512 * rng.randrange(2)
        most = (self.size - 4 * self.cluster) // self.cluster
        # What is written comes to the same few places again and again; some are in the last L2 table.
        self.places = [rng.randrange(most) * self.cluster for _ in range(4)] + [0, most * self.cluster]
        self.longest = 24 if self.cluster == 512 else 3
        self.begin(is_large)
        for _ in range(rng.randint(4, 8)):
            rng.choice((self.write, self.write, self.snapshot, self.snapshot, self.remove, self.apply, self.resize,
                        self.bitmap))()
        self.write()

    def run(self, *words, codes=(0,)):
        self.steps.append(" ".join(words))
        code, text = speak(*words)
        if code not in codes:
            raise Spoiled(f"{self.steps[-1]}: exit {code}: {text[-300:]}")

    def begin(self, is_large):
        rng, kind = self.rng, self.rng.random()
        if kind < 0.2 and not is_large:
            raw = os.path.join(self.folder, "disk.raw")
            host.make(raw, self.size)
            for place in self.places:
                host.write(raw, self.pattern_of(place, self.cluster * 2), place)
            self.run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", self.options, raw, self.path)
        elif kind < 0.4:
            base, size = os.path.join(self.folder, "base.qcow2"), self.size - rng.randrange(2) * self.cluster
            self.run("qemu-img", "create", "-q", "-f", "qcow2", base, str(size))
            length = 65536 if is_large else self.size // 3 & -512
            self.run("qemu-io", "-f", "qcow2", "-c", f"write -P 7 0 {length}", base)
            self.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", "-o", self.options,
                     self.path, str(self.size))
        else:
            options = self.options + (",preallocation=metadata" if not is_large and kind < 0.55 else "")
            self.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, self.path, str(self.size))
        self.write()

    def pattern_of(self, place, length):
        text = b"".join(b"%d bytes at %d\n" % (number, place) for number in range(length // 32))
        return (text + host.noise(place, length))[:length]

    def write(self):
        """A few writes of all kinds; those that this image does not allow say so, and change nothing."""
        rng, commands = self.rng, []
        for _ in range(rng.randint(2, 5)):
            place = rng.choice(self.places) + rng.randrange(3) * self.cluster
            length = rng.randint(1, self.longest) * self.cluster
            command = rng.choice((f"write -s {self.pattern}", f"write -s {self.pattern}", f"write -c -s {self.pattern}",
                                  f"write -c -s {self.pattern}", "write -z", "write -z -u", "discard"))
            if command == f"write -s {self.pattern}" and rng.random() < 0.3:
                place, length = place + 512 * rng.randrange(self.cluster // 512), 512 * rng.randint(1, 9)
            # In one long write that is packed, clusters come to places that depend on which is packed first.
            step = self.cluster if "write -c" in command else length
            commands += [f"-c{command} {at} {step}" for at in range(place, place + length, step)]
        self.run("qemu-io", "-f", "qcow2", *commands, self.path, codes=(0, 1))

    def snapshot(self):
        self.names += 1
        # One bit has no room for a second user.
        if self.count_bits > 1:
            self.run("qemu-img", "snapshot", "-c", f"s{self.names}", self.path)
            self.snapshots.append(f"s{self.names}")
            self.write()

    def remove(self):
        if len(self.snapshots) > 1:
            name = self.snapshots.pop(self.rng.randrange(len(self.snapshots)))
            self.run("qemu-img", "snapshot", "-d", name, self.path)

    def apply(self):
        if self.snapshots and not self.bitmaps:
            self.run("qemu-img", "snapshot", "-a", self.rng.choice(self.snapshots), self.path)
            self.write()

    def resize(self):
        """Longer by some clusters and back; with snapshots or bitmaps some of it is not done."""
        if self.version == 3:
            length = self.rng.choice((self.cluster * self.rng.randint(1, 3), self.span, self.size // 4 & -512))
            step = f"{self.rng.choice('+-')}{length}"
            self.run("qemu-img", "resize", "-q", "-f", "qcow2", "--shrink", self.path, step, codes=(0, 1))

    def bitmap(self):
        if self.version == 3:
            self.names += 1
            granularity = self.rng.choice((512, 65536)) if self.size < 1 << 30 else 1 << 21
            self.run("qemu-img", "bitmap", "--add", "-g", str(granularity), self.path, f"b{self.names}", codes=(0, 1))
            self.bitmaps.append(self.names)
            self.write()
