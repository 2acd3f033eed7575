"""Runs that are cut off, stalled or undermined, through the program: what is said of the disk, and what comes next.

Each part makes the disks that it needs, and most end with the same command once more, whose disk must be right in
every byte. Copies are slowed down where a run is to be met in the middle.
"""

import copy
import json
import os
import re
import shutil
import signal
import threading
import time

import disks
import holders
import host
from check_faults import says_unfinished
from check_refusals import spoil_compressed
from cuts import OFTEN, SLOWLY, Frozen, Run, cut, journals, noted
from host import MIB, Broken, tool

IMAGE = 48 * MIB + 1536
DISK = 64 * MIB
MARKER = b"reimage: unfinished rebuild\n"
UNFINISHED = ("invalidated", "partial", "written")


class Rig:
    """The image, the old disk, and what a disk must hold in the end."""

    def __init__(self, program, scratch, tally):
        self.program, self.scratch, self.tally, self.expect = program, scratch, tally, tally.expect
        self.image = host.make(scratch / "image.raw", IMAGE)
        for at in (0, 30 * MIB):
            host.write(self.image, host.noise(at + 71, 18 * MIB + 1536), at)
        self.content = host.read(self.image)
        old = host.make(scratch / "old.raw", DISK)
        disks.labelled(old, "gpt")
        self.old = host.read(old)

    def alone(self, name):
        """A program with a state folder in which nothing has happened."""
        program = copy.copy(self.program)
        program.state = self.scratch / f"state-{name}"
        return program

    def disk(self, name):
        path = os.path.join(self.scratch.folder_of(f"of-{name}"), "disk.raw")
        host.write(host.make(path, 0), self.old)
        return path

    def right(self, name, outcome, target, mode=None):
        """The run ended well, in the mode that was to be, and every byte of the disk is right."""
        if self.expect(outcome.code == 0, name, outcome):
            found, kept = outcome.report["mode"], outcome.report["bytes_kept"]
            self.expect(mode in (None, found), f"{name}: {mode}", (found, outcome.report["plan"]["warnings"]))
            self.expect(found != "resumed" or kept > 0, f"{name}: keeps something", kept)
            why = host.holds(target, self.content)
            self.expect(not why, f"{name}: the disk", why)

    def failed(self, name, outcome, code, target, old=None):
        """The exit code, and the old disk, or one that says that it is unfinished."""
        self.expect(outcome.code == code and outcome.error.get("code") == code, f"{name}: exit {code}", outcome)
        if old is not None:
            self.expect(outcome.state == "untouched", f"{name}: says untouched", outcome)
            self.expect(host.checksum(target) == old, f"{name}: it is the old disk")
        else:
            self.expect(outcome.state in UNFINISHED, f"{name}: says {UNFINISHED}", outcome)
            says_unfinished(self.program, self.tally, name, target)


def contents(paths):
    found = {}
    for path in paths:
        with open(path, "rb") as handle:
            found[os.path.basename(path)] = handle.read()
    return found


def attach(rig, device, path):
    """Attaches a file to this very loop device."""
    tool("losetup", device, path)
    rig.scratch.loops.append(device)


def reused_name(rig):
    """Another disk gets the name of one that is unfinished; then the first one comes back."""
    program, one, two = rig.alone("reused"), rig.disk("reused-a"), rig.disk("reused-b")
    device = rig.scratch.loop(one)
    cut(program, rig.image, device)
    before = contents(sum(journals(program), []))
    begun = next(text for text in before.values() if b'"begun"' in text)
    journal = re.search(rb'"journal":"([^"]+)"', begun)[1].decode()
    rig.scratch.unloop(device)
    attach(rig, device, two)
    alone = f"{journal} was of another disk that bore this name: its journal is left alone"
    planned = program.run("plan", rig.image, device, "--keep-image-credentials")
    plan = planned.doc or {}
    says_so = any(alone in text for text in plan.get("warnings", []))
    rig.expect(planned.code == 0 and says_so, "a reused name: the plan says so", planned)
    rig.expect(plan.get("unfinished", 1) is None, "a reused name: nothing to go on with", planned)
    rig.expect(contents(sum(journals(program), [])) == before, "a reused name: a plan changes no journal")
    outcome = program.rebuild(rig.image, device, *OFTEN)
    rig.right("a reused name: another disk", outcome, device, "full")
    warnings = outcome.report.get("plan", {}).get("warnings", [])
    rig.expect(any(alone in text for text in warnings), "a reused name: the rebuild says so", warnings)
    rig.expect(contents(sum(journals(program), [])) == before, "a reused name: the journal is there", journals(program))
    rig.scratch.unloop(device)
    says_unfinished(program, rig.tally, "a reused name: the first disk", one)
    attach(rig, device, one)
    rig.right("a reused name: the first disk comes back", program.rebuild(rig.image, device, *OFTEN), device, "resumed")
    rig.expect(journals(program) == ([], []), "a reused name: no journal is left", journals(program))
    rig.scratch.unloop(device)


