"""While a rebuild runs nobody else gets the disk; who comes all the same is seen; afterwards all is free."""

import collections
import contextlib
import errno
import fcntl
import os
import random
import re
import shutil
import subprocess
import threading
import time

import holders
import host
from check_aliases import done, second_node
from check_faults import failed, says_unfinished
from check_refusals import Bench
from holders import Paused, at_once, named
from host import MIB, Program, tool


def claim(program, scratch, tally):
    b = Bench(program, scratch, tally)
    # Long enough to be stopped in its middle.
    b.image = scratch / "long.raw"
    host.write(host.make(b.image, 0), host.noise(51, 16 * MIB) * 4)
    b.at_once((held_file,), (held_replaced_file,), (held_device,), (new_holders, readers_that_stay))


def long_disk(b, name):
    return b.disk(name, 65 * MIB)


def writers(scratch, path):
    """Programs that would write the disk if they could open it."""
    socket, qmp = holders.fresh(scratch / "kept-out.sock"), holders.fresh(scratch / "kept-out.qmp")
    small = scratch / "small.raw"
    if not os.path.exists(small):
        host.write(host.make(small, 0), host.noise(52, MIB))
    return {
        "qemu-io": ("qemu-io", "-f", "raw", "-c", "write 1M 512", path),
        "qemu-img": ("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", small, path),
        "qemu-nbd": holders.qemu_nbd_words(path, socket),
        "qemu-system": holders.guest_words(path, qmp),
    }


def kept_out(b, name, path):
    """None of them can open it, and each says that it is because of a lock."""
    for program, words in writers(b.scratch, path).items():
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            said = process.communicate(timeout=5)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            process.kill()
            said = "it runs: " + process.communicate()[0].decode(errors="replace")
            process.returncode = 0
        good = process.returncode != 0 and "lock" in said
        b.tally.expect(good, f"{name}: {program} is kept out", (process.returncode, said))


def let_in(b, name, path):
    code, text = host.speak(*writers(b.scratch, path)["qemu-io"])
    b.tally.expect(code == 0, f"{name}: qemu-io is let in", text)


def second(b, name, running, target, *flags, state=None):
    """A second run is refused, and says who has the disk."""
    program = Program(b.program.binary, b.scratch)
    program.state = state or b.program.state
    outcome = program.rebuild(b.image, target, *flags)
    good = outcome.code == 10 and outcome.state == "untouched"
    if b.tally.expect(good, f"{name}: a second run: exit 10", outcome):
        text = "\n".join(outcome.messages)
        for pattern in named(running.process):
            b.tally.expect(re.search(pattern, text), f"{name}: a second run says {pattern}", text)


def held(b, name, target, store, attempts, flags=()):
    """A rebuild is stopped in its middle; `attempts` are made; it goes on, or is killed."""
    with Paused(b.program, b.image, target, *flags) as running:
        before = host.checksum(store)
        attempts(running)
        b.tally.expect(host.checksum(store) == before, f"{name}: not a byte has changed meanwhile")
        outcome = running.go_on()
    if b.tally.expect(outcome.code == 0, f"{name}: it goes on: exit 0", outcome):
        why = host.holds(target, host.read(b.image))
        b.tally.expect(not why, f"{name}: it goes on: content", why)
    let_in(b, f"{name}, after the end", target)
    done(b, f"{name}, after the end", b.image, target, *flags)
    with Paused(b.program, b.image, target, *flags):
        pass
    let_in(b, f"{name}, after SIGKILL", target)
    done(b, f"{name}, after SIGKILL", b.image, target, *flags)


@contextlib.contextmanager
def looped(scratch, path):
    device = scratch.loop(path)
    try:
        yield device
    finally:
        scratch.unloop(device)


def other_names(b, name, running, disk, flags):
    """The file under its other names, with this state folder and another one."""
    scratch = b.scratch
    link, hard = holders.fresh(scratch / "held-link.raw"), holders.fresh(scratch / "held-hard.raw")
    os.symlink(disk, link)
    second(b, f"{name}, the same name", running, disk, *flags)
    other = scratch.folder_of("another-state")
    second(b, f"{name}, another state folder", running, disk, *flags, state=other)
    second(b, f"{name}, a symbolic link", running, link, *flags)
    os.link(disk, hard)
    second(b, f"{name}, a hard link", running, hard, "--in-place", state=other)
    os.unlink(hard)
    with looped(scratch, disk) as device:
        second(b, f"{name}, a loop device over it", running, device, state=other)


def held_file(b, _scratch):
    disk, flags = long_disk(b, "held.raw"), ("--in-place",)

    def attempts(running):
        kept_out(b, "a file that is written into", disk)
        other_names(b, "a file that is written into", running, disk, flags)

    held(b, "a file that is written into", disk, disk, attempts, flags)


