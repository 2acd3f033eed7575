"""Faults of the host: no room, a disk or an image that cannot be read, a journal that cannot be kept, signals.

After each of them: the right exit code, what is said of the disk is true, the old disk where a file is replaced,
else a disk that says that it is unfinished; nothing is left over; and the next run without the fault ends right.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time

import host
from check_faults import says_unfinished
from faulty import Faulty
from host import MIB, inject
from kernel import compressed_memory, device_mapper, forget_cache

OLD = 12 * MIB
IMAGE = 8 * MIB
LIMIT = 60
"""Seconds; a run that takes longer hangs."""
PATIENCE = 60
SEED = 12
TEMPORARY = ".disk.raw.reimage-unfinished"


class Rig:
    """A disk with old content, the image, and what both must hold in the end."""

    def __init__(self, program, scratch, tally, room=None, sizes=(IMAGE, OLD)):
        self.program, self.scratch, self.tally = program, scratch, tally
        self.image = scratch / "image.raw"
        host.write(host.make(self.image, 0), host.noise(51, sizes[0]))
        self.old, self.new = host.noise(52, sizes[1]), host.read(self.image).ljust(sizes[1], b"\0")
        self.image_size = sizes[0]
        self.folder = room or scratch.folder_of("faulted")
        self.path = self.target = os.path.join(self.folder, "disk.raw")
        self.flags = ()

    def place(self, kind):
        """The old disk as a file that is replaced, one that is written in place, none, or a device."""
        for name in os.listdir(self.folder):
            os.unlink(os.path.join(self.folder, name))
        shutil.rmtree(self.program.state, ignore_errors=True)
        self.kind, self.target = kind, self.path
        self.flags = ("--in-place",) if kind == "in place" else ()
        if kind != "new file":
            host.write(host.make(self.path, 0), self.old)
        if kind == "loop":
            self.target = self.scratch.loop(self.path)
        return self

    def put_away(self):
        if self.kind == "loop":
            self.scratch.unloop(self.target)

    def run(self, *more, **how):
        return self.program.rebuild(self.image, self.target, *self.flags, *more, timeout=PATIENCE, **how)

    def now(self):
        return host.read(self.target) if os.path.exists(self.target) else None

    def truth(self, name, outcome, codes, beside=()):
        """What is said of the disk, and what it says itself, against what it holds."""
        name, now = f"{self.kind}: {name}", self.now()
        old = None if self.kind == "new file" else self.old
        expect = self.tally.expect
        expect(outcome.code in codes, f"{name}: exit {codes}", outcome)
        expect("no end after" not in outcome.err, f"{name}: no hang", outcome)
        if outcome.code == 0:
            expect((now or b"")[: len(self.new)] == self.expected(), f"{name}: done is true", outcome)
        else:
            expect(outcome.error.get("code") == outcome.code, f"{name}: the document", outcome)
            untouched = outcome.state == "untouched"
            expect(untouched or outcome.code >= 30, f"{name}: says untouched", outcome)
            expect(not untouched or now == old, f"{name}: untouched is true", outcome)
            if self.kind in ("replaced", "new file"):
                expect(now in (old, self.expected()), f"{name}: old or new", outcome)
            elif now not in (self.old, self.new):
                says_unfinished(self.program, self.tally, name, self.target)
            expect(outcome.state in ("written", "verified") or now != self.new, f"{name}: complete is told", outcome)
        left = set(os.listdir(self.folder)) - {"disk.raw", *beside}
        if outcome.state == "verified":
            # The old disk behind an exchange of which it is not known whether it is durable.
            left -= {TEMPORARY}
        expect(not left, f"{name}: nothing is left beside it", left)

    def expected(self):
        return self.new[: self.image_size] if self.kind == "new file" else self.new

    def right(self, name, *more, **how):
        """The next run, without the fault."""
        outcome = self.run(*more, **how)
        name = f"{self.kind}: the run after {name}"
        if self.tally.expect(outcome.code == 0, name, outcome):
            at = host.first_difference(self.now(), self.expected())
            self.tally.expect(at is None, f"{name}: the disk", f"byte {at} is wrong")
            journals = os.path.join(self.program.state, "journals")
            left = os.listdir(journals) if os.path.isdir(journals) else []
            self.tally.expect(not left, f"{name}: no journal is left", left)
            left = set(os.listdir(self.folder)) - {"disk.raw"}
            self.tally.expect(not left, f"{name}: nothing is left beside it", left)


PLACES = ("replaced", "in place", "loop")
"""How a run fails, by the step that it has come to: the state folder, the disk, the image, the journal, the copy."""
STEPS = ((2, "untouched"), (14, "untouched"), (20, "untouched"), (30, "untouched"), (30, "invalidated"),
         (30, "partial"), (30, "written"), (30, "verified"))


def in_order(tally, name, outcomes):
    """A fault that comes later in the run never ends it at an earlier step."""
    ends = [(outcome.code, outcome.state) for outcome in outcomes if outcome.code != 0]
    known = all(end in STEPS for end in ends)
    tally.expect(known and sorted(ends, key=STEPS.index) == ends, f"{name}: by step", ends)


def full_disk(program, scratch, tally):
    """A file system without room for the new disk; a limit on a file's size."""
    for kind, size in (("replaced", OLD + 4 * MIB), ("in place", 6 * MIB), ("new file", 4 * MIB)):
        room = scratch.tmpfs("room", size)
        rig = Rig(program, scratch, tally, room)
        old, rig.old = rig.old, rig.old if kind != "in place" else bytes(OLD)
        rig.place("new file" if kind == "in place" else kind)
        if kind == "in place":
            # A thin disk.
            host.make(rig.path, OLD)
            rig.kind, rig.flags = kind, ("--in-place",)
        # The room for a new file is looked at before; a thin disk says nothing of what it lacks.
        rig.truth("a full file system", rig.run(), (30,) if kind == "in place" else (12,))
        host.tool("mount", "-o", "remount,size=64M", room)
        rig.right("a full file system")
        rig.old = old
        scratch.unmount(room)
    rig = Rig(program, scratch, tally)
    for kind in ("replaced", "in place", "new file"):
        for limit in (2048, 4096, 8191):
            limited = ("bash", "-c", f'ulimit -f {limit}; exec "$@"', "limited")
            # In place the file is as large as it gets, and a limit is one of offsets; a new one gets its size first.
            codes = (30,) if kind == "in place" else (14,)
            rig.place(kind).truth(f"a limit of {limit} KiB", rig.run(before=limited), codes)
            rig.right(f"a limit of {limit} KiB")


