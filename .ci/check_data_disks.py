"""Data disks are never opened for writing, and what the report says of them is true."""

import ctypes
import os

import holders
import host
from check_aliases import second_node, written_opens
from check_refusals import Bench
from host import MIB, tool

# A digest of samples looks at the head, the tail and some pieces between; this is far from all of them.
SIZE = 24 * MIB


def data_disks(program, scratch, tally):
    b = Bench(program, scratch, tally)
    b.long = scratch / "long.raw"
    host.write(host.make(b.long, 0), host.noise(61, 16 * MIB) * 4)
    b.each(left_alone, read_only, not_read, sandbox, no_counters)
    b.at_once((changed_file,), (changed_device,), (another_machine,))


def data(b, name):
    path = host.make(b.scratch / name, 0)
    host.write(path, host.noise(name, SIZE))
    return path


def several(b, scratch):
    """Data disks of every kind: (path as it is named, path of what it is, whether the kernel counts its writes)."""
    file, device = data(b, "file.raw"), scratch.loop(data(b, "device.raw"))
    qcow2, link = scratch / "data.qcow2", scratch / "link"
    tool("qemu-img", "create", "-q", "-f", "qcow2", qcow2, "1G")
    os.symlink(scratch.loop(data(b, "linked.raw"), "--read-only"), link)
    small = scratch.loop(data(b, "sectors.raw"), "--sector-size", "4096")
    parts = scratch.loop(data(b, "parts.raw"))
    tool("sgdisk", "--clear", "--new=1:2048:0", parts)
    tool("partx", "--add", parts, codes=None)
    node = second_node(scratch, scratch.loop(data(b, "by-node.raw")), "data-node")
    return [(file, file, False), (device, device, True), (qcow2, qcow2, False), (link, os.path.realpath(link), True),
            (small, small, True), (f"{parts}p1", f"{parts}p1", True), (node, node, True)]


def looked_at(path):
    """All that can be seen of it without reading it: a file's metadata, the kernel's count of a device's writes."""
    found = os.stat(path)
    if not os.path.isfile(path):
        return writes(path)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_atime_ns


