"""A disk that somebody uses is refused with the name of who it is, and taken as soon as they are gone."""

import json
import os
import re
import shutil

import holders
import host
from check_aliases import done, linked, second_node
from check_refusals import Bench
from host import MIB, tool
from holders import named

PID_NAMESPACE_OF_THE_HOST = 0xEFFFFFFC


def in_use(program, scratch, tally):
    b = Bench(program, scratch, tally)
    # Who has a disk open is waited for, should they go; so all of these wait at once.
    b.at_once((mounts, several_devices, swaps, loops), (openers, excused), (machines_files,), (machines_devices,),
              (machines_names,), (image_writers, sight))


def word(device):
    """A pattern of a message that names the device."""
    return (rf"\b{os.path.basename(device)}\b",)


def mounted(device, where):
    return (*word(device), re.escape(os.path.basename(where)))


def mounts(b, scratch):
    disk = b.disk("mounted.raw", 16 * MIB)
    tool("mkfs.ext4", "-q", "-F", disk)
    device = scratch.loop(disk)
    flags = ("-o", "ro,noload")
    where = scratch.mount(device, "mounted", *flags)
    says = mounted(device, where)
    b.refused(10, "a mounted device", b.image, device, says=says)
    b.refused(10, "a mounted device by another node", b.image, second_node(scratch, device), says=says)
    with linked(scratch, scratch / "by-id/mounted", device) as link:
        b.refused(10, "a mounted device by a link", b.image, link, says=says, watch=[device])
    scratch.unmount(where)
    with holders.mounted_elsewhere(scratch, device, *flags) as (process, where):
        says = (*mounted(device, where), rf"\b{process.pid}\b")
        b.refused(10, "a device mounted in another namespace", b.image, device, says=says)
        b.refused(10, "a device mounted in another namespace, by another node", b.image,
                  second_node(scratch, device), says=says)
        b.refused(10, "the file under a device mounted in another namespace", b.image, disk, "--in-place",
                  says=word(device))
    where = scratch.mount(device, "mounted", *flags)
    b.refused(10, "the file under a mounted loop device", b.image, disk, "--in-place", says=word(device))
    b.refused(10, "the file under a mounted loop device, replaced", b.image, disk, says=word(device))
    scratch.unmount(where)
    done(b, "a device that was mounted", b.image, device)
    scratch.unloop(device)

    device = scratch.loop(host.make(disk, 16 * MIB))
    tool("sgdisk", "--clear", "--new=1:2048:0", device)
    tool("partx", "--add", device, codes=None)
    part = f"{device}p1"
    tool("mkfs.ext4", "-q", "-F", part)
    where = scratch.mount(part, "mounted", *flags)
    says = mounted(part, where)
    b.refused(10, "a device of which a partition is mounted", b.image, device, says=says)
    b.refused(10, "the file of which a partition is mounted", b.image, disk, "--in-place", says=word(device))
    scratch.unmount(where)
    with holders.mounted_elsewhere(scratch, part, *flags) as (_, where):
        b.refused(10, "a device of which a partition is mounted in another namespace", b.image, device,
                  says=mounted(part, where))
    with holders.opener(part) as process:
        b.refused(10, "a device of which a partition is read", b.image, device, says=named(process))
    tool("partx", "--delete", device)
    done(b, "a device of which a partition was mounted", b.image, device)
    scratch.unloop(device)


def several_devices(b, scratch):
    """A file system over two devices: its mounts name neither by its number."""
    devices = [scratch.loop(host.make(scratch / f"btrfs-{number}.raw", 64 * MIB)) for number in (1, 2)]
    tool("mkfs.btrfs", "-q", "-f", "--mixed", "-d", "single", "-m", "single", *devices)
    # A file system that is written to would differ by itself.
    where = scratch.mount(devices[0], "btrfs", "-o", f"ro,device={devices[1]}")
    for number, device in enumerate(devices, 1):
        b.refused(10, f"device {number} of a mounted btrfs", b.image, device)
    scratch.unmount(where)
    tool("btrfs", "device", "scan", "--forget", codes=None)
    for number, device in enumerate(devices, 1):
        done(b, f"device {number} of a btrfs that was mounted", b.image, device)
        scratch.unloop(device)