def state_folders(rig):
    """A plan warns of a state folder that the next start of the host empties."""
    disk = rig.disk("state")
    layers = [rig.scratch.folder_of(f"overlay-{name}") for name in ("lower", "upper", "work")]
    options = ",".join(f"{name}dir={path}" for name, path in zip(("lower", "upper", "work"), layers))
    with open("/proc/filesystems", encoding="ascii") as known:
        has_overlay = re.search(r"\boverlay$", known.read(), re.MULTILINE)
    places = {"": rig.scratch.folder, "tmpfs": rig.scratch.tmpfs("state-tmpfs", "4M")}
    if has_overlay and host.speak("mount", "-t", "overlay", "-o", options, "overlay", layers[0])[0] == 0:
        rig.scratch.mounts.append(layers[0])
        places["overlay"] = layers[0]
    else:
        print("  overlayfs: NOT AVAILABLE here, not checked")
    for kind, folder in places.items():
        # What does not exist yet is made there.
        program = rig.alone("volatile")
        program.state = os.path.join(folder, "state-new", "deeper")
        planned = program.run("plan", rig.image, disk, "--keep-image-credentials")
        warnings = [text for text in (planned.doc or {}).get("warnings", []) if "state folder" in text]
        wanted = [f"lies on {kind}, which may be gone"] if kind else []
        good = len(warnings) == len(wanted) and all(part in text for part, text in zip(wanted, warnings))
        rig.expect(planned.code == 0 and good, f"a state folder on {kind or 'a disk'}", planned)
        rig.expect(not os.path.exists(program.state), f"a state folder on {kind or 'a disk'}: a plan makes none")
    for folder in list(places.values())[1:]:
        rig.scratch.unmount(folder)


def touched(path):
    os.utime(path)


def appended(path):
    with open(path, "ab") as image:
        image.write(bytes(512))


def overwritten(path):
    before = os.stat(path)
    host.write(path, b"other bytes", IMAGE - 700_000)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path):
    host.write(f"{path}.new", host.noise(74, IMAGE))
    os.replace(f"{path}.new", path)


def image_changes(rig):
    """The image is another one in the middle of the copy."""
    for placement in ("in place", "replaced"):
        for change in (touched, appended, overwritten, replaced):
            name, program = f"an image that is {change.__name__}, {placement}", rig.alone("changes")
            image, disk = shutil.copyfile(rig.image, rig.scratch / "changing.raw"), rig.disk("changes")
            old = host.checksum(disk) if placement == "replaced" else None
            flags = ("--in-place",) if placement == "in place" else ()
            with holders.Paused(program, image, disk, *flags) as run:
                change(image)
                outcome = run.go_on()
            rig.failed(name, outcome, 32, disk, old)
            rig.expect(outcome.error.get("path") == image, f"{name}: its path", outcome)
            beside = sorted(os.listdir(os.path.dirname(disk)))
            rig.expect(beside == ["disk.raw"], f"{name}: nothing is left beside it", beside)
            if change is overwritten:
                # What was copied before was of the other image.
                shutil.copyfile(rig.image, image)
                rig.right(f"{name}: the next run", program.rebuild(image, disk, *flags, *OFTEN), disk, "full")


