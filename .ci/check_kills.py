#!/usr/bin/env python3
"""SIGKILL at any instant: the old disk, or one that says that it is unfinished and goes on, or the finished one.

Usage: check_kills.py BINARY COUNT [SEED]. Kills COUNT rebuilds and prints what was hit. Needs root.

Three disks are rebuilt side by side; of more than 100 kills the image is larger, so that each phase takes longer.
Disks have a valid GPT and noise on them before. After each kill the disk is looked at byte by byte and by the
host's tools, and the same command is given again: its disk must be right in every byte, nothing of the killed
run may be left, and what the killed run had noted as durable must not have been written a second time. What a
failure names first, the seed and the kill's number, makes the same plan again (though not the same instant).
"""

import collections
import contextlib
import copy
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import disks
import holders
import host
from host import MIB, tool

KILLS = 30
SEED = 6
IMAGE = 192 * MIB
BEHIND = 16 * MIB
"""The notes' file without any note, and with the shortest batch of notes: head, batch's head, one entry, checksum."""
NO_NOTES = 80
SOME_NOTES = NO_NOTES + 16 + 40 + 32
MARKER = b"reimage: unfinished rebuild\n"
CHECKPOINT = ("--checkpoint", "0.05")
"""Places, images, moments and what follows are counted through, so that a short campaign meets all of them."""
PLACES = ("loop", "in place", "replaced")
MOMENTS = ("random", "marker", "checkpoint", "random", "read back", "random", "verified", "random", "checkpoint",
           "last", "random")
AFTERWARDS = ("same", "same", "killed again", "tampered", "same", "touched", "same", "killed twice", "another image",
              "same", "restart", "same", "same")
PATIENCE = 60