def swaps(b, scratch):
    disk = b.disk("swap.raw", 8 * MIB)
    os.chmod(disk, 0o600)
    tool("mkswap", disk)
    with holders.swapped_on(disk):
        b.refused(10, "a swap file", b.image, disk, "--in-place", says=("swap",))
        b.refused(10, "a swap file, replaced", b.image, disk, says=("swap",))
    device = scratch.loop(disk)
    with holders.swapped_on(device):
        b.refused(10, "a swap device", b.image, device, says=("swap",))
        b.refused(10, "a swap device by another node", b.image, second_node(scratch, device), says=("swap",))
        b.refused(10, "the file under a swap device", b.image, disk, "--in-place", says=word(device))
    done(b, "a device that was swap", b.image, device)
    scratch.unloop(device)


def loops(b, scratch):
    disk = b.disk("under.raw")
    device = scratch.loop(disk)
    b.refused(10, "the file under a loop device", b.image, disk, "--in-place", says=word(device))
    b.refused(10, "the file under a loop device, replaced", b.image, disk, says=word(device))
    upper = scratch.loop(device)
    b.refused(10, "a device under a loop device", b.image, device, says=word(upper))
    b.refused(10, "the file under two loop devices", b.image, disk, "--in-place", says=word(device))
    scratch.unloop(upper)
    beside = scratch.loop(disk)
    b.refused(10, "a loop device beside another one over its file", b.image, device, says=word(beside))
    scratch.unloop(beside)
    done(b, "a device that was under a loop device", b.image, device)
    scratch.unloop(device)
    done(b, "a file that was under a loop device", b.image, disk, "--in-place")


def openers(b, scratch):
    """A process that only has it open: a reader is a backup, or a machine whose locks nobody sees."""
    disk = b.disk("open.raw")
    with holders.opener(disk) as process:
        says = named(process)
        b.refused(10, "a file that is read", b.image, disk, "--in-place", says=says)
        b.refused(10, "a file that is read, replaced", b.image, disk, says=says)
    with holders.opener(disk, seconds="0.7"):
        done(b, "a file that was read for less than a second", b.image, disk, "--in-place")
    device = scratch.loop(disk)
    with holders.writer(device) as process:
        says = (*named(process), "writ")
        b.refused(10, "a device that is written", b.image, device, says=says)
    with holders.opener(second_node(scratch, device, "open-node")) as process:
        b.refused(10, "a device that is read through another node", b.image, device, says=named(process))
    with holders.writer(disk) as process:
        b.refused(10, "a loop device whose file is written", b.image, device, says=named(process))
    done(b, "a device that was open", b.image, device)
    scratch.unloop(device)


def excused(b, scratch):
    """`--allow-open-reader` excuses the one that it names, and no writer."""
    device = scratch.loop(b.disk("excused.raw"))
    with holders.opener(device) as one, holders.opener(device) as other:
        excuse = ("--allow-open-reader", one.pid)
        b.refused(10, "a second reader", b.image, device, *excuse, says=named(other))
        both = (*excuse, "--allow-open-reader", other.pid)
        done(b, "readers that are excused", b.image, device, *both)
    with holders.writer(device) as process:
        b.refused(10, "a writer that is excused as a reader", b.image, device, "--allow-open-reader", process.pid,
                  says=named(process))
    scratch.unloop(device)


def machines_files(b, scratch):
    """Programs of qemu with the disk as a file."""
    disk = b.disk("machine.raw")
    in_place = (b.image, disk, "--in-place")
    with holders.qemu_io(disk) as process:
        b.refused(10, "a file that qemu-io has", *in_place, says=named(process))
    with holders.qemu_nbd(scratch, disk) as process:
        says = named(process)
        b.refused(10, "a file that qemu-nbd serves", *in_place, says=says)
        b.refused(10, "a file that qemu-nbd serves, replaced", b.image, disk, says=says)
        device = scratch.loop(disk)
        b.refused(10, "a loop device over a file that qemu-nbd serves", b.image, device, says=says, watch=[disk])
        scratch.unloop(device)
    with holders.guest(scratch, disk) as process:
        b.refused(10, "a file that a paused guest has", *in_place, says=named(process))
    with holders.guest(scratch, disk, "file.locking=off") as process:
        b.refused(10, "a file that a paused guest has without a lock", *in_place, says=named(process))
    done(b, "a file that qemu had", *in_place)