def held_replaced_file(b, _scratch):
    disk = long_disk(b, "held-replaced.raw")

    def attempts(running):
        kept_out(b, "a file that is replaced", disk)
        other_names(b, "a file that is replaced", running, disk, ())

    held(b, "a file that is replaced", disk, disk, attempts)


def is_exclusive(device):
    """Whether the kernel refuses what mount and swapon ask for."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def is_locked(device):
    """Whether the lock of systemd.io/BLOCK_DEVICE_LOCKING is taken."""
    handle = os.open(device, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def held_device(b, scratch):
    file = long_disk(b, "held-device.raw")
    device = scratch.loop(file)

    def attempts(running):
        name, other = "a device that is written", scratch.folder_of("another-state")
        kept_out(b, name, device)
        kept_out(b, f"{name}, its file", file)
        for how, refused in (("exclusively", is_exclusive(device)), ("with a lock, as udev does", is_locked(device))):
            b.tally.expect(refused, f"{name}: nobody else gets it {how}")
        second(b, f"{name}, the same name", running, device)
        second(b, f"{name}, another node", running, second_node(scratch, device), state=other)
        second(b, f"{name}, its file", running, file, "--in-place", state=other)
        with looped(scratch, file) as beside:
            second(b, f"{name}, another loop device over its file", running, beside, state=other)

    held(b, "a device that is written", device, file, attempts)
    scratch.unloop(device)


def new_holders(b, scratch):
    """Somebody takes hold of the disk during the run: 30, the disk stays unfinished, and the next run completes it."""
    disk = long_disk(b, "new-holder.raw")
    device = scratch.loop(long_disk(b, "new-holder-device.raw"))
    node = second_node(scratch, device)
    file = ("--in-place",)
    cases = (
        ("a reader of a file", disk, file, lambda: holders.opener(disk)),
        ("a loop device over a file", disk, file, lambda: looped(scratch, disk)),
        ("a reader of a device through another node", device, (), lambda: holders.opener(node)),
        ("qemu-nbd on a device through another node", device, (), lambda: holders.qemu_nbd(scratch, node)),
        ("a loop device over a device", device, (), lambda: looped(scratch, device)),
    )
    for name, target, flags, holder in cases:
        with Paused(b.program, b.image, target, *flags) as running, holder() as who:
            outcome = running.go_on()
            name = f"{name} that comes during the run"
            failed(b.tally, name, outcome, 30, ("partial", "written"))
            patterns = (rf"\b{os.path.basename(who)}\b",) if isinstance(who, str) else named(who)
            text = "\n".join(outcome.messages)
            for pattern in patterns:
                b.tally.expect(re.search(pattern, text), f"{name}: says {pattern}", text)
        says_unfinished(b.program, b.tally, name, target)
        done(b, f"{name}, and goes", b.image, target, *flags)
    scratch.unloop(device)

    before = host.checksum(disk)
    with Paused(b.program, b.image, disk) as running, holders.opener(disk):
        failed(b.tally, "a reader of a file that is replaced", running.go_on(), 30, ("untouched",))
    b.tally.expect(host.checksum(disk) == before, "a reader of a file that is replaced: it is the old disk")
    done(b, "a reader of a file that is replaced, and goes", b.image, disk)


def readers_that_stay(b, scratch):
    """Who comes and goes during the run, as udev does, is none; an excused reader is none at the end either."""
    device = scratch.loop(long_disk(b, "readers.raw"))
    with Paused(b.program, b.image, device) as running:
        tool("dd", f"if={device}", "of=/dev/null", "bs=1M", "count=1")
        outcome = running.go_on()
    b.tally.expect(outcome.code == 0, "a reader that came and went during the run: exit 0", outcome)
    with holders.opener(device) as process:
        done(b, "an excused reader that stays", b.image, device, "--allow-open-reader", process.pid)
    scratch.unloop(device)


ROUNDS = {"file": 100, "node": 34, "backing file": 33, "second node": 33}
MARK = b"written by the other one" * 171


def race(program, scratch, tally):
    """A rebuild against qemu-nbd that starts at a random instant: never are both writing."""
    rng_seed = random.SystemRandom().randrange(1 << 32)
    contents = host.noise(53, 4 * MIB), host.noise(54, 4 * MIB)
    image = scratch / "image.raw"
    host.write(host.make(image, 0), contents[0])
    arenas = [Arena((program.binary, scratch), how, (image, *contents), rng_seed) for how in ROUNDS]
    # Most of the time they wait for each other, so all four ways go on at once.
    at_once(*(arena.fight for arena in arenas))
    for arena in arenas:
        for number, (_, delay, why) in enumerate(arena.rounds):
            name = f"round {number} on a {arena.how}, {1000 * delay:.0f} ms, rng_seed {rng_seed}"
            tally.expect(not why, name, why)
        counts = collections.Counter(came_to for came_to, _, _ in arena.rounds)
        good = len(arena.rounds) == ROUNDS[arena.how] and len(counts) > 1
        tally.expect(good, f"{arena.how}: not always the same one comes first", counts)
        counts = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        print(f"  {arena.how}: {counts} (exit code of the rebuild/qemu-nbd)")


class Arena:
    """Where the two meet, and what each of them left."""

    def __init__(self, where, how, contents, rng_seed):
        binary, scratch = where
        self.how, self.scratch = how, scratch
        self.image, self.new, self.old = contents
        self.rng = random.Random(f"{rng_seed} {how}")
        word = how.replace(" ", "-")
        self.program = Program(binary, scratch)
        self.program.state = scratch.folder_of(f"state-{word}")
        self.journals = os.path.join(self.program.state, "journals")
        self.socket = scratch / f"{word}.sock"
        self.store = self.target = scratch / f"{word}.raw"
        host.write(host.make(self.store, 0), self.old)
        self.flags = ("--in-place",)
        if how != "file":
            self.target, self.flags = scratch.loop(self.store), ()
        node = second_node(scratch, self.target) if how == "second node" else self.target
        # The name by which qemu-nbd opens it.
        self.name = {"backing file": self.store, "second node": node}.get(how, self.target)
        # Of each round: how it ended, when qemu-nbd started after the rebuild, and why that must not be.
        self.rounds = []

    def fight(self):
        usual = self.usual_duration()
        for _ in range(ROUNDS[self.how]):
            # qemu-nbd needs a while to come to its disk, so some of the rounds let it begin.
            delay = self.rng.uniform(-0.5, 1.5) * usual
            came_to, why = self.round(delay)
            self.rounds.append((came_to, delay, why and f"{came_to}: {why}"))

    def usual_duration(self):
        took = []
        for _ in range(5):
            began = time.monotonic()
            outcome = self.program.rebuild(self.image, self.target, *self.flags)
            took.append(time.monotonic() - began)
            if outcome.code:
                raise host.Broken(f"a rebuild without any race: {outcome}")
        return sorted(took)[2]

    def checked_by_now(self):
        """Whether the run has verified its copy, after which it looks for new holders once more."""
        with contextlib.suppress(OSError):
            # Beside a journal lie the notes of its chunks.
            for name in (name for name in os.listdir(self.journals) if name.endswith(".journal")):
                with open(os.path.join(self.journals, name), "rb") as journal:
                    return b'"record":"verified"' in journal.read()
        return None

    def round(self, delay):
        """One meeting: (how it ended, why that must not be)."""
        # The journal of an unfinished run would be taken for this one's.
        shutil.rmtree(self.journals, ignore_errors=True)
        host.write(self.target, self.old)
        rebuilt = []

        def rebuild():
            time.sleep(max(0, -delay))
            rebuilt.append(self.program.rebuild(self.image, self.target, *self.flags))

        one = threading.Thread(target=rebuild)
        one.start()
        time.sleep(max(0, delay))
        other = Other(self.name, self.socket, self.checked_by_now)
        one.join()
        other.end()
        came_to = f"{rebuilt[0].code}/{'opened' if other.opened else 'kept out'}"
        return came_to, self.fault(rebuilt[0], other)

    def fault(self, outcome, other):
        now = host.read(self.store)
        marked = other.wrote and now[: len(MARK)] == MARK and now[2 * MIB : 2 * MIB + len(MARK)] == MARK
        if outcome.code == 30:
            return "" if outcome.state in ("partial", "written", "invalidated") else f"new holder: {outcome}"
        if outcome.code == 10:
            expected = self.old
            if other.wrote:
                expected = MARK + self.old[len(MARK) : 2 * MIB] + MARK + self.old[2 * MIB + len(MARK) :]
            at = host.first_difference(now, expected)
            return "" if at is None else f"refused, and byte {at} has changed: {outcome}"
        if outcome.code != 0:
            return str(outcome)
        if not other.opened:
            return host.holds(self.store, self.new)
        if other.checked is False:
            return f"done, and qemu-nbd had the disk before it was looked for: {outcome}"
        # Whoever comes through another node and behind the last look is the one blind spot.
        blind = self.how == "second node" and other.checked
        return "" if marked or blind else f"done, and what qemu-nbd wrote (it says {other.wrote}) is lost: {outcome}"


class Other:
    """qemu-nbd on the disk: whether it came to have it open, and whether what it wrote was acknowledged."""

    def __init__(self, name, where, checked_by_now):
        holders.fresh(where)
        self.process = subprocess.Popen(holders.qemu_nbd_words(name, where), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.client = holders.Nbd(where, self.process)
        self.opened = self.client.greeted
        self.checked = checked_by_now() if self.opened else None
        self.wrote = self.opened and self.client.write((0, MARK), (2 * MIB, MARK))

    def end(self):
        self.client.close()
        self.process.terminate()
        self.process.wait(20)
