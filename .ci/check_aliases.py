"""One storage under two names is one: no name of a data disk, of the image or of the host's disk is a target."""

import contextlib
import os
import stat

import host
from check_refusals import Bench
from host import MIB, tool


def aliases(program, scratch, tally):
    b = Bench(program, scratch, tally)
    b.each(data_files, data_devices, partitions, device_mapper, images, seeds, state_folders, host_disk)


def both_ways(b, name, disk, other, *flags):
    """Each of the two names as the target, with the other one as the data disk."""
    for target, data in ((disk, other), (other, disk)):
        placed = () if stat.S_ISBLK(os.stat(target).st_mode) else flags
        b.refused(11, f"{name}: {kind(data)} is the data disk", b.image, target, "--data-disk", data, *placed,
                  watch=[disk])


def kind(path):
    if os.path.islink(path):
        return "the link"
    return "the device" if stat.S_ISBLK(os.stat(path).st_mode) else "the file"


def done(b, name, image, target, *flags):
    """The positive control: nothing stands in the way, and the disk holds the image."""
    outcome = b.program.rebuild(image, target, *flags)
    if b.tally.expect(outcome.code == 0, f"{name}: exit 0", outcome):
        why = host.holds(target, host.read(b.image))
        b.tally.expect(not why, f"{name}: the disk holds the image", why)


@contextlib.contextmanager
def linked(scratch, path, target):
    """A symbolic link as udev makes it; removed afterwards, with the folders that were made for it."""
    made = []
    folder = os.path.dirname(path)
    while not os.path.isdir(folder):
        made.append(folder)
        folder = os.path.dirname(folder)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(target, path)
    try:
        yield path
    finally:
        os.unlink(path)
        for one in made:
            with contextlib.suppress(OSError):
                os.rmdir(one)


def second_node(scratch, device, name="second-node"):
    path = scratch / name
    if os.path.lexists(path):
        os.unlink(path)
    os.mknod(path, 0o600 | stat.S_IFBLK, os.stat(device).st_rdev)
    return path


def data_files(b, scratch):
    disk, other = b.disk("data.raw"), b.disk("innocent.raw")
    link, hard = scratch / "link.raw", scratch / "hard.raw"
    os.symlink(disk, link)
    b.refused(11, "a data disk itself", b.image, disk, "--data-disk", disk)
    both_ways(b, "a symbolic link", disk, link, "--in-place")
    b.refused(11, "a data disk by a relative path", b.image, disk, "--data-disk", os.path.relpath(disk))
    dots = os.path.join(scratch.folder, "..", os.path.basename(scratch.folder), "data.raw")
    b.refused(11, "a data disk by a path with dots", b.image, dots, "--data-disk", disk, watch=[disk])
    spec = scratch / "own-data.toml"
    text = 'id = "i-1"\nimage = "image.raw"\n[system_disk]\npath = "data.raw"\n[[data_disk]]\npath = "link.raw"\n'
    host.write(host.make(spec, 0), text.encode())
    b.refused(11, "an instance file that names one disk twice", "", "", "--instance", spec, watch=[disk])
    os.link(disk, hard)
    both_ways(b, "a hard link", disk, hard, "--in-place")
    os.unlink(hard)
    bound = host.make(scratch / "bound.raw", 0)
    tool("mount", "--bind", disk, bound)
    scratch.mounts.append(bound)
    both_ways(b, "a bind mount", disk, bound, "--in-place")
    scratch.unmount(bound)
    os.unlink(bound)
    device = scratch.loop(disk)
    both_ways(b, "a file and its loop device", disk, device, "--in-place")
    b.refused(11, "the file under a data disk, replaced", b.image, disk, "--data-disk", device)
    upper = scratch.loop(device)
    b.refused(11, "a loop device over a loop device over a data disk", b.image, upper, "--data-disk", disk,
              watch=[disk])
    scratch.unloop(upper)
    moved = scratch / "moved.raw"
    os.rename(disk, moved)
    b.refused(11, "a loop device over a data disk that was renamed", b.image, device, "--data-disk", moved,
              watch=[moved])
    os.rename(moved, disk)
    scratch.unloop(device)
    part = scratch.loop(disk, "--offset", MIB, "--sizelimit", 3 * MIB)
    b.refused(11, "a loop device over a part of a data disk", b.image, part, "--data-disk", disk, watch=[disk])
    scratch.unloop(part)
    done(b, "another disk beside the data disk", b.image, other, "--in-place", "--data-disk", disk)