def machines_devices(b, scratch):
    """Programs of qemu with the disk as a device."""
    device = scratch.loop(b.disk("machine-device.raw"))
    node = second_node(scratch, device, "machine-node")
    with holders.qemu_nbd(scratch, device) as process:
        b.refused(10, "a device that qemu-nbd serves", b.image, device, says=named(process))
        b.refused(10, "a device that qemu-nbd serves, by another node", b.image, node, says=named(process))
    with holders.storage_daemon(scratch, device) as process:
        b.refused(10, "a device that qemu-storage-daemon exports", b.image, device, says=named(process))
    with holders.guest(scratch, device) as process:
        b.refused(10, "a device that a paused guest has", b.image, device, says=named(process))
    done(b, "a device that qemu had", b.image, device)
    scratch.unloop(device)


def machines_names(b, scratch):
    """Programs of qemu with the disk under a name where their locks are not seen."""
    disk = b.disk("machine-names.raw")
    device = scratch.loop(disk)
    node = second_node(scratch, device, "machine-other-node")
    with holders.qemu_nbd(scratch, node) as process:
        b.refused(10, "a device that qemu-nbd serves through another node", b.image, device, says=named(process))
    with holders.guest(scratch, node) as process:
        b.refused(10, "a device that a paused guest has through another node", b.image, device, says=named(process))
    with holders.qemu_nbd(scratch, disk) as process:
        b.refused(10, "a loop device whose file qemu-nbd serves", b.image, device, says=named(process), watch=[disk])
    with holders.qemu_nbd(scratch, device):
        b.refused(10, "the file under a loop device that qemu-nbd serves", b.image, disk, "--in-place",
                  says=word(device))
    done(b, "a device that qemu had under another name", b.image, device)
    scratch.unloop(device)


def image_writers(b, scratch):
    """An image that somebody writes is none: 20, with who it is; one that is only read is fine."""
    disk, image = b.disk("for-image.raw"), scratch / "written.raw"
    tool("cp", b.image, image)
    overlay = scratch / "over-written.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", overlay)
    with holders.qemu_io(image) as process:
        b.refused(20, "an image that qemu-io writes", image, disk, says=named(process), watch=[image])
    with holders.qemu_nbd(scratch, image) as process:
        b.refused(20, "an image that qemu-nbd serves", image, disk, says=named(process), watch=[image])
        b.refused(20, "a backing file that qemu-nbd serves", overlay, disk, "--allow-backing", scratch.folder,
                  says=named(process), watch=[image])
    with holders.writer(image) as process:
        b.refused(20, "an image that a process without locks writes", image, disk, says=named(process))
    with holders.opener(image), holders.qemu_io(image, "-r"):
        done(b, "an image that others read", image, disk)
    done(b, "a backing file that was written", overlay, disk, "--allow-backing", scratch.folder)


def sight(b, scratch):
    """What cannot be looked at is said, and refused where full sight is required."""
    disk = b.disk("sight.raw")
    full = os.stat("/proc/self/ns/pid").st_ino == PID_NAMESPACE_OF_THE_HOST
    outcome = b.program.run("plan", b.image, disk, "--keep-image-credentials")
    seen = outcome.report.get("sight") or {}
    good = seen.get("full") is full and bool(seen.get("limits")) is not full
    b.tally.expect(good, f"root sees {'everything' if full else 'not everything'}", seen)
    if full:
        done(b, "full sight is required, and root has it", b.image, disk, "--require-full-sight")

    folder = scratch.folder_of("somebody")
    # Somebody else must come to it: through the folders above, which are root's own.
    for path in (os.path.dirname(scratch.folder), scratch.folder, folder):
        os.chmod(path, 0o711)
    somebody = host.Program(b.program.binary, scratch)
    somebody.binary, somebody.state = os.path.join(folder, "reimage"), os.path.join(folder, "state")
    shutil.copy(b.program.binary, somebody.binary)
    os.mkdir(somebody.state)
    own = os.path.join(folder, "disk.raw")
    host.write(host.make(own, 0), host.noise(24, 5 * MIB))
    for path in (folder, somebody.state, own):
        os.chown(path, 65534, 65534)
    no_root = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    no_host = ("unshare", "--pid", "--fork", "--mount-proc")
    for who, before in (("who is not root", no_root), ("root in a pid namespace", no_host)):
        limited(b, (somebody, own), who, before)