def failing_devices(program, scratch, tally):
    """Devices that take less than they say: a loop device that cannot grow, and compressed memory with a limit."""
    room = scratch.tmpfs("room", 6 * MIB)
    rig = Rig(program, scratch, tally, room)
    rig.kind, rig.flags, rig.old = "loop that cannot grow", (), bytes(OLD)
    rig.target = scratch.loop(host.make(rig.path, OLD))
    rig.truth("no room", rig.run(), (30,))
    host.tool("mount", "-o", "remount,size=64M", room)
    rig.right("no room")
    scratch.unloop(rig.target)
    scratch.unmount(room)

    rig = Rig(program, scratch, tally, scratch.folder_of("no-file"))
    with compressed_memory(OLD, 3 * MIB) as (device, folder):
        if device is None:
            print("  zram: NOT AVAILABLE on this kernel, not checked")
            return
        rig.kind, rig.flags, rig.target, rig.old = "zram with a limit", (), device, bytes(OLD)
        rig.truth("no room", rig.run(), (30,))
        host.write(os.path.join(folder, "mem_limit"), b"0")
        rig.right("no room")


def image_faults(program, scratch, tally):
    """An image that cannot be read in the middle."""
    rig = Rig(program, scratch, tally)
    right = rig.image
    with Faulty(scratch, right, f"read:{5 * MIB + 17}") as faulty:
        for kind in PLACES:
            rig.place(kind).image = faulty.mount_point
            faulty.fails(True)
            forget_cache()
            outcome = rig.run()
            rig.truth("an image that cannot be read", outcome, (32,))
            at, length = outcome.error.get("offset", -1), outcome.error.get("length", 0)
            tally.expect(at <= 5 * MIB + 17 < at + length, f"{kind}: an image that cannot be read: where", outcome)
            path = outcome.error.get("path")
            tally.expect(path == faulty.mount_point, f"{kind}: an image that cannot be read: its path", outcome)
            faulty.fails(False)
            rig.right("an image that cannot be read")
            rig.put_away()
    # A device whose store has been cut underneath.
    store = host.make(scratch / "cut.raw", 0)
    host.write(store, host.read(right))
    device = scratch.loop(store, "--read-only")
    for kind in PLACES:
        rig.place(kind).image = device
        os.truncate(store, 5 * MIB)
        forget_cache()
        # The image's end is looked at before anything is copied.
        rig.truth("an image's device that was cut", rig.run(), (20,))
        host.write(store, host.read(right))
        host.flush(device)
        rig.right("an image's device that was cut")
        rig.put_away()
    scratch.unloop(device)
    rig.image = right
    for call in ("pread64", "preadv,preadv2"):
        for kind in PLACES:
            codes = []
            for nth in range(1, LIMIT):
                fault = inject(call, f"error=EIO:when={nth}", right)
                outcome = rig.place(kind).run("--threads", "1", before=fault)
                if outcome.code != 0:
                    # 20 for those of the plan, 32 for those from the copy on.
                    codes.append(outcome.code)
                    rig.truth(f"{call} {nth} of the image fails", outcome, (32,) if 32 in codes else (20, 32))
                rig.put_away()
                if outcome.code == 0:
                    break
            tally.expect(nth < LIMIT, f"{kind}: an end of {call}", nth)
            # No read of an image is a plain one.
            wanted = {20, 32} if call != "pread64" else set()
            tally.expect(set(codes) == wanted, f"{kind}: {call} in the plan and in the copy", codes)