def device_image_changes(rig):
    """An image on a device is written, through the device, or below it, where the kernel counts nothing."""
    store = shutil.copyfile(rig.image, rig.scratch / "image-store.raw")
    device, disk, at = rig.scratch.loop(store), rig.disk("device-changes"), IMAGE - 700_000
    for way, flags in (("through", ()), ("below", ("--preflight", "deep"))):
        name, program = f"an image on a device, written {way} it", rig.alone(f"device-{way}")
        with holders.Paused(program, device, disk, "--in-place", *flags) as run:
            host.write(device if way == "through" else store, b"other bytes", at)
            host.flush(device)
            outcome = run.go_on()
        rig.failed(name, outcome, 32, disk)
        rig.expect(outcome.error.get("path") == device, f"{name}: its path", outcome)
        host.write(device, rig.content[at : at + 11], at)
        rig.right(f"{name}: the next run", program.rebuild(device, disk, "--in-place", *flags), disk)
    rig.scratch.unloop(device)


def writes(device):
    """How many sectors the kernel has written to a device and discarded there (a flush alone counts as a request, and
    has none), and changes of a file's times."""
    if not device.startswith("/dev/"):
        return os.stat(device).st_mtime_ns
    with open(f"/sys/block/{os.path.basename(device)}/stat", encoding="ascii") as fields:
        found = fields.read().split()
    return [int(found[number]) for number in (6, 13)]


def delta(rig):
    """Only what differs is written: nothing where nothing does."""
    image, compressed = rig.scratch / "delta.raw", rig.scratch / "delta.qcow2"
    disks.gpt_image(image, 48 * MIB)
    tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", image, compressed)
    digest = tool("b3sum", image).split()[0]
    for placement in ("device", "in place"):
        program, path = rig.alone(f"delta-{placement}"), rig.disk(f"delta-{placement}")
        target = rig.scratch.loop(path) if placement == "device" else path
        flags = ("--whole-digest", *(("--in-place",) if placement == "in place" else ()))
        outcome = program.rebuild(image, target, *flags)
        told = outcome.report.get("mode"), outcome.report.get("whole_digest")
        rig.expect(told == ("full", digest), f"{placement}: a full run: b3sum's digest", outcome)
        new = host.read(target)
        problems = disks.problems(target)
        rig.expect(not problems, f"{placement}: a full run: sgdisk --verify", problems)
        # The last one is what the state folder knows.
        for what, more in ((compressed, ("--mode", "delta")), (image, ("--mode", "delta")), (image, ())):
            name = f"{placement}: nothing differs, {os.path.basename(what)} {' '.join(more)}"
            unchanged(rig, name, (program, what, target), (*flags, *more), digest)
        places = (0, 5000, 20 * MIB + 5, 48 * MIB - 1, 50 * MIB, DISK - 512, DISK - 1)
        for number, at in enumerate(places[:: 1 if placement == "device" else 3]):
            more = ("--mode", "delta") if number % 2 else ()
            name = f"{placement}: byte {at} differs, {' '.join(more)}"
            host.write(target, bytes([new[at] ^ 1]), at)
            outcome = program.rebuild(image, target, *flags, *more)
            told = outcome.report.get("mode"), outcome.report.get("whole_digest")
            rig.expect(told == ("delta", digest), f"{name}: the mode, and b3sum's digest", outcome)
            much = outcome.report.get("bytes_written", 0) + outcome.report.get("bytes_zeroed", 0)
            # The chunk, and both ends, which do not show a disk meanwhile.
            rig.expect(0 < much <= 4 * MIB, f"{name}: writes little", much)
            wrong = host.first_difference(host.read(target), new)
            rig.expect(wrong is None, f"{name}: the disk", f"byte {wrong} is wrong")
        if placement == "device":
            rig.scratch.unloop(target)
    disk = rig.disk("delta-new")
    outcome, old = rig.alone("delta-new").rebuild(image, disk, "--mode", "delta"), host.checksum(disk)
    rig.expect(outcome.code == 2 and outcome.state == "untouched", "--mode delta onto a file that is replaced", outcome)
    rig.expect(host.checksum(disk) == old, "--mode delta onto a file that is replaced: the old disk")
    program, disk = rig.alone("delta-resumed"), rig.disk("delta-resumed")
    cut(program, rig.image, disk, "--in-place")
    outcome = program.rebuild(rig.image, disk, "--in-place", "--whole-digest")
    rig.right("b3sum's digest of a run that goes on", outcome, disk, "resumed")
    digest = tool("b3sum", rig.image).split()[0]
    rig.expect(outcome.report.get("whole_digest") == digest, "b3sum's digest of a run that goes on: it", outcome)