def limited(b, whose, who, before):
    program, disk = whose
    words = (b.image, disk, "--keep-image-credentials")
    start = host.checksum(disk)
    for command, consent in (("plan", ()), ("rebuild", ("--yes",))):
        outcome = program.run(command, *words, *consent, "--require-full-sight", before=before)
        name = f"{command}: full sight is required of {who}"
        b.tally.expect(outcome.code == 10 and outcome.state == "untouched", f"{name}: exit 10", outcome)
        b.tally.expect(host.checksum(disk) == start, f"{name}: nothing has changed")
        outcome = program.run(command, *words, *consent, before=before)
        b.tally.expect(outcome.code == 0, f"{command}: {who}: exit 0", outcome)
        plan = outcome.report.get("plan") or outcome.report
        seen = plan.get("sight") or {}
        b.tally.expect(seen.get("full") is False and seen.get("limits"), f"{command}: {who}: says its limits", seen)


def swapped(program, scratch, tally):
    """What was planned is what is written: another disk under the same name is refused."""
    b = Bench(program, scratch, tally)
    b.each(plan_document, swapped_devices, swapped_files, damaged_plans, expectations)


def planned(b, name, image, target, *flags):
    """The file with what `plan --json` printed."""
    outcome = b.program.run("plan", image, target, "--keep-image-credentials", *flags)
    b.tally.expect(outcome.code == 0, f"{name}: plan", outcome)
    path = b.scratch / "plan.json"
    host.write(host.make(path, 0), outcome.out.encode())
    return path


def with_plan(b, code, name, target, *flags, image=None, plan=None, watch=()):
    """`rebuild --plan`: this code, and unless it is 0 nothing has changed."""
    plan = plan or b.scratch / "plan.json"
    kept = [path for path in (target, *watch) if os.path.exists(path)]
    before = [host.checksum(path) for path in kept]
    outcome = b.program.rebuild(image or b.image, target, "--plan", plan, *flags)
    b.tally.expect(outcome.code == code, f"{name}: exit {code}", outcome)
    if code:
        b.tally.expect(outcome.state == "untouched", f"{name}: says untouched", outcome)
        b.tally.expect([host.checksum(path) for path in kept] == before, f"{name}: nothing has changed")
    else:
        why = host.holds(target, host.read(b.image))
        b.tally.expect(not why, f"{name}: the disk holds the image", why)


def plan_document(b, scratch):
    disk, data = scratch.loop(b.disk("document.raw")), b.disk("document-data.raw")
    tool("sgdisk", "--clear", "--disk-guid=11223344-5566-7788-99AA-BBCCDDEEFF00", "--new=1:2048:0", disk)
    tool("partx", "--delete", disk, codes=None)
    with open(planned(b, "the plan", b.image, disk, "--data-disk", data), encoding="utf-8") as text:
        plan = json.load(text)
    found = plan.get("target_disk") or {}
    b.tally.expect(set(found) >= {"identity", "size", "sector_size", "serial", "wwn", "ptuuid", "head_digest"},
                   "the plan: what it says of the target", sorted(found))
    b.tally.expect((found.get("size"), found.get("sector_size")) == (5 * MIB, 512), "the plan: the sizes", found)
    b.tally.expect(str(found.get("ptuuid")).lower() == "11223344-5566-7788-99aa-bbccddeeff00",
                   "the plan: the partition table", found)
    listed = plan.get("data_disks") or [None]
    good = isinstance(listed[0], dict) and listed[0].get("path") == data and listed[0].get("shareable") is False
    b.tally.expect(good, "the plan: its data disks", listed)
    b.tally.expect(bool(plan.get("digest")), "the plan: its digest", sorted(plan))
    scratch.unloop(disk)
    with open(planned(b, "a new file's plan", b.image, scratch / "not-yet.raw"), encoding="utf-8") as text:
        plan = json.load(text)
    b.tally.expect(plan.get("target_disk", "absent") is None, "the plan of a new file has no disk", sorted(plan))
    with_plan(b, 0, "a new file as planned", scratch / "not-yet.raw")


def swapped_devices(b, scratch):
    one, other = b.disk("one.raw"), scratch / "other.raw"
    host.write(host.make(other, 0), host.noise(25, 5 * MIB))
    device = scratch.loop(one)
    planned(b, "the first disk", b.image, device)
    tool("losetup", "--detach", device)
    tool("losetup", device, other)
    with_plan(b, 11, "another disk under the same device name", device, watch=[one])
    planned(b, "the second disk", b.image, device)
    with_plan(b, 0, "the disk that was planned", device)
    planned(b, "a disk of this size", b.image, device)
    os.truncate(other, 6 * MIB)
    tool("losetup", "--set-capacity", device)
    with_plan(b, 11, "a disk that has grown", device)
    planned(b, "a disk with this head", b.image, device)
    host.write(device, b"another head", 100)
    with_plan(b, 11, "a disk with another head", device)
    second = scratch.loop(one)
    planned(b, "one of two disks", b.image, device)
    with_plan(b, 11, "a plan for another disk", second)
    scratch.unloop(second)
    scratch.unloop(device)