def target_faults(program, scratch, tally):
    """A disk that cannot be read back, written or synced at one place, or that does everything by halves."""
    rig = Rig(program, scratch, tally)
    for fault in (f"read:{6 * MIB + 5}", "read:0", f"read:{OLD - 1}", f"write:{3 * MIB}", f"write:{10 * MIB + 1}",
                  "fsync:0"):
        # A loop device over such a file is refused: what lies behind it may not answer.
        rig.place("in place")
        with Faulty(scratch, rig.path, fault) as faulty:
            rig.kind, rig.target = "in place behind FUSE", faulty.mount_point
            faulty.fails(True)
            forget_cache()
            outcome = rig.run()
            faulty.fails(False)
            # A disk whose head cannot be read may be anybody's; of its end the plan makes no use.
            rig.truth(fault, outcome, (14,) if fault == "read:0" else (30,), ("disk.raw.behind", "disk.raw.switch"))
            outcome = rig.run()
            tally.expect(outcome.code == 0 and rig.now() == rig.new, f"{rig.kind}: the run after {fault}", outcome)
        os.unlink(faulty.mount_point)
    rig.place("in place")
    with Faulty(scratch, rig.path, "short:0") as faulty:
        faulty.fails(True)
        rig.target = faulty.mount_point
        rig.truth("half of every call", rig.run(), (0,), ("disk.raw.behind", "disk.raw.switch"))
    os.unlink(faulty.mount_point)