def data_devices(b, scratch):
    file = b.disk("device.raw")
    device = scratch.loop(file)
    b.refused(11, "a data device itself", b.image, device, "--data-disk", device)
    both_ways(b, "a second node", device, second_node(scratch, device))
    for path in (scratch / "by-id/loop-disk", "/dev/disk/by-id/reimage-check-disk"):
        with linked(scratch, path, device):
            both_ways(b, f"the link {path}", device, path)
    beside = scratch.loop(file)
    both_ways(b, "two loop devices over one file", device, beside)
    scratch.unloop(beside)
    other = scratch.loop(b.disk("other-device.raw"))
    done(b, "another device beside the data device", b.image, other, "--data-disk", device)
    scratch.unloop(other)
    scratch.unloop(device)


def partitions(b, scratch):
    file = host.make(scratch / "parts.raw", 16 * MIB)
    device = scratch.loop(file)
    tool("sgdisk", "--clear", "--new=1:2048:+6M", "--new=2:0:0", device)
    tool("partx", "--add", device, codes=None)
    one, two = f"{device}p1", f"{device}p2"
    host.write(one, host.noise(23, 5 * MIB))
    b.refused(11, "a partition of a data disk", b.image, one, "--data-disk", device, watch=[device])
    b.refused(11, "the disk of which a partition is a data disk", b.image, device, "--data-disk", one)
    node = second_node(scratch, one)
    b.refused(11, "the disk of which a partition is a data disk, by another node", b.image, device, "--data-disk", node)
    b.refused(11, "a partition of a data disk's file", b.image, one, "--data-disk", file, watch=[device])
    upper = scratch.loop(one)
    b.refused(11, "a loop device over a partition of a data disk", b.image, upper, "--data-disk", device,
              watch=[device])
    scratch.unloop(upper)
    before = host.checksum(two)
    done(b, "a partition beside one that is a data disk", b.image, one, "--data-disk", two)
    b.tally.expect(host.checksum(two) == before, "a partition beside one that is a data disk: that one is unchanged")
    tool("partx", "--delete", device)
    scratch.unloop(device)


def device_mapper(b, scratch):
    if not os.path.exists("/sys/class/misc/device-mapper"):
        print("  this kernel has no device-mapper: the unit tests of the guard stand in for it")
        return
    device = scratch.loop(b.disk("under-mapper.raw", 6 * MIB))
    name = f"reimage-check-{os.getpid()}"
    tool("dmsetup", "create", name, "--table", f"0 {5 * MIB // 512} linear {device} 0")
    mapped = os.path.realpath(f"/dev/mapper/{name}")
    try:
        both_ways(b, "a device-mapper device", device, mapped)
    finally:
        tool("dmsetup", "remove", name)
        scratch.unloop(device)


def images(b, scratch):
    base = scratch / "base.raw"
    tool("cp", b.image, base)
    overlay = scratch / "overlay.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay)
    device = scratch.loop(base)
    b.refused(11, "a loop device over the image", base, device, watch=[base])
    b.refused(11, "the file under the image", device, base, "--in-place")
    b.refused(11, "the file under the image, replaced", device, base)
    b.refused(11, "a loop device over the image's backing file", overlay, device, "--allow-backing", scratch.folder,
              watch=[base])
    node = second_node(scratch, device)
    b.refused(11, "the image by another node", node, device)
    scratch.unloop(device)
    hard = scratch / "base-hard.raw"
    os.link(base, hard)
    b.refused(11, "the image by a hard link", base, hard, "--in-place")
    os.unlink(hard)

    device, where = file_system_with(scratch, "image-inside.raw", "ro,noload", b.image)
    inside = os.path.join(where, "image.raw")
    b.refused(11, "an image that lies on the target", inside, device)
    b.refused(11, "an image that lies on the target's file", inside, scratch / "image-inside.raw", "--in-place")
    scratch.unmount(where)
    scratch.unloop(device)
    done(b, "a target on which the image lay", b.image, scratch / "image-inside.raw", "--in-place")