def swapped_files(b, scratch):
    disk, data, image = b.disk("file.raw"), b.disk("file-data.raw"), scratch / "changing.raw"
    tool("cp", b.image, image)
    flags = ("--data-disk", data)

    def renamed(path):
        """Another file with the same content takes the name."""
        tool("cp", "--preserve=all", path, scratch / "copy.raw")
        os.rename(scratch / "copy.raw", path)

    for placed in (("--in-place",), ()):
        how = "in place" if placed else "replaced"
        for name, change in (
            ("another file under the same name", lambda: renamed(disk)),
            ("a file with another head", lambda: host.write(disk, f"another head, {how}".encode(), 100)),
            ("another data disk under the same name", lambda: renamed(data)),
            ("another image under the same name", lambda: renamed(image)),
            ("an image with other content", lambda: host.write(image, f"another image, {how}".encode(), MIB)),
        ):
            planned(b, name, image, disk, *flags, *placed)
            change()
            with_plan(b, 11, f"{name}, {how}", disk, *flags, *placed, image=image, watch=[data])
    tool("cp", b.image, image)
    planned(b, "nothing changes", image, disk, *flags)
    os.unlink(data)
    with_plan(b, 11, "a data disk that has gone", disk, *flags, image=image)
    b.disk("file-data.raw")
    planned(b, "nothing changes", image, disk, *flags)
    with_plan(b, 11, "a data disk that was planned and is not named", disk, image=image, watch=[data])
    with_plan(b, 0, "nothing has changed since the plan", disk, *flags, image=image)


def damaged_plans(b, scratch):
    disk = b.disk("damaged.raw")
    with open(planned(b, "a plan that will be damaged", b.image, disk), encoding="utf-8") as text:
        text = text.read()
    plan = json.loads(text)
    edited = json.dumps({**plan, "target_bytes": plan["target_bytes"] + 1})
    without = json.dumps({key: value for key, value in plan.items() if key != "digest"})
    other = json.dumps({**plan, "digest": "0" * 64})
    for name, content in (("edited", edited), ("cut off", text[: len(text) // 2]), ("empty", ""),
                          ("without a digest", without), ("with another digest", other), ("that is none", "[1, 2]"),
                          ("of noise", "\0" * 4096)):
        path = scratch / "damaged.json"
        host.write(host.make(path, 0), content.encode())
        with_plan(b, 2, f"a plan {name}", disk, plan=path)
    with_plan(b, 2, "a plan that is not there", disk, plan=scratch / "no-plan.json")
    with_plan(b, 0, "the plan as it was", disk)


def expectations(b, scratch):
    disk = b.disk("expected.raw", 72 * MIB)
    device = scratch.loop(disk)
    tool("sgdisk", "--clear", "--disk-guid=11223344-5566-7788-99AA-BBCCDDEEFF00", "--new=1:2048:0", device)
    tool("partx", "--delete", device, codes=None)
    right = "ptuuid=11223344-5566-7788-99aa-bbccddeeff00"
    b.refused(11, "another partition table", b.image, device, "--expect", "ptuuid=11223344-5566-7788-99aa-bbccddeeff01")
    b.refused(11, "one of two expectations", b.image, device, "--expect", f"{right},size=71M")
    b.refused(11, "a serial number that a device does not have", b.image, device, "--expect", f"{right},serial=abc")
    b.refused(11, "a WWN that a device does not have", b.image, device, "--expect", "wwn=0x5000c500a1b2c3d4")
    # A rebuild that was interrupted has overwritten the table; its journal remembers the id.
    image = scratch / "long.raw"
    host.write(host.make(image, 0), host.noise(26, 16 * MIB) * 4)
    with holders.Paused(b.program, image, device, "--expect", right):
        pass
    b.refused(11, "after an interruption, another partition table", b.image, device, "--expect", "ptuuid=12345678")
    done(b, "after an interruption, the partition table of before", b.image, device, "--expect", f"{right},size=72M")
    scratch.unloop(device)