class Images:
    """One disk as raw, zlib and zstd image, another disk, and the old one that they are written onto."""

    def __init__(self, scratch, size):
        self.size, self.disk = size, size + BEHIND
        self.paths = [self.raw(scratch / "system.raw", 3)]
        for kind in ("zlib", "zstd"):
            path = scratch / f"system-{kind}.qcow2"
            options = ("-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={kind}")
            tool("qemu-img", "convert", *options, self.paths[0], path)
            self.paths.append(path)
        self.another = self.raw(scratch / "another.raw", 5)
        old = host.make(scratch / "old.raw", self.disk)
        # Noise everywhere, so that whatever is left of it is seen.
        part = host.noise(9, 13 * MIB + 512)
        host.write(old, (part * (self.disk // len(part) + 1))[: self.disk])
        disks.labelled(old, "gpt")
        self.old = host.read(old)

    def raw(self, path, rng_seed):
        """Half noise, a third text, and holes between them."""
        disks.gpt_image(path, self.size, rng_seed)
        text = b"".join(b"line %07d of a file that compresses well\n" % number for number in range(40_000))
        for at in range(20 * MIB, self.size - 8 * MIB, 4 * MIB):
            host.write(path, host.noise(at + rng_seed, 2 * MIB), at)
            host.write(path, text[rng_seed * 1000 :], at + 2 * MIB + 12_345)
        return path


class Place:
    """A disk that is rebuilt again and again, and killed each time at another moment."""

    def __init__(self, kind, program, scratch, images):
        # Each has a state folder of its own.
        self.kind, self.program, self.images = kind, copy.copy(program), images
        self.scratch = scratch
        self.folder = scratch.folder_of(kind.replace(" ", "-"))
        self.path = host.make(os.path.join(self.folder, "disk.raw"), images.disk)
        self.target = scratch.loop(self.path) if kind == "loop" else self.path
        self.flags = ("--in-place",) if kind == "in place" else ()
        self.beside = os.path.join(self.folder, ".disk.raw.reimage-unfinished")
        self.undisturbed = {}
        # Its own, because one of them is touched while the other disks are rebuilt.
        self.paths = [scratch.folder_of(f"images-of-{kind}") + f"/{os.path.basename(path)}" for path in images.paths]
        for path, mine in zip(images.paths, self.paths):
            tool("cp", "--sparse=always", path, mine)
        self.content = bytearray(images.disk)
        self.telling = []
        # What a run leaves that ended well is no remainder of a killed one.
        self.remains = set()

    def reset(self, name):
        """The old disk again, and a state folder in which nothing has happened."""
        if self.kind == "replaced":
            for found in os.listdir(self.folder):
                os.unlink(os.path.join(self.folder, found))
        host.write(self.target, self.images.old)
        self.program.state = self.scratch.folder_of(f"state-{self.kind}-{name}")

    def words(self, image, *more):
        threads = {".raw": ("--threads", "1"), "zlib.qcow2": ()}
        few = next((words for end, words in threads.items() if image.endswith(end)), ("--threads", "2"))
        return (image, self.target, "--keep-image-credentials", "--yes", *few, *self.flags, *CHECKPOINT, *more)

    def measure(self, image):
        """What a run does that nobody disturbs: how long it takes, what it writes, and the finished disk."""
        self.reset("undisturbed")
        began = time.monotonic()
        outcome = self.program.run("rebuild", *self.words(image))
        seconds = time.monotonic() - began
        if outcome.code != 0:
            raise host.Broken(f"{self.kind}: the undisturbed run: {outcome}")
        self.remains |= self.left_over()
        self.undisturbed[image] = (seconds, outcome.report)
        return self.read()

    def read(self, path=None):
        """All that the disk holds, until the next call; '' if there is no such file."""
        path = path or self.target
        if not os.path.exists(path):
            return b""
        host.flush(path)
        with open(path, "rb", buffering=0) as disk:
            length = disk.readinto(self.content)
        return self.content if length == len(self.content) else self.content[:length]

    def left_over(self):
        """Files of the state folder by their kind, and what lies beside the disk."""
        found = {f"beside the disk: {name}" for name in os.listdir(self.folder) if name != "disk.raw"}
        for folder, _, names in os.walk(self.program.state):
            place = os.path.relpath(folder, self.program.state)
            found |= {f"in the state folder: {place}/*{os.path.splitext(name)[1]}" for name in names}
        return found

    def records(self):
        """The records of the disk's journal, as far as they are whole."""
        folder, found = os.path.join(self.program.state, "journals"), []
        names = os.listdir(folder) if os.path.isdir(folder) else []
        for name in names:
            try:
                with open(os.path.join(folder, name), "rb") as journal:
                    lines = journal.read().split(b"\n")
            except FileNotFoundError:
                continue
            for line in lines:
                try:
                    found.append(json.loads(line.partition(b" ")[2]))
                except ValueError:
                    continue
        return [record for record in found if isinstance(record, dict) and "record" in record]

    def noted(self):
        """How long the file beside the journal is: the notes of the chunks that are durable."""
        folder = os.path.join(self.program.state, "journals")
        names = [name for name in os.listdir(folder) if not name.endswith(".journal")] if os.path.isdir(folder) else []
        sizes = 0
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                sizes += os.path.getsize(os.path.join(folder, name))
        return sizes

    def named(self):
        return [record["record"] for record in self.records()]

    def head(self):
        """The disk's first bytes, past the device: a reader of it would be in the run's way."""
        with open(self.path, "rb") as handle:
            return handle.read(len(MARKER))


class Moment:
    """When a run is killed."""

    def __init__(self, kind, rng, seconds):
        self.kind = kind
        self.at = rng.uniform(0, 1.1) * seconds
        self.nth = rng.choice((1, 2, 3))
        self.sizes = set()
        self.wait = rng.uniform(0, 0.03) if kind != "last" else rng.uniform(0, 0.01)

    def has_come(self, place, began):
        """Whether the disk or the journal shows that it is time."""
        if self.kind == "random":
            return time.monotonic() - began >= self.at
        if self.kind == "marker" and place.kind != "replaced":
            return place.head() == MARKER
        names = place.named()
        if self.kind == "checkpoint":
            # Notes of chunks come in batches.
            self.sizes.add(place.noted())
            return len(self.sizes - {0}) > self.nth
        if self.kind == "marker":
            return "begun" in names
        if self.kind == "read back":
            return any(record.get("phase") == "read_back" for record in place.records()) or "verified" in names
        return ("exchanging" if self.kind == "last" and place.kind == "replaced" else "verified") in names


def kill(place, words, moment):
    """Starts a run and kills it when its moment has come; its exit code if it was over before, else None."""
    words = place.program.words("rebuild", *words)
    began = time.monotonic()
    run = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while run.poll() is None and not moment.has_come(place, began):
            if time.monotonic() - began > PATIENCE:
                raise host.Broken(f"no {moment.kind} in {PATIENCE} s")
            time.sleep(0.0005)
        time.sleep(moment.wait if moment.kind != "random" else 0)
    finally:
        run.kill()
        out, err = run.communicate()
    outcome = host.Outcome(words, run.returncode, out.decode(), err.decode())
    return None if run.returncode == -signal.SIGKILL else outcome


class Campaign:
    def __init__(self, program, scratch, tally, plan):
        self.tally, (self.seed, size) = tally, plan
        self.one_at_a_time = threading.Lock()
        self.images = Images(scratch, size)
        self.places = {kind: Place(kind, program, scratch, self.images) for kind in PLACES}
        self.finished = {}
        self.phases = {kind: collections.Counter() for kind in PLACES}
        self.modes = collections.Counter()
        self.late = collections.Counter()
        self.measure(self.places["loop"], self.images.paths[0])
        self.measure(self.places["loop"], self.images.another)
        # Side by side, as the runs that are going to be killed.
        self.side_by_side(lambda place: [self.measure(place, image) for image in place.paths])

    def side_by_side(self, work):
        holders.at_once(*(lambda place=place: work(place) for place in self.places.values()))

    def measure(self, place, image):
        """The finished disk is the same for each place and each format of the image."""
        disk = self.images.another if image == self.images.another else self.images.paths[0]
        name, found = f"{place.kind}: {os.path.basename(image)} undisturbed", place.measure(image)
        if disk not in self.finished:
            self.finished[disk] = bytes(found)
            self.tally.expect(not (why := disks.problems(place.target)), f"{name}: sgdisk --verify", why)
            changed = place.undisturbed[image][1]["gpt"].get("changed", [])
            right = bytearray(host.read(disk).ljust(self.images.disk, b"\0"))
            for part in changed:
                at = slice(part["offset"], part["offset"] + part["len"])
                right[at] = found[at]
            few = sum(part["len"] for part in changed) <= 64 << 10
            self.tally.expect(few and right == found, f"{name}: the image", changed)
        with self.one_at_a_time:
            self.finished[image] = self.finished[disk]
        self.tally.expect(found == self.finished[disk], f"{name}: the same disk")

    def one(self, number):
        """One kill (or two or three in a row), and the run that must put everything right."""
        place = self.places[PLACES[number % 3]]
        image = place.paths[number // 3 % 3]
        afterwards = AFTERWARDS[number % len(AFTERWARDS)]
        place.reset(number)
        rng = place.rng = random.Random(f"{self.seed}, {number}")
        kinds = [MOMENTS[number % len(MOMENTS)]]
        kinds += [rng.choice(MOMENTS) for _ in range({"killed again": 1, "killed twice": 2}.get(afterwards, 0))]
        seen = None
        for turn, kind in enumerate(kinds):
            moment = Moment(kind, rng, place.undisturbed[image][0])
            more = ("--allow-open-reader", os.getpid()) if kind == "marker" else ()
            over = kill(place, place.words(image, *more), moment)
            name = f"seed {self.seed}, kill {number}.{turn}: {place.kind}, {os.path.basename(image)}, {kind}"
            if over is not None:
                self.tally.expect(over.code == 0, f"{name}: over before", over)
            seen = self.examine(place, image, name, over)
        name = f"seed {self.seed}, kill {number}: {place.kind}, {os.path.basename(image)}"
        self.again(place, image, (name, afterwards), seen)

    def examine(self, place, image, name, over):
        """What the kill left: one of three disks, and all that looks at it agrees."""
        now, new, names = place.read(), self.finished[image], place.named()
        status = place.program.run("status", place.target, "--state-dir", place.program.state)
        said = (status.doc or {}).get("state")
        if over is not None:
            phase = "over"
            self.tally.expect(now == new and said == "stopped", f"{name}: over and right", status)
        elif now in (self.images.old, new):
            # A file that is replaced is the old one until it is the new one.
            step = "exchanging" if "exchanging" in names else "verified" if "verified" in names else "copy"
            step = "begin" if "begun" not in names else step if place.kind == "replaced" else "begun"
            phase = f"old disk, {step}" if now == self.images.old else "new disk, journal left" if names else "new disk"
            self.tally.expect(said == "stopped", f"{name}: {phase}: status", status)
        else:
            phase = self.unfinished(place, name, now, names)
            self.tally.expect(status.code == 0 and said == "failed", f"{name}: {phase}: status", status)
            self.tally.expect(place.kind != "replaced", f"{name}: a file that is replaced is old or new", now[:64])
        self.phases[place.kind][phase] += 1
        return phase, self.share(place, now, new), place.noted()

    def unfinished(self, place, name, now, names):
        """A disk that is neither old nor new: it says so, and nobody finds anything else on it."""
        marked = now.startswith(MARKER) and now[510:512] != b"\x55\xaa"
        self.tally.expect(marked, f"{name}: the marker", now[:64])
        head, tail = now[4096 : disks.CHUNK], now[-disks.CHUNK :]
        if not any(head) and not any(tail):
            self.tally.expect(not (seen := disks.sightings(place.target)), f"{name}: nothing to see", seen)
            read_back = any(record.get("phase") == "read_back" for record in place.records())
            return "verified" if "verified" in names else "read back" if read_back else "copy"
        # One end is there and the other is not: nothing that mounts or boots by itself may see it.
        phase = "invalidating" if tail == self.images.old[-disks.CHUNK :] else "finishing"
        code, text = host.speak("blkid", "--probe", "--cache-file", "/dev/null", place.target)
        kept = {"zfs_member", "linux_raid_member"} if phase == "invalidating" else set()
        self.tally.expect(code == 2 or any(word in text for word in kept), f"{name}: {phase}: blkid", text)
        return phase

    def share(self, place, now, new):
        """How much of the copy is there: chunks that were not right before and are now."""
        old = self.images.old if place.kind != "replaced" else bytes(len(new))
        if not place.telling:
            # The first page of each chunk that is not what it was before.
            for chunk in range(MIB, len(new) - 2 * MIB, MIB):
                pages = (slice(at, at + 4096) for at in range(chunk, chunk + MIB, 4096))
                place.telling += [page for page in pages if new[page] != old[page]][:1]
        if place.kind != "replaced":
            return sum(now[page] == new[page] for page in place.telling) / len(place.telling)
        if not os.path.exists(place.beside):
            return 0.0
        with open(place.beside, "rb") as beside:
            found = [os.pread(beside.fileno(), 4096, page.start) == new[page] for page in place.telling]
        return sum(found) / len(found)

    def tamper(self, place):
        """Somebody writes on the unfinished disk in between; whoever trusts a journal alone does not see it."""
        path = place.beside if place.kind == "replaced" else place.target
        if os.path.exists(path) and host.size_of(path) == self.images.disk:
            for at in (place.rng.randrange(MIB, self.images.disk - 2 * MIB) for _ in range(3)):
                host.write(path, b"tampered", at)

    def again(self, place, image, what, seen):
        """The same command once more, or what is to start over; then the disk is right and nothing is left."""
        (name, afterwards), (phase, share, notes) = what, seen
        more, unfinished = (), phase in ("copy", "read back", "verified", "finishing", "invalidating")
        # The new file beside the old disk, until it takes its place.
        beside = ("old disk, copy", "old disk, verified", "old disk, exchanging")
        has_more = unfinished or place.kind == "replaced" and phase in beside
        if afterwards == "tampered" and (unfinished or place.kind == "replaced" and phase.startswith("old disk")):
            self.tamper(place)
        elif afterwards == "touched":
            os.utime(image)
        elif afterwards == "another image":
            image = self.images.another
        elif afterwards == "restart":
            more = ("--restart",)
        outcome = place.program.run("rebuild", *place.words(image, *more), timeout=PATIENCE)
        name = f"{name}, after {phase}, {afterwards}"
        if not self.tally.expect(outcome.code == 0, f"{name}: the next run", outcome):
            return
        at = None if (now := place.read()) == self.finished[image] else host.first_difference(now, self.finished[image])
        self.tally.expect(at is None, f"{name}: the disk", f"byte {at} is wrong")
        left = place.left_over() - place.remains
        if left == {"in the state folder: locks/*.lock"}:
            # That of an inode that is gone, of a run that was killed behind everything else: no run looks for it.
            pruned = place.program.run("status", "--prune", "--state-dir", place.program.state)
            self.tally.expect(pruned.code == 0, f"{name}: prune", pruned)
            left = place.left_over() - place.remains
        self.tally.expect(not left, f"{name}: nothing is left", left)
        status = place.program.run("status", place.target, "--state-dir", place.program.state)
        self.tally.expect((status.doc or {}).get("state") == "stopped", f"{name}: status", status)
        self.examine_report(place, image, (name, afterwards), (unfinished, share, has_more and notes), outcome)

    def examine_report(self, place, image, what, seen, outcome):
        """What is said of the next run: whether it went on, and that it then wrote less."""
        (name, afterwards), (unfinished, share, notes), report = what, seen, outcome.report
        mode, kept, written = report["mode"], report["bytes_kept"], report["bytes_written"]
        with self.one_at_a_time:
            self.modes[mode] += 1
        fresh = (place.undisturbed.get(image) or self.places["loop"].undisturbed[image])[1]["bytes_written"]
        if afterwards in ("touched", "another image", "restart"):
            self.tally.expect(mode != "resumed" and kept == 0, f"{name}: starts over", (mode, kept))
            says = re.search(r"start\w* over|ignored", outcome.out + outcome.err)
            self.tally.expect(says or not unfinished, f"{name}: says so", outcome.err)
            self.tally.expect(written == fresh, f"{name}: all is written", (written, fresh))
            return
        if mode == "resumed" and kept:
            self.tally.expect(written < fresh, f"{name}: writes less", (written, fresh, kept))
        noted = (report["plan"]["unfinished"] or {}).get("bytes_noted", 0)
        # However much of it was copied: what is durable and noted is gone on with, and written once.
        goes_on = mode == "resumed" and kept > 0
        if notes >= SOME_NOTES:
            self.tally.expect(goes_on and noted > 0, f"{name}: goes on", (mode, kept, noted, notes, share))
            all_kept = kept >= noted or afterwards == "tampered"
            self.tally.expect(all_kept, f"{name}: keeps what was noted", (kept, noted))
        if notes and share >= 0.5:
            with self.one_at_a_time:
                self.late[goes_on] += 1

    def figures(self):
        for kind, phases in self.phases.items():
            print(f"  {kind}: {sum(phases.values())} kills:", ", ".join(f"{n} {p}" for p, n in phases.most_common()))
        lengths = [seconds for place in self.places.values() for seconds, _ in place.undisturbed.values()]
        print(f"  undisturbed runs take {min(lengths):.2f} to {max(lengths):.2f} s; the next run: {dict(self.modes)}; "
              f"killed in the later half of the copy: {self.late[True]} went on, {self.late[False]} did not", flush=True)
        early = {"begun", "old disk, begin", "old disk, begun", "invalidating"}
        middle = {"copy", "old disk, copy"}
        seen = {kind: set(phases) for kind, phases in self.phases.items()}
        # Of a few kills not each place has one in each phase.
        if sum(sum(phases.values()) for phases in self.phases.values()) <= 100:
            seen = {"all places": set().union(*seen.values())}
        for kind, phases in seen.items():
            late = phases - {"over", "new disk"} - middle - early
            self.tally.expect(phases & middle and late, f"seed {self.seed}: {kind}: kills in every phase", phases)
        self.tally.expect(self.late[True] > self.late[False], f"seed {self.seed}: late kills go on", dict(self.late))


def kills(program, scratch, tally, count=KILLS, seed=SEED):
    campaign = Campaign(program, scratch, tally, (seed, IMAGE))

    def lane(place):
        for number in range(PLACES.index(place.kind), count, len(PLACES)):
            campaign.one(number)
            if number % 100 == 99:
                print(f"  about {number + 1} kills, {tally.passed} passed, {len(tally.failed)} failed", flush=True)

    campaign.side_by_side(lane)
    campaign.figures()
    files = tool("losetup", "--list", "--noheadings", "--output", "BACK-FILE").splitlines()
    # Others on this host have loop devices of their own; here the target is one.
    mine = [file for file in files if file.startswith(scratch.folder)]
    tally.expect(len(mine) == 1, "no loop device is left", mine)


def main():
    if len(sys.argv) not in (3, 4) or os.geteuid() != 0:
        sys.exit(__doc__)
    tally, scratch = host.Tally(), host.Scratch("kills")
    try:
        seed = int(sys.argv[3]) if len(sys.argv) == 4 else SEED
        kills(host.Program(sys.argv[1], scratch), scratch, tally, int(sys.argv[2]), seed)
    finally:
        scratch.close()
    tally.end()


if __name__ == "__main__":
    main()