def unchanged(rig, name, what, flags, digest):
    """A run that finds no difference, and writes nothing."""
    program, image, target = what
    before = host.checksum(target), writes(target)
    outcome = program.rebuild(image, target, *flags)
    after = writes(target)
    rig.expect(outcome.report.get("mode") == "delta", f"{name}: the mode", outcome)
    told = [outcome.report.get(field) for field in ("bytes_written", "bytes_zeroed", "whole_digest")]
    rig.expect(told == [0, 0, digest], f"{name}: what is told", told)
    rig.expect(after == before[1], f"{name}: writes nothing", (before[1], after))
    rig.expect(host.checksum(target) == before[0], f"{name}: the same disk")


def preserved(rig):
    """What could not be completed is kept where that is asked for, and nothing boots from it."""
    raw, image = rig.scratch / "kept.raw", rig.scratch / "kept.qcow2"
    disks.gpt_image(raw, 48 * MIB)
    host.write(raw, b"".join(b"%07d bottles\n" % number for number in range(300_000)), 40 * MIB)
    tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, image)
    damaged = shutil.copyfile(image, rig.scratch / "kept-damaged.qcow2")
    spoil_compressed(damaged, 41 * MIB)
    program, disk = rig.alone("kept"), rig.disk("kept")
    folder, old = os.path.dirname(disk), host.checksum(disk)
    rig.failed("an image that is damaged", program.rebuild(damaged, disk), 32, disk, old)
    rig.expect(os.listdir(folder) == ["disk.raw"], "an image that is damaged: nothing stays", os.listdir(folder))
    rig.failed("--preserve-on-error", program.rebuild(damaged, disk, "--preserve-on-error"), 32, disk, old)
    kept = [name for name in os.listdir(folder) if re.fullmatch(r"\.disk\.raw\.reimage-failed-[0-9a-f-]+", name)]
    if rig.expect(len(kept) == 1 and len(os.listdir(folder)) == 2, "--preserve-on-error: it stays", os.listdir(folder)):
        path = os.path.join(folder, kept[0])
        head, right = host.read(path, 0, 4096), host.read(raw)
        marked = head.startswith(MARKER) and head[510:512] != b"\x55\xaa"
        rig.expect(marked, "--preserve-on-error: the marker", head[:64])
        rig.expect(not (seen := disks.sightings(path)), "--preserve-on-error: nothing to see", seen)
        rig.expect(host.size_of(path) == DISK, "--preserve-on-error: its size", host.size_of(path))
        rig.expect(os.stat(path).st_mode & 0o7777 == 0o600, "--preserve-on-error: its owner alone reads it")
        part = slice(2 * MIB, 4 * MIB)
        rig.expect(host.read(path)[part] == right[part], "--preserve-on-error: what was written is there")
    outcome = program.rebuild(image, disk)
    rig.expect(outcome.code == 0 and not disks.problems(disk), "--preserve-on-error: the next run", outcome)
    now = set(os.listdir(folder)) - {"disk.raw"}
    rig.expect(now == set(kept), "--preserve-on-error: the next run leaves it", now)


def freeze_in_copy(rig, frozen, program, *flags):
    """A rebuild whose file system is frozen in the middle of its copy."""
    run = Run(program, rig.image, frozen.disk, "--in-place", *OFTEN, *flags, before=SLOWLY)
    run.until_copying()
    # The next run is to have something to go on with.
    holders.until(lambda: noted(program) or run.process.poll() is not None)
    frozen.freeze()
    return run