def state_faults(program, scratch, tally):
    """A state folder that is full, gets full, is read-only, or goes."""
    usual = program.state
    try:
        for kind in PLACES:
            full_state(program, scratch, tally, kind)
            read_only_state(program, scratch, tally, kind)
        program.state = usual
        for kind in PLACES:
            removed_state(program, scratch, tally, kind)
    finally:
        program.state = usual


def full_state(program, scratch, tally, kind):
    """From no room at all, page by page, to enough: the journal fills up at each of its records."""
    codes = []
    for pages in range(0, 40):
        program.state = os.path.join(scratch.tmpfs("state-room", 1 * MIB), "state")
        rig = Rig(program, scratch, tally).place(kind)
        filler = os.path.join(os.path.dirname(program.state), "filler")
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as handle:
            while handle.write(bytes(4096)):
                pass
        os.truncate(filler, max(os.path.getsize(filler) - pages * 4096, 0))
        outcome = rig.run()
        rig.truth(f"{pages} pages of room for the state", outcome, (0, 2, 30))
        codes += [outcome.code] if outcome.code not in codes[-1:] else []
        # No room for the notes' file is seen before the run begins; then for its first record, and nothing is touched.
        untouched = outcome.code == 0 or outcome.state == "untouched"
        named = outcome.code == 0 or str(outcome.error.get("path", "")).startswith(program.state)
        tally.expect(untouched and named, f"{kind}: {pages} pages of room: what is said", outcome)
        os.unlink(filler)
        rig.right(f"{pages} pages of room for the state")
        rig.put_away()
        scratch.unmount(os.path.dirname(program.state))
        if outcome.code == 0:
            break
    tally.expect(codes == [2, 30, 0], f"{kind}: a full state folder, room for its files, and for all", (pages, codes))


def read_only_state(program, scratch, tally, kind):
    for there in (False, True):
        room = scratch.tmpfs("state-room", 1 * MIB)
        program.state = os.path.join(room, "state")
        rig = Rig(program, scratch, tally).place(kind)
        if there:
            os.makedirs(os.path.join(program.state, "journals"))
        host.tool("mount", "-o", "remount,ro", room)
        outcome = rig.run()
        rig.truth(f"a state folder that is read-only, {there}", outcome, (2,))
        host.tool("mount", "-o", "remount,rw", room)
        rig.right("a state folder that is read-only")
        rig.put_away()
        scratch.unmount(room)
        rig.place(kind)
        with_state = scratch.folder_of("state-bound")
        os.makedirs(os.path.join(with_state, "journals"), exist_ok=True)
        where = scratch.mount(with_state, "state-view", "--bind", "-o", "ro")
        program.state = where
        rig.truth("a state folder that is mounted read-only", rig.run(), (2,))
        scratch.unmount(where)
        program.state = with_state
        rig.right("a state folder that is mounted read-only")
        rig.put_away()
        shutil.rmtree(with_state)


