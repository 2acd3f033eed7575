#!/usr/bin/env python3
"""Clusters that are used twice, or more often than is counted: what `qemu-img check` says, `inspect --check` says too.

Usage: check_overlaps.py BINARY N [SEED]. Makes N images, damages each in a few ways, and compares. Needs root. The
image that failed with seed K is the only one of a run of 1 with SEED K.

Each cluster of which qemu-img says one of these lies in the range of a finding (`offset`, `length`), and no finding
about counts (`COUNTED`) is about another cluster:

- it is used more often than is counted (`ERROR cluster N refcount=A reference=B`), or than a count of so few bits can
  say (`ERROR: overflow cluster`);
- an entry of the active disk says by bit 63 that nobody else uses it (`OFLAG_COPIED`), and somebody does.

Where qemu-img says nothing of that, nothing at all is found. Both differ rightly in this:

- Bit 63 is beside the stored count for qemu-img. Where that is too high and the cluster is used once, or it is missing,
  the entry harms nobody: no finding.
- What an L1 entry leads to is not followed by inspect where the entry is wrong (not aligned; a table that another entry
  of the active disk has; a snapshot's table on a table of another kind, or on a cluster of data), and the L1 table that
  two snapshots have, or the table that two bitmaps have, is read once. From a refcount block on an L2 table no counts
  are read. qemu-img follows each, and tells of all clusters that what it reads there seems to use, or not to count.
  Here the entry itself must be told, or its place if qemu-img tells that.
- qemu-img decodes no stream. After a stream's entry was changed, inspect may find that its bytes are none, or are
  another stream's as well (`BYTES`), where every cluster is counted rightly.
- Where one of two changes is a higher count, this may fit the other one, and qemu-img finds nothing. What lies on what
  is another's is found by inspect all the same (`MEETINGS`).
- The counts of an image that is marked dirty mean nothing: inspect tells none of them (`refcount_too_low`), and what
  else it tells is not compared.
- Of harmless findings inspect tells 900, and counts the rest. Where there are more, only their number is compared.
"""

import concurrent.futures
import os
import random
import re
import sys
import threading
from collections import Counter, defaultdict

import host
from cluster_damage import KINDS, RARE, Damage
from clusters import OFFSET, Image
from host import speak, tool
from random_images import CLUSTERS, Made, Spoiled

SEED = 1
IMAGES = 100
DAMAGES = 10
BOUNDED = ("timeout", "--signal=KILL", "60")
COUNTED = ("refcount_too_low", "said_alone")
MOST_HARMLESS = 900
REFUSED = 20
CLEAN = (0, 3)
# What is said of the bytes of streams, of which qemu-img check looks at none.
BYTES = {"bad_compression", "shared_cluster"}
# What is said of two that have the same cluster, which qemu-img check knows by the count alone.
MEETINGS = {"overlap", "shared_cluster"}
TWO = "two changes"


class Said:
    """What qemu-img check says of clusters."""

    def __init__(self, path, cluster_bits):
        self.code, self.text = speak(*BOUNDED, "qemu-img", "check", "-f", "qcow2", path)
        counts = re.findall(r"^(ERROR|Leaked) cluster (\d+) refcount=(\d+) reference=(\d+)$", self.text, re.M)
        errors = [(int(cluster), int(uses)) for word, cluster, _, uses in counts if word == "ERROR"]
        used = {int(cluster): int(uses) for _, cluster, _, uses in counts}
        # More users than the counts of this width can tell.
        overflows = {int(at, 16) >> cluster_bits
                     for at in re.findall(r"^ERROR: overflow cluster offset=0x([0-9a-f]+)$", self.text, re.M)}
        self.overlapping = {cluster for cluster, uses in errors if uses > 1} | overflows
        self.low = {cluster for cluster, _ in errors} - self.overlapping
        copied = re.findall(r"^ERROR OFLAG_COPIED (?:data cluster: l2_entry|L2 cluster: l1_index=\d+ l1_entry)"
                            r"=([0-9a-f]+) refcount=(\d+)$", self.text, re.M)
        copied = {((int(value, 16) & OFFSET) >> cluster_bits, int(count)) for value, count in copied}
        # The count is what is stored; what is used once all the same says rightly that it is alone.
        self.alone = {cluster for cluster, count in copied if count > 1 and used.get(cluster, count) > 1}
        # Bit 63 that is wrong in another way harms nobody who reads, nor who counts.
        others = [line for line in re.findall("^ERROR.*", self.text, re.M) if not line.startswith("ERROR OFLAG_COPIED")]
        self.clean = self.code in CLEAN or self.code == 2 and not others and not self.alone

    @property
    def ended(self):
        return self.code in (0, 2, 3)

    @property
    def all(self):
        return self.overlapping | self.low | self.alone