def stalls(rig):
    """The disk does nothing any more: the error is told though the threads hang."""
    with Frozen(rig.scratch, "stalled", rig.old) as frozen:
        program = rig.alone("stalled")
        run = freeze_in_copy(rig, frozen, program, "--stall-timeout", "3")
        began, document = time.monotonic(), b""
        try:
            os.set_blocking(run.process.stdout.fileno(), False)
            while time.monotonic() - began < 30 and not is_json(document):
                document += run.process.stdout.read() or b""
                time.sleep(0.02)
            seconds, is_there = time.monotonic() - began, run.process.poll() is None
        finally:
            os.set_blocking(run.process.stdout.fileno(), True)
            frozen.thaw()
        outcome = run.end(20)
        outcome = host.Outcome(run.words, outcome.code, document.decode() + outcome.out, outcome.err)
        rig.expect(is_json(document) and 2 < seconds < 10, f"a stalled disk: told after {seconds:.1f} s", outcome)
        rig.expect(is_there, "a stalled disk: the kernel holds the process until then", outcome)
        rig.failed("a stalled disk", outcome, 30, frozen.disk)
        rig.expect(outcome.error.get("path") == frozen.disk, "a stalled disk: its path", outcome)
        again = program.rebuild(rig.image, frozen.disk, "--in-place", *OFTEN)
        rig.right("a stalled disk: the next run", again, frozen.disk, "resumed")


def is_json(text):
    try:
        return bool(json.loads(text))
    except ValueError:
        return False


def waits(rig):
    """Without a limit it is told, and waited for."""
    with Frozen(rig.scratch, "waiting", rig.old) as frozen:
        program = rig.alone("waiting")
        run = freeze_in_copy(rig, frozen, program)
        began = time.monotonic()
        # Should nothing be told, it is thawed anyway.
        late = threading.Timer(12, frozen.thaw)
        late.start()
        try:
            event = run.until(lambda event: event.get("type") in ("no_progress", "summary", "error"))
            seconds = time.monotonic() - began
        finally:
            late.cancel()
            late.join()
            frozen.thaw()
        good = (event.get("type"), event.get("phase")) == ("no_progress", "copy") and event.get("seconds", 0) >= 5
        rig.expect(good and 4 < seconds < 9, f"a disk that does nothing: told after {seconds:.1f} s", event)
        rig.right("a disk that does nothing for a while", run.end(), frozen.disk, "full")


def what_is_said(rig):
    """After a run that was cut off, `plan` and `status` say what lies on the disk."""
    for placement in ("device", "in place", "replaced"):
        name, program, path = f"cut off, {placement}", rig.alone(f"said-{placement}"), rig.disk(f"said-{placement}")
        target = rig.scratch.loop(path) if placement == "device" else path
        flags = ("--in-place",) if placement == "in place" else ()
        cut(program, rig.image, target, *flags)
        planned = program.run("plan", rig.image, target, "--keep-image-credentials", *flags).doc or {}
        unfinished = planned.get("unfinished") or {}
        good = unfinished.get("goes_on") is True and unfinished.get("bytes_noted", 0) >= MIB
        rig.expect(good and planned.get("mode") == "resumed", f"{name}: what the plan says", planned)
        said = f"the rebuild {unfinished.get('journal')} was cut off: this run goes on with the"
        rig.expect(any(said in text for text in planned.get("warnings", [])), f"{name}: in words", planned)
        status = program.run("status", target, "--state-dir", program.state).doc or {}
        rig.expect(status.get("journal") == unfinished.get("journal"), f"{name}: its journal", (status, unfinished))
        if placement == "replaced":
            rig.expect(status.get("state") == "stopped", f"{name}: what status says", status)
            rig.expect(any("beside it" in text for text in status.get("notices", [])), f"{name}: and beside", status)
        else:
            rig.expect(status.get("state") == "failed", f"{name}: what status says", status)
            state = (status.get("failure") or {}).get("target_state")
            rig.expect(state in ("invalidated", "partial"), f"{name}: and of the disk", status)
            rig.expect("run the rebuild again" in str(status.get("advice")), f"{name}: and what to do", status)
        again = program.rebuild(rig.image, target, *flags, *OFTEN)
        rig.right(f"{name}: the same command", again, target, "resumed")
        kept = again.report.get("bytes_kept", 0)
        # The image's last chunk is a short one, and counted as a whole one.
        good = kept > unfinished.get("bytes_noted", kept + MIB) - MIB
        rig.expect(good, f"{name}: keeps what was said", (kept, unfinished))
        if placement == "device":
            rig.scratch.unloop(target)