def file_system_with(scratch, name, options, *files):
    """A mounted loop device with a file system that holds these files and a folder."""
    content = scratch.folder_of(f"content-{name}")
    for path in files:
        tool("cp", path, content)
    os.makedirs(os.path.join(content, "state", "journals"))
    disk = host.make(scratch / name, 32 * MIB)
    # The kernel would initialise in the background what is left to it.
    tool("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", content, disk)
    device = scratch.loop(disk)
    where = scratch.mount(device, f"mounted-{name}", "-o", options)
    os.sync()
    return device, where


def seeds(b, scratch):
    disk, data, password = b.disk("seeded.raw"), b.disk("seed-data.raw"), scratch / "password"
    host.write(host.make(password, 0), b"correct horse\n")
    hard, link = scratch / "seed-hard.raw", scratch / "seed-link.raw"
    os.link(data, hard)
    os.symlink(data, link)
    for code, name, seed in ((11, "itself", data), (11, "by a hard link", hard), (13, "by a symbolic link", link)):
        # A link is no place for a seed, whatever it leads to; the data disk is named besides.
        b.refused(code, f"the seed is a data disk {name}", b.image, disk, "--seed", seed, "--data-disk", data,
                  "--password-file", password, keep=False, watch=[data], says=("data disk",))
    os.unlink(hard)
    device = scratch.loop(data)
    b.refused(11, "the seed is the file under a data disk", b.image, disk, "--seed", data, "--data-disk", device,
              "--password-file", password, keep=False, watch=[data])
    b.refused(11, "the seed is the file under the target", b.image, device, "--seed", data,
              "--password-file", password, keep=False, watch=[data])
    scratch.unloop(device)


def state_folders(b, scratch):
    device, where = file_system_with(scratch, "state-inside.raw", "noatime")
    usual = b.program.state
    b.program.state = os.path.join(where, "state")
    try:
        b.refused(11, "the state folder lies on the target", b.image, device)
        b.refused(11, "the state folder lies on the target's file", b.image, scratch / "state-inside.raw", "--in-place")
    finally:
        b.program.state = usual
    scratch.unmount(where)
    scratch.unloop(device)
    done(b, "a target on which a state folder lay", b.image, scratch / "state-inside.raw", "--in-place")


def host_disk(b, scratch):
    """The disk that this machine runs from: looked at, refused, and not opened for writing. Only `plan` is run."""
    root = tool("findmnt", "--noheadings", "--first-only", "--output", "SOURCE", "/").strip().split("[")[0]
    if not (os.path.exists(root) and stat.S_ISBLK(os.stat(root).st_mode)):
        print(f"  / is {root}, no block device: the unit tests of the guard stand in for the host's disk")
        return
    number = os.stat(root).st_rdev
    above = os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/..")
    disks = [root, second_node(scratch, root, "host-disk")]
    disks += [f"/dev/{os.path.basename(above)}"] if os.path.exists(os.path.join(above, "dev")) else []
    for disk in disks:
        log = scratch / "opened"
        before = ("strace", "-f", "--seccomp-bpf", "-yy", "-e", "trace=open,openat,openat2", "-o", log)
        outcome = b.program.run("plan", b.image, disk, "--keep-image-credentials", before=before)
        b.tally.expect(outcome.code == 11, f"the host's disk as {disk}: exit 11", outcome)
        b.tally.expect(outcome.state == "untouched", f"the host's disk as {disk}: says untouched", outcome)
        writing = written_opens(log, disk)
        b.tally.expect(not writing, f"the host's disk as {disk}: not opened for writing", writing)


def written_opens(log, path):
    """The lines of strace's log (`-yy`) in which this file or device is opened for writing."""
    found = os.stat(path)
    names = [f'"{path}"', f"<{os.path.realpath(path)}>", f'"{os.path.realpath(path)}"']
    if stat.S_ISBLK(found.st_mode):
        names.append(f"<block {os.major(found.st_rdev)}:{os.minor(found.st_rdev)}>")
    with open(log, encoding="utf-8", errors="replace") as text:
        lines = [line.strip() for line in text if "O_RDWR" in line or "O_WRONLY" in line]
    # An open that failed has no descriptor to show; by way of another descriptor it may be of anything.
    names.append('"/proc/self/fd/')
    failed = [line for line in lines if " = -1 " in line]
    return [line for line in lines if any(name in line for name in names[:-1])] + [
        line for line in failed if names[-1] in line]