class Found:
    """What inspect --check finds of clusters."""

    def __init__(self, program, path, cluster_bits):
        folder = os.path.dirname(path)
        self.outcome = program.run("inspect", path, "--check", "--allow-backing", folder, before=BOUNDED)
        doc = self.outcome.doc or {}
        self.findings, self.total = doc.get("findings"), doc.get("findings_total")
        self.places, self.counted = set(), set()
        for finding in self.findings or ():
            if finding["path"] != path or finding["offset"] is None:
                continue
            first, length = finding["offset"], max(finding["length"] or 1, 1)
            clusters = range(first >> cluster_bits, (first + length - 1 >> cluster_bits) + 1)
            self.places.update(clusters)
            if finding["kind"] in COUNTED:
                self.counted.update(clusters)

    @property
    def ended(self):
        """Whether it came to its end, with the code that goes with what it found, and told all of it that it may."""
        if self.findings is None or self.outcome.code != (REFUSED if self.outcome.doc["refused_total"] else 0):
            return False
        return self.total == len(self.findings) or self.is_cut

    @property
    def is_cut(self):
        return self.total > MOST_HARMLESS

    @property
    def kinds(self):
        return Counter(finding["kind"] for finding in self.findings or ())


class Check:
    """Makes images, damages them, and counts what came of it."""

    def __init__(self, program, scratch, tally, rng_seed):
        self.program, self.scratch, self.tally, self.rng_seed = program, scratch, tally, rng_seed
        self.room = scratch.tmpfs("images", "2G")
        self.pattern = os.path.join(self.room, "pattern")
        text = b"".join(b"line %07d of a file that compresses well\n" % number for number in range(9000))
        host.write(self.pattern, text[:300_000] + host.noise(1, 30_000) + text[300_000:])
        self.seen, self.features, self.spoiled = defaultdict(Counter), Counter(), []
        self.one_at_a_time = threading.Lock()

    def image(self, number):
        """One image, sound and then damaged in some of the ways that it has room for."""
        rng = random.Random(self.rng_seed + number)
        folder = os.path.join(self.room, str(number))
        os.mkdir(folder)
        try:
            made = Made(folder, self.pattern, rng)
            image = Image(made.path)
            try:
                self.sound(f"seed {self.rng_seed + number}", made, image)
                self.damaged(f"seed {self.rng_seed + number}", image, rng)
            finally:
                image.close()
        except Spoiled as spoiled:
            self.spoiled.append(f"seed {self.rng_seed + number}: {spoiled}")
        finally:
            tool("rm", "-r", folder)

    def see(self, kind, counts):
        with self.one_at_a_time:
            self.seen[kind].update(counts)

    def sound(self, name, made, image):
        said = Said(image.path, image.cluster_bits)
        if said.code not in CLEAN or image.is_marked:
            raise Spoiled(said.text[:300])
        found = Found(self.program, image.path, image.cluster_bits)
        steps = "\n    ".join(made.steps)
        clean = found.ended and not found.total and found.outcome.code == 0
        self.tally.expect(clean, f"{name}: nothing is found in a sound image", f"{found.outcome}\n    {steps}")
        zeroes = [entry for entry in image.active.entries if entry.value & 1 and not entry.packed]
        features = {
            **{f"clusters of {cluster}": image.cluster == cluster for cluster in CLUSTERS},
            **{f"counts of {bits} bits": image.count_bits == bits for bits in (1, 8, 16, 64)},
            "version 2": image.version == 2, "version 3": image.version == 3, "snapshots": bool(image.snapshots),
            "several snapshots": len(image.snapshots) > 1, "extended entries": image.entry_length == 16,
            "streams": bool(image.active.streams),
            "streams of snapshots": any(disk.streams for disk in image.snapshots),
            "zeroes with a place": any(entry.host for entry in zeroes),
            "zeroes without one": any(not entry.host for entry in zeroes),
            "several L2 tables": len(image.active.tables) > 1, "several refcount blocks": len(image.blocks) > 1,
            "bitmaps": any(parts for _, _, parts in image.bitmaps),
            "more L1 entries than the disk needs": bool(image.spare_l1()),
            **{word: any(word in step for step in made.steps)
               for word in ("zstd", "preallocation", "convert -c", "-b ", "snapshot -d", "snapshot -a", "resize")}}
        with self.one_at_a_time:
            self.features.update(features)

    def damaged(self, name, image, rng):
        damage = Damage(image, rng)
        kinds = list(KINDS)
        rng.shuffle(kinds)
        done = 0
        for kind in sorted(kinds, key=lambda kind: kind not in RARE):
            if done < DAMAGES and KINDS[kind][0](damage):
                self.compare(f"{name}, {kind}", kind, damage)
                done += 1
            damage.mend()
        for _ in range(2):
            two = [kind for kind in rng.sample(kinds, 2) if KINDS[kind][0](damage)]
            if two:
                self.compare(f"{name}, {' and '.join(two)}", TWO, damage)
            damage.mend()
        if image.version == 3 and rng.random() < 0.3:
            changed = [kind for kind in kinds[:1] if KINDS[kind][0](damage)]
            image.put(79, bytes([image.read(79, 1)[0] | 1]))
            self.dirty(f"{name}, dirty, {changed}", image)
            damage.mend()

    def both(self, name, image):
        said = Said(image.path, image.cluster_bits)
        found = Found(self.program, image.path, image.cluster_bits)
        self.tally.expect(0 <= said.code < 124, f"{name}: qemu-img check ends", said.text[-600:])
        self.tally.expect(found.ended, f"{name}: inspect ends", found.outcome)
        return said, found

    def compare(self, name, kind, damage):
        bits = damage.image.cluster_bits
        said, found = self.both(name, damage.image)
        self.see(kind, {"images": 1, "not checked by qemu-img": not said.ended})
        if not said.ended or not found.ended:
            return
        sets = {"overlap": said.overlapping, "low": said.low, "alone": said.alone}
        self.see(kind, {word: bool(clusters) for word, clusters in sets.items()})
        self.see(kind, {f"clusters ({word})": len(clusters) for word, clusters in sets.items()})
        why = f"{dict(found.kinds)} of {found.total}\n    {said.text[:600]}"
        wanted = said.all
        if damage.unfollowed:
            wanted = {at >> bits for at, sure in damage.unfollowed.values() if sure or at >> bits in said.overlapping}
        if found.is_cut:
            self.see(kind, {"more than are told": 1})
            self.tally.expect(found.total >= len(wanted), f"{name}: as much is told", why)
        else:
            missing = sorted(wanted - found.places)
            self.tally.expect(not missing, f"{name}: all clusters are told", f"not {missing[:10]}, {why}")
        strange = sorted(found.counted - said.all)
        self.tally.expect(not strange, f"{name}: no count is told that is right", f"{strange[:10]}, {why}")
        if said.clean and not damage.unfollowed:
            self.see(kind, {"clean": 1})
            kinds = set(found.kinds) - (BYTES if damage.moved_stream else set())
            kinds -= MEETINGS if damage.raised_count and kind == TWO else set()
            self.tally.expect(not kinds, f"{name}: nothing is told where qemu-img finds nothing", why)

    def dirty(self, name, image):
        _, found = self.both(name, image)
        self.see("dirty", {"images": 1})
        kinds = dict(found.kinds)
        self.tally.expect("refcount_too_low" not in kinds, f"{name}: no count of a dirty image is told", kinds)

    def images(self, count):
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for made in [pool.submit(self.image, number) for number in range(count)]:
                made.result()

    def report(self):
        for name, count in sorted(self.features.items()):
            print(f"  {name}: {count}")
        for kind, seen in sorted(self.seen.items()):
            print(f"  {kind}: {', '.join(f'{name} {count}' for name, count in seen.items() if count)}")
        for spoiled in self.spoiled:
            print(f"  spoiled by qemu-img itself, {spoiled}")

    def enough(self, count):
        """Every kind came up, and did what it can; hardly any image or damage was in vain."""
        self.tally.expect(len(self.spoiled) <= count // 20, "images that qemu-img makes are sound", self.spoiled)
        unchecked = sum(seen["not checked by qemu-img"] for seen in self.seen.values())
        self.tally.expect(unchecked <= count // 20, "qemu-img checks what was damaged", unchecked)
        for feature, images in self.features.items():
            self.tally.expect(images, f"images with {feature}: seen")
        for kind, (_, end) in KINDS.items():
            seen = self.seen[kind]
            self.tally.expect(seen["images"] and (not end or seen[end]), f"{kind}: seen", dict(seen))


def overlaps(program, scratch, tally, count=IMAGES, rng_seed=SEED):
    check = Check(program, scratch, tally, rng_seed)
    check.images(count)
    check.report()
    if count >= IMAGES:
        check.enough(count)


def main():
    if len(sys.argv) not in (3, 4) or os.geteuid() != 0:
        sys.exit(__doc__)
    tally, scratch = host.Tally(), host.Scratch("overlaps")
    try:
        rng_seed = int(sys.argv[3]) if len(sys.argv) == 4 else SEED
        overlaps(host.Program(sys.argv[1], scratch), scratch, tally, int(sys.argv[2]), rng_seed)
    finally:
        scratch.close()
    tally.end()


if __name__ == "__main__":
    main()