def cancelled(rig):
    """SIGTERM ends a copy soon, and the same command goes on."""
    for placement in ("device", "in place", "replaced"):
        name, program, path = f"cancelled, {placement}", rig.alone(f"term-{placement}"), rig.disk(f"term-{placement}")
        target, old = rig.scratch.loop(path) if placement == "device" else path, host.checksum(path)
        flags = ("--in-place",) if placement == "in place" else ()
        run = Run(program, rig.image, target, *flags, *OFTEN, before=SLOWLY)
        run.until_copying()
        holders.until(lambda: noted(program) or run.process.poll() is not None)
        began = time.monotonic()
        run.process.send_signal(signal.SIGTERM)
        outcome = run.end()
        seconds = time.monotonic() - began
        rig.expect(seconds < 2, f"{name}: ends soon", f"{seconds:.1f} s")
        rig.failed(name, outcome, 143, target, old if placement == "replaced" else None)
        left = os.listdir(os.path.dirname(path))
        rig.expect(left == ["disk.raw"], f"{name}: nothing is left beside it", left)
        again = program.rebuild(rig.image, target, *flags, *OFTEN)
        # A new file that is not completed is removed.
        rig.right(f"{name}: the same command", again, target, "full" if placement == "replaced" else "resumed")
        if placement == "device":
            rig.scratch.unloop(target)


def cut_again(rig):
    """A run that goes on is killed in turn, at each sync until it copies: what was noted before stays of use."""
    for placement in ("in place", "replaced"):
        program, disk = rig.alone(f"again-{placement}"), rig.disk(f"again-{placement}")
        flags = ("--in-place",) if placement == "in place" else ()
        cut(program, rig.image, disk, *flags)
        plan = ("plan", rig.image, disk, "--keep-image-credentials", *flags)
        before, lost = (program.run(*plan).doc or {})["unfinished"]["bytes_noted"], []
        # All but the last ones of these syncs come before the copy.
        for nth in range(1, 10):
            program.killed_at("fsync,fdatasync", nth, rig.image, disk, "--threads", "1", *OFTEN, *flags)
            unfinished = (program.run(*plan).doc or {}).get("unfinished") or {}
            if unfinished.get("bytes_noted", 0) < before:
                lost.append((nth, unfinished))
                break
        rig.expect(not lost, f"killed again at a sync, {placement}: {before} bytes stay noted", lost)
        rig.right(f"killed again, {placement}", program.rebuild(rig.image, disk, *flags), disk, "resumed")
    # The new file has the old one's mode by then.
    program, disk = rig.alone("exchange"), rig.disk("exchange")
    outcome = program.killed_at("renameat2", 1, rig.image, disk, *OFTEN)
    planned = program.run("plan", rig.image, disk, "--keep-image-credentials").doc or {}
    rig.expect(outcome.code == -signal.SIGKILL, "killed at the exchange", outcome)
    again = program.rebuild(rig.image, disk, *OFTEN)
    rig.right("killed at the exchange: as planned", again, disk, planned.get("mode"))


def large_sectors(rig):
    """A device whose sectors have 4096 bytes."""
    program, path = rig.alone("sectors"), rig.disk("sectors")
    device = rig.scratch.loop(path, "--sector-size", "4096")
    if tool("blockdev", "--getss", device).strip() != "4096":
        raise Broken(f"{device} has no large sectors")
    cut(program, rig.image, device)
    says_unfinished(program, rig.tally, "sectors of 4096 bytes", device)
    outcome = program.rebuild(rig.image, device, *OFTEN)
    rig.right("sectors of 4096 bytes", outcome, device, "resumed")
    rig.scratch.unloop(device)


def cut_off(program, scratch, tally):
    rig = Rig(program, scratch, tally)
    parts = (reused_name, state_folders, image_changes, device_image_changes, delta, preserved, what_is_said, cancelled,
             cut_again, large_sectors)
    for part in parts:
        began, before = time.monotonic(), tally.passed
        part(rig)
        print(f"  {part.__name__}: {tally.passed - before} passed, {time.monotonic() - began:.1f} s", flush=True)
    began, before = time.monotonic(), tally.passed
    holders.at_once(lambda: stalls(rig), lambda: waits(rig))
    print(f"  stalls: {tally.passed - before} passed, {time.monotonic() - began:.1f} s", flush=True)