class Stopped:
    """A rebuild that is stopped once the journal has a record, until it is told to go on."""

    def __init__(self, rig, record, *more):
        self.words = rig.program.words("rebuild", rig.image, rig.target, "--keep-image-credentials", "--yes",
                                       "--threads", "1", *rig.flags, *more)
        slow = inject("fdatasync,fsync", "delay_enter=20000")
        self.process = subprocess.Popen([*slow, *self.words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)
        folder, late, self.found = os.path.join(rig.program.state, "journals"), time.monotonic() + PATIENCE, False
        while not self.found and self.process.poll() is None and time.monotonic() < late:
            with contextlib.suppress(OSError):
                for name in os.listdir(folder):
                    with open(os.path.join(folder, name), "rb") as journal:
                        self.found |= f'"record":"{record}"'.encode() in journal.read()

    def end(self):
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            err += b"\nno end after"
        return host.Outcome(self.words, self.process.returncode, out.decode(), err.decode())


def removed_state(program, scratch, tally, kind):
    """Somebody removes the state folder during the run."""
    for record in ("begun", "verified"):
        rig = Rig(program, scratch, tally).place(kind)
        run = Stopped(rig, record)
        tally.expect(run.found, f"{kind}: the record {record}", run.words)
        # The run is in one of its slow syncs. Its journal goes with the folder, at once.
        gone = f"{program.state}-gone"
        os.rename(program.state, gone)
        journals = os.path.join(gone, "journals")
        had_one = any(name.endswith(".journal") for name in os.listdir(journals)) if os.path.isdir(journals) else False
        shutil.rmtree(gone)
        outcome = run.end()
        # The disk is complete, and the journal of a finished run cannot be removed; 0 where it had been.
        rig.truth(f"the state folder goes after {record}", outcome, (30,) if had_one else (0,))
        good = outcome.code == 0 or outcome.state == "verified"
        tally.expect(good, f"{kind}: the state folder goes after {record}: says verified", outcome)
        rig.right(f"the state folder goes after {record}")
        rig.put_away()


def calls_fail(program, scratch, tally):
    """Each sync of a run fails once; each read and write is interrupted, or comes back with less or nothing."""
    rig = Rig(program, scratch, tally, sizes=(3 * MIB, 5 * MIB))
    # What the kernel answers, the exit codes beside 0, and whether it is about target and image alone. Some failures
    # are no end of a run: after a sync that fails, everything is written again; an old label that cannot be read is
    # none; without the notes of its chunks a run cannot be gone on with.
    faults = (
        # 2 for the state folder's files and their folders, 30 for a record of the journal, and for the disk.
        ("fsync,fdatasync", "error=EIO", (2, 30), False),
        ("pwrite64,pwritev2", "error=EINTR", (), False),
        ("pread64", "error=EINTR", (), True),
        ("pwrite64,pwritev2", "error=EAGAIN", (2, 30), False),
        # 14 for the disk's head when it is opened, 30 for what is read back. No read of an image is a plain one.
        ("pread64", "error=EAGAIN", (14, 30), True),
        ("pread64", "error=EIO", (14, 30), True),
        # Nothing was done.
        ("pwrite64,pwritev2", "retval=0", (2, 30), False),
        # The disk ends before its end, where it is read back; when it is opened it merely has no label.
        ("pread64", "retval=0", (30,), True),
        # The kernel says that it has done so much, and has done nothing: what is read back tells, and is put right.
        ("pwrite64,pwritev2", "retval=512", (), "target"),
        ("pread64", "retval=512", (), "target"),
    )
    counts, at_once_named = {}, {}
    for kind in PLACES:
        for call, what, codes, only in faults:
            beside = os.path.join(rig.folder, TEMPORARY)
            outcomes = []
            # There are many reads: of most faults the first ones and each fourth are enough here.
            for nth in (nth for nth in range(1, LIMIT) if nth < 7 or nth % 4 == 1 or call != "pread64" or not codes):
                rig.place(kind)
                paths = (rig.target, beside, *(() if only == "target" else (rig.image,))) if only else ()
                named = ()
                if only and kind == "replaced":
                    paths += (rig.folder,)
                    if (call, paths) not in at_once_named:
                        at_once_named[call, paths] = with_name(rig, call, paths)
                    named = at_once_named[call, paths]
                last = counts.setdefault((kind, call, only), None)
                if last is None:
                    last = counts[kind, call, only] = how_many(rig, call, paths, named)
                before = inject(call, f"{what}:when={nth}", *paths)
                outcome = rig.run("--threads", "1", before=(*before, *named))
                rig.truth(f"{call} {nth} {what}", outcome, (0, *codes))
                outcomes.append(outcome)
                if outcome.code != 0 and nth % 5 == 1:
                    rig.right(f"{call} {nth} {what}")
                rig.put_away()
                if nth >= last:
                    break
            tally.expect(1 <= nth < LIMIT, f"{kind}: {call} is called, and an end of it", nth)
            in_order(tally, f"{kind}: {call} {what}", outcomes)
            met = {outcome.code for outcome in outcomes} - {0}
            tally.expect(met == set(codes), f"{kind}: {call} {what}: each of {codes} is met", met)
    print("  calls that failed in each way:", ", ".join(f"{kind} {call}: {most}" for (kind, call, only), most
                                                       in counts.items() if only != "target"))


def calls_of(rig, call, paths, more=()):
    """The calls that each thread of an undisturbed run makes; of all files, or of these."""
    only = [word for path in paths for word in ("-P", path)]
    log = rig.scratch / "calls"
    rig.run("--threads", "1", before=("strace", "-ff", "-qq", *only, "-e", f"trace={call}", "-o", log, *more))
    threads = []
    for name in os.listdir(rig.scratch.folder):
        if name.startswith("calls."):
            with open(rig.scratch / name, encoding="utf-8", errors="replace") as lines:
                threads.append([line for line in lines if line.startswith(tuple(call.split(",")))])
            os.unlink(rig.scratch / name)
    rig.put_away()
    rig.place(rig.kind)
    return threads


def how_many(rig, call, paths, more=()):
    """The most calls that one thread of an undisturbed run makes; of all files, or of these."""
    return max((len(calls) for calls in calls_of(rig, call, paths, more)), default=0)


def with_name(rig, call, paths):
    """Lets a run name its new file at once, as on a file system that makes none without: strace asks for names."""
    for calls in calls_of(rig, "openat", paths):
        for number, line in enumerate(calls, 1):
            if "O_TMPFILE" in line:
                return ("-e", f"trace={call},openat", "-e", f"inject=openat:error=EOPNOTSUPP:when={number}")
    raise host.Broken("no file without a name is made")


def two_signals(program, scratch, tally):
    """A second signal, soon after the first or at once, changes nothing of how the run ends."""
    rng = random.Random(SEED)
    rig = Rig(program, scratch, tally, sizes=(46 * MIB, 48 * MIB))
    codes = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
    for number in range(18):
        rig.place(PLACES[number % 3])
        first, second = (rng.choice(list(codes)) for _ in range(2))
        # With -D the program is the process that is started here; each of its writes takes a while.
        words = ["strace", "-D", *inject("pwrite64,pwritev2", "delay_enter=10000")[1:], program.binary, "rebuild",
                 rig.image, rig.target, "--keep-image-credentials", "--yes", *rig.flags, "--json", "--progress", "json",
                 "--state-dir", program.state, "--threads", "1"]
        run = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for line in run.stderr:
            event = json.loads(line)
            if event.get("type") == "progress" and event.get("phase") == "copy" and event.get("bytes_done"):
                break
        wait = rng.choice((0, 0, 0.001, 0.005, 0.02))
        run.send_signal(first)
        time.sleep(wait)
        run.send_signal(second)
        try:
            out, err = run.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            run.kill()
            out, err = run.communicate()
            err += b"\nno end after"
        outcome = host.Outcome(words, run.returncode, out.decode(), err.decode())
        # Both are pending when they come at once, and the kernel hands out the lower number first.
        wanted = {codes[first], codes[second]} if wait < 0.005 else {codes[first]}
        rig.truth(f"seed {SEED}, {first.name}, {second.name} after {wait} s", outcome, wanted)
        if number % 3 == 2 or number < 6:
            rig.right(f"{first.name} and {second.name}")
        rig.put_away()


def real_faults(program, scratch, tally):
    device_mapper()
    for part in (full_disk, failing_devices, image_faults, target_faults, state_faults, calls_fail, two_signals):
        began, before = time.monotonic(), tally.passed
        part(program, scratch.inside(part.__name__), tally)
        print(f"  {part.__name__}: {tally.passed - before} passed, {time.monotonic() - began:.1f} s", flush=True)