def counted(device):
    """The kernel's statistics of a device (Documentation/block/stat.rst)."""
    number = os.stat(device).st_rdev
    with open(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat", encoding="utf-8") as text:
        return text.read().split()


def writes(device):
    return int(counted(device)[4])


def named(disks):
    return [word for disk in disks for word in ("--data-disk", disk)]


def listed(outcome):
    """The report's data disks by their path."""
    return {disk.get("path"): disk for disk in outcome.report.get("data_disks") or []}


def left_alone(b, scratch):
    """Whatever the target and the data disks are, each of them is as it was, and the report says so."""
    disks = several(b, scratch)
    contents = {path: host.checksum(path) for _, path, _ in disks}
    device = scratch.loop(b.disk("target-device.raw"))
    replaced, in_place = b.disk("replaced.raw"), b.disk("in-place.raw")
    for target, how, flags in ((replaced, "sampled", ()), (in_place, "full", ("--in-place",)), (device, "off", ()),
                               (device, "sampled", ())):
        name = f"digest {how}, target {os.path.basename(target)}"
        for path in filter(os.path.isfile, contents):
            # A time of access before that of change is renewed by whoever reads it in the usual way.
            os.utime(path, ns=(1, os.stat(path).st_mtime_ns))
        before = {path: looked_at(path) for path in contents}
        outcome = b.program.rebuild(b.image, target, *flags, *named(disk for disk, _, _ in disks),
                                    "--data-disk-digest", how)
        after = {path: looked_at(path) for path in contents}
        b.tally.expect(outcome.code == 0, f"{name}: exit 0", outcome)
        found = listed(outcome)
        for disk, path, has_counter in disks:
            label, said = f"{name}: {os.path.basename(disk)}", found.get(disk) or {}
            b.tally.expect(after[path] == before[path], f"{label}: is as it was", (before[path], after[path]))
            b.tally.expect(host.checksum(path) == contents[path], f"{label}: holds what it held")
            b.tally.expect(said.get("verdict") == "unchanged", f"{label}: the verdict", said)
            expected = 0 if has_counter else None
            b.tally.expect("writes" in said and said["writes"] == expected, f"{label}: {expected} writes", said)


def opens(b, name, target, flags, disks):
    """Runs under strace and returns its log."""
    log = b.scratch / f"opened-{name}"
    before = ("strace", "-f", "--seccomp-bpf", "-yy", "-e", "trace=open,openat,openat2", "-o", log)
    outcome = b.program.rebuild(b.image, target, *flags, *named(disks), before=before)
    b.tally.expect(outcome.code == 0, f"{name}: exit 0", outcome)
    return log


def read_only(b, scratch):
    """No data disk is opened for writing, and by the time of change alone nobody would know."""
    file, device = data(b, "never-file.raw"), scratch.loop(data(b, "never-device.raw"))
    target = b.disk("never-target.raw")
    log = opens(b, "full", target, ("--in-place", "--data-disk-digest", "full"), (file, device))
    for disk in (file, device):
        lines = written_opens(log, disk)
        b.tally.expect(not lines, f"{os.path.basename(disk)} is not opened for writing", lines)
    # The log would show it: the target's own opening is there.
    b.tally.expect(bool(written_opens(log, target)), "the target is opened for writing")


def not_read(b, scratch):
    """Without a digest a data disk is looked at and not read."""
    file, device = data(b, "closed-file.raw"), scratch.loop(data(b, "closed-device.raw"))
    target = b.disk("closed-target.raw")
    host.flush(device)
    before = counted(device)
    log = opens(b, "off", target, ("--in-place", "--data-disk-digest", "off"), (file, device))
    b.tally.expect(counted(device) == before, "without a digest nothing is read of a device", (before, counted(device)))
    with open(log, encoding="utf-8", errors="replace") as text:
        lines = [line.strip() for line in text if f"<{os.path.realpath(file)}>" in line and "O_PATH" not in line]
    b.tally.expect(not lines, "without a digest a file is not opened", lines)
    # The log would show it.
    log = opens(b, "sampled", target, ("--in-place",), (file, device))
    with open(log, encoding="utf-8", errors="replace") as text:
        b.tally.expect(f"<{os.path.realpath(file)}>" in text.read(), "with a digest a file is opened")
    b.tally.expect(counted(device) != before, "with a digest a device is read")


def sandbox(b, _scratch):
    """The report says whether the kernel keeps the threads that copy from opening anything."""
    landlock_create_ruleset, version = 444, 1
    libc = ctypes.CDLL(None, use_errno=True)
    there = libc.syscall(landlock_create_ruleset, None, 0, version) > 0
    outcome = b.program.rebuild(b.image, b.disk("sandboxed.raw"))
    expected = "landlock" if there else "none"
    b.tally.expect(outcome.report.get("sandbox") == expected, f"the report says sandbox: {expected}",
                   outcome.report.get("sandbox"))


def no_counters(b, scratch):
    """Counters that the kernel does not keep are no evidence."""
    device = scratch.loop(data(b, "uncounted.raw"))
    switch = f"/sys/block/{os.path.basename(device)}/queue/iostats"
    with open(switch, "w", encoding="utf-8") as file:
        file.write("0")
    try:
        outcome = b.program.rebuild(b.image, b.disk("uncounted-target.raw"), "--data-disk", device)
        said = listed(outcome).get(device) or {}
        good = outcome.code == 0 and said.get("verdict") == "unchanged" and said.get("writes", 0) is None
        b.tally.expect(good, "a device without counters: no count of its writes", said or outcome)
    finally:
        with open(switch, "w", encoding="utf-8") as file:
            file.write("1")
        scratch.unloop(device)


def while_it_runs(b, target, change, *words):
    """A rebuild, and `change()` in its middle."""
    with holders.Paused(b.program, b.long, target, *words) as running:
        change()
        return running.go_on()


def found_out(b, name, outcome, target, disk):
    """33 and the data disk's path; the system disk is complete."""
    b.tally.expect(outcome.code == 33, f"{name}: exit 33", outcome)
    b.tally.expect(outcome.state == "verified", f"{name}: says verified", outcome)
    b.tally.expect(outcome.error.get("path") == disk, f"{name}: names the disk", outcome.error.get("path"))
    why = host.holds(target, host.read(b.long))
    b.tally.expect(not why, f"{name}: the system disk is complete", why)


def changed_file(b, scratch):
    disk, other, target = data(b, "written.raw"), data(b, "rests.raw"), b.disk("for-file.raw", 65 * MIB)
    words = ("--in-place", "--data-disk", other, "--data-disk", disk)

    def appended():
        os.truncate(disk, SIZE + 512)

    def exchanged():
        tool("cp", "--preserve=all", disk, scratch / "copy.raw")
        os.rename(scratch / "copy.raw", disk)

    def hidden():
        found = os.stat(disk)
        host.write(disk, b"somebody else was here", 5 * MIB + 4096)
        os.utime(disk, ns=(found.st_atime_ns, found.st_mtime_ns))

    for name, change in (
        ("a data file that is written", lambda: host.write(disk, b"somebody else was here", 5 * MIB + 4096)),
        ("a data file that is written and says it was not", hidden),
        ("a data file that grows", appended),
        ("a data file that is exchanged for another", exchanged),
        ("a data file that is removed", lambda: os.unlink(disk)),
    ):
        for how in ("sampled", "off"):
            if not os.path.exists(disk):
                data(b, "written.raw")
            outcome = while_it_runs(b, target, change, *words, "--data-disk-digest", how)
            found_out(b, f"{name}, digest {how}", outcome, target, disk)
    # Somebody reads it: nothing has changed.
    data(b, "written.raw")
    outcome = while_it_runs(b, target, lambda: host.read(disk), *words)
    b.tally.expect(outcome.code == 0, "a data file that is read by somebody: exit 0", outcome)


def changed_device(b, scratch):
    store = data(b, "written-device.raw")
    device, target = scratch.loop(store), scratch.loop(b.disk("for-device.raw", 65 * MIB))
    words = ("--data-disk", device)
    same = host.read(device, 5 * MIB, 4096)
    for name, how, change in (
        ("a data device that is written", "sampled", lambda: host.write(device, b"somebody else", 5 * MIB + 4096)),
        ("a data device that is written, without a digest", "off", lambda: host.write(device, b"else", 6 * MIB)),
        ("a data device that gets what it holds", "sampled", lambda: host.write(device, same, 5 * MIB)),
        ("a data device whose file is written at its head", "sampled", lambda: host.write(store, b"under", 0)),
        ("a data device whose file is written anywhere", "full", lambda: host.write(store, b"under", 7 * MIB + 512)),
    ):
        outcome = while_it_runs(b, target, change, *words, "--data-disk-digest", how)
        found_out(b, name, outcome, target, device)
    outcome = while_it_runs(b, target, lambda: host.read(device), *words)
    b.tally.expect(outcome.code == 0, "a data device that is read by somebody: exit 0", outcome)
    said = listed(outcome).get(device) or {}
    b.tally.expect(said.get("writes", -1) == 0, "a data device that is read by somebody: zero writes", said)
    scratch.unloop(device)
    scratch.unloop(target)


def another_machine(b, scratch):
    """A shareable disk is written by its other machine: a warning, and the run is well."""
    device = scratch.loop(data(b, "shared.raw"))
    own, target = data(b, "own.raw"), b.disk("for-shared.raw", 65 * MIB)
    spec = scratch / "sharing.toml"
    text = (f'id = "i-1"\n[system_disk]\npath = "{target}"\n'
            f'[[data_disk]]\npath = "{own}"\n[[data_disk]]\npath = "{device}"\nshareable = true\n')
    host.write(host.make(spec, 0), text.encode())
    words = ("--in-place", "--instance", spec)
    outcome = while_it_runs(b, target, lambda: host.write(device, b"the other machine", MIB), *words)
    b.tally.expect(outcome.code == 0, "a shareable disk that changes: exit 0", outcome)
    found = listed(outcome)
    said = (found.get(device) or {}).get("verdict"), (found.get(own) or {}).get("verdict")
    b.tally.expect(said == ("changed_elsewhere", "unchanged"), "a shareable disk that changes: the verdicts", said)
    warned = [line for line in outcome.err.splitlines() if '"warning"' in line and device in line]
    b.tally.expect(bool(warned), "a shareable disk that changes: the warning names it", outcome.err[-600:])
    outcome = while_it_runs(b, target, lambda: host.write(own, b"somebody", MIB), *words)
    found_out(b, "a disk beside a shareable one", outcome, target, own)
    outcome = while_it_runs(b, target, lambda: None, *words)
    said = (listed(outcome).get(device) or {}).get("verdict")
    b.tally.expect(outcome.code == 0 and said == "unchanged", "a shareable disk that rests", said or outcome)
    scratch.unloop(device)
