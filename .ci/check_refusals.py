"""Every refusal has its exit code and leaves every byte of the target as it was."""

import copy
import functools
import os
import re
import struct
import traceback

import holders
import host
from host import MIB, tool


class Bench:
    """Things that stand in the way of a rebuild."""

    def __init__(self, program, scratch, tally):
        self.program, self.scratch, self.tally = program, scratch, tally
        self.image = scratch / "image.raw"
        host.write(host.make(self.image, 0), host.noise(21, 3 * MIB))
        self.qcow2 = self.converted("image.qcow2")
        self.without_hint = set()

    def each(self, *parts):
        """Makes checks that are independent of each other; one that cannot be made stops none of the others."""
        for part in parts:
            try:
                part(self, self.scratch)
            except (host.Broken, OSError) as broken:
                where = traceback.extract_tb(broken.__traceback__)[-1]
                why = f"a check could not be made: {broken} ({os.path.basename(where.filename)}:{where.lineno})"
                self.tally.expect(False, part.__name__, why)

    def at_once(self, *lanes):
        """Several rows of such checks, each in a folder of its own: a refusal may take a while."""
        twins = []
        for number, lane in enumerate(lanes):
            twin = copy.copy(self)
            twin.scratch = self.scratch.inside(f"lane-{number}")
            twins.append(functools.partial(twin.each, *lane))
        holders.at_once(*twins)

    def converted(self, name, *flags):
        path = self.scratch / name
        tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *flags, self.image, path)
        return path

    def disk(self, name, size=5 * MIB):
        path = host.make(self.scratch / name, 0)
        host.write(path, host.noise(22, size))
        return path

    def refused(self, code, name, image, target, *flags, watch=(), keep=True, stdin=b"", says=()):
        """The same request as `rebuild` and as `plan`: this code, `untouched`, and nothing has changed.

        Each pattern of `says` is found in the message, or in that of another refusal of the same run.
        """
        watched = [path for path in (target, *watch) if os.path.isfile(path) or is_device(path)]
        folder = os.path.dirname(target)
        inside = self.scratch.folder in folder and os.path.isdir(folder)
        for command in ("rebuild", "plan"):
            before = {path: (host.checksum(path), stamp(path)) for path in watched}
            saved = {path: host.read(path) for path in watched}
            names = set(os.listdir(folder)) if inside else set()
            words = [word for word in (image, target) if word]
            words += ["--keep-image-credentials"] if keep else []
            words += ["--yes"] if command == "rebuild" else []
            outcome = self.program.run(command, *words, *flags, stdin=stdin)
            label = f"{command}: {name}"
            if self.tally.expect(outcome.code == code, f"{label}: exit {code}", outcome):
                self.tally.expect(outcome.error.get("code") == code, f"{label}: the document's code", outcome)
                self.tally.expect(outcome.state == "untouched", f"{label}: says untouched", outcome)
                self.without_hint |= set() if outcome.error.get("hint") else {name}
                text = "\n".join(outcome.messages)
                for pattern in says:
                    self.tally.expect(re.search(pattern, text), f"{label}: says {pattern}", text)
            after = {path: (host.checksum(path), stamp(path)) for path in watched}
            if not self.tally.expect(after == before, f"{label}: nothing has changed", (before, after)):
                # The next check wants these as they were.
                for path, data in saved.items():
                    host.write(path if is_device(path) else host.make(path, 0), data)
            made = set(os.listdir(folder)) - names if inside else set()
            self.tally.expect(not made, f"{label}: no file was made", made)
            for one in made:
                os.unlink(os.path.join(folder, one))


def is_device(path):
    return path.startswith("/dev/") and os.path.exists(path)


def stamp(path):
    found = os.stat(path)
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode)


def refusals(program, scratch, tally):
    bench = Bench(program, scratch, tally)
    bench.each(usage, in_use, identity, fit, credentials, kinds, image_faults, digests)
    if bench.without_hint:
        print(f"  refused without a hint: {', '.join(sorted(bench.without_hint))}")
    tally.expect("a deleted image" not in bench.without_hint, "a deleted image: the hint says what to do")


def usage(b, scratch):
    disk = b.disk("usage.raw")
    b.refused(2, "an unknown flag", b.image, disk, "--force")
    b.refused(2, "a third word", b.image, disk, disk)
    b.refused(2, "no target", b.image, "")
    b.refused(2, "a size that is none", b.image, disk, "--size", "large")
    b.refused(2, "a digest that is none", b.image, disk, "--expect-digest", "md5:00")
    b.refused(2, "a new name that says qcow2", b.image, scratch / "new.qcow2")
    before = host.checksum(disk)
    outcome = b.program.run("rebuild", b.image, disk, "--keep-image-credentials")
    good = outcome.code == 2 and outcome.state == "untouched" and host.checksum(disk) == before
    b.tally.expect(good, "no consent, no terminal", outcome)
    spec = scratch / "wrong.toml"
    host.write(host.make(spec, 0), b"colour = 'red'\n[system_disk]\npath = 'usage.raw'\n")
    b.refused(2, "an unknown key in the instance file", b.image, "", "--instance", spec, watch=[disk])


def in_use(b, scratch):
    disk = b.disk("mounted.raw", 16 * MIB)
    tool("mkfs.ext4", "-q", "-F", disk)
    device = scratch.loop(disk)
    where = scratch.mount(device, "mounted", "-o", "ro,noload")
    b.refused(10, "a mounted device", b.image, device)
    other = scratch / "other-node"
    os.mknod(other, 0o600 | 0o060000, os.stat(device).st_rdev)
    b.refused(10, "a mounted device by another node", b.image, other)
    scratch.unmount(where)
    os.unlink(other)

    tool("sgdisk", "--zap-all", disk, codes=None)
    tool("sgdisk", "--clear", "--new=1:2048:0", device)
    tool("partx", "--add", device, codes=None)
    part = f"{device}p1"
    tool("mkfs.ext4", "-q", "-F", part)
    where = scratch.mount(part, "mounted", "-o", "ro,noload")
    b.refused(10, "a device of which a partition is mounted", b.image, device)
    scratch.unmount(where)
    tool("partx", "--delete", device)
    tool("mkswap", device)
    tool("swapon", device)
    try:
        b.refused(10, "a swap device", b.image, device)
    finally:
        tool("swapoff", device)
    scratch.unloop(device)

    disk = b.disk("instance.raw")
    spec = scratch / "running.toml"
    for state in ("running", "paused", "suspended"):
        text = f'id = "i-1"\npower_state = "{state}"\nimage = "image.raw"\n[system_disk]\npath = "instance.raw"\n'
        host.write(host.make(spec, 0), text.encode())
        b.refused(10, f"an instance that is {state}", "", "", "--instance", spec, watch=[disk])

    with holders.qemu_io(disk) as holder:
        says = holders.named(holder)
        b.refused(10, "a file that qemu holds", b.image, disk, "--in-place", says=says)
        b.refused(10, "a file that qemu holds, replaced", b.image, disk, says=says)


def identity(b, scratch):
    disk = b.disk("data.raw")
    link, hard = scratch / "link.raw", scratch / "hard.raw"
    os.symlink(disk, link)
    os.link(disk, hard)
    for flags in ((), ("--in-place",)):
        how = "in place" if flags else "replaced"
        b.refused(11, f"a data disk, {how}", b.image, disk, "--data-disk", disk, *flags)
        b.refused(11, f"a data disk by a symbolic link, {how}", b.image, link, "--data-disk", disk, *flags)
        b.refused(11, f"a link as data disk, {how}", b.image, disk, "--data-disk", link, *flags)
    b.refused(11, "a data disk by a hard link", b.image, hard, "--data-disk", disk, "--in-place")
    os.unlink(hard)
    bound = scratch / "bound.raw"
    host.make(bound, 0)
    tool("mount", "--bind", disk, bound)
    scratch.mounts.append(bound)
    b.refused(11, "a data disk by a bind mount", b.image, bound, "--data-disk", disk, "--in-place")
    scratch.unmount(bound)
    os.unlink(bound)
    device = scratch.loop(disk)
    node = scratch / "node"
    os.mknod(node, 0o600 | 0o060000, os.stat(device).st_rdev)
    b.refused(11, "a data disk's device", b.image, device, "--data-disk", device)
    b.refused(11, "a data disk's device by another node", b.image, node, "--data-disk", device)
    os.unlink(node)
    scratch.unloop(device)
    b.refused(11, "a data disk that is not there", b.image, disk, "--data-disk", scratch / "gone.raw")
    b.refused(11, "another serial number", b.image, disk, "--expect", "serial=abc")
    b.refused(11, "another size", b.image, disk, "--expect", "size=1G")
    b.refused(11, "another partition table", b.image, disk, "--expect", "ptuuid=12345678")

    for flags in ((), ("--in-place",)):
        b.refused(11, f"the image itself {flags}", b.image, b.image, *flags)
        b.refused(11, f"the qcow2 image itself {flags}", b.qcow2, b.qcow2, "--target-format", "raw", *flags)
    base = scratch / "base.raw"
    tool("cp", b.image, base)
    overlay = scratch / "overlay.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay)
    b.refused(11, "the image's backing file", overlay, base, "--allow-backing", scratch.folder, "--in-place")
    password = scratch / "password"
    host.write(host.make(password, 0), b"correct horse\n")
    b.refused(11, "the seed is the disk", b.image, disk, "--seed", disk, "--password-file", password, keep=False)
    b.refused(11, "the seed is the image", b.image, disk, "--seed", b.image, "--password-file", password,
              keep=False, watch=[b.image])
    b.refused(11, "the seed is a data disk", b.image, disk, "--seed", base, "--data-disk", base,
              "--password-file", password, keep=False, watch=[base])
    b.refused(11, "the seed is the image's backing file", overlay, disk, "--allow-backing", scratch.folder,
              "--seed", base, "--password-file", password, keep=False, watch=[base])


def fit(b, scratch):
    small = b.disk("small.raw", 3 * MIB - 1)
    b.refused(12, "a file that is too small", b.image, small)
    b.refused(12, "a file that is too small, in place", b.image, small, "--in-place")
    device = scratch.loop(b.disk("small-device.raw", 2 * MIB))
    b.refused(12, "a device that is too small", b.image, device)
    scratch.unloop(device)
    disk = b.disk("larger.raw")
    b.refused(12, "a size smaller than the image", b.image, disk, "--size", "1M")
    b.refused(12, "in place and a smaller file", b.image, disk, "--size", "4M", "--in-place")
    room = scratch.tmpfs("no-room", "2M")
    b.refused(12, "no room for a new file", b.image, os.path.join(room, "new.raw"))
    scratch.unmount(room)


def credentials(b, scratch):
    disk, seed = b.disk("credentials.raw"), scratch / "seed.iso"
    b.refused(13, "neither a seed nor the image's credentials", b.image, disk, keep=False)
    b.refused(13, "a seed without credentials", b.image, disk, "--seed", seed, keep=False)
    for name, content in (
        ("an empty password", b"\n"),
        ("a password of two lines", b"one\ntwo\n"),
        ("a password with a NUL", b"a\0b\n"),
    ):
        path = scratch / "password"
        host.write(host.make(path, 0), content)
        b.refused(13, name, b.image, disk, "--seed", seed, "--password-file", path, keep=False)
    path = scratch / "no-hash"
    host.write(host.make(path, 0), b"plain text\n")
    b.refused(13, "a hash that is none", b.image, disk, "--seed", seed, "--password-hash-file", path, keep=False)
    path = scratch / "no-key"
    host.write(host.make(path, 0), b"ssh-ed25519 not-base64\n")
    b.refused(13, "a key that is none", b.image, disk, "--seed", seed, "--ssh-key", path, keep=False)
    path = scratch / "private-key"
    host.write(host.make(path, 0), b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")
    b.refused(13, "a private key", b.image, disk, "--seed", seed, "--ssh-key", path, keep=False)
    path = scratch / "password"
    host.write(host.make(path, 0), b"correct horse\n")
    b.refused(13, "a password and no seed", b.image, disk, "--password-file", path, keep=False)


def kinds(b, scratch):
    folder = scratch.folder_of("a-folder")
    b.refused(14, "a folder", b.image, folder)
    fifo = scratch / "fifo"
    os.mkfifo(fifo)
    b.refused(14, "a FIFO", b.image, fifo)
    b.refused(14, "a character device", b.image, "/dev/null")
    b.refused(14, "a new file under /dev", b.image, "/dev/reimage-test-disk")
    b.refused(14, "a new file under /proc", b.image, "/proc/reimage-test-disk")
    b.refused(14, "a new file under /sys", b.image, "/sys/reimage-test-disk")
    b.refused(14, "a folder that is not there", b.image, scratch / "no-folder/disk.raw")
    b.refused(14, "in place, and nothing is there", b.image, scratch / "nothing.raw", "--in-place")
    disk = b.disk("immutable.raw")
    scratch.immutable(disk)
    b.refused(14, "an immutable file", b.image, disk)
    b.refused(14, "an immutable file, in place", b.image, disk, "--in-place")
    disk = b.disk("linked.raw")
    os.link(disk, scratch / "second-name.raw")
    b.refused(14, "a file with two names", b.image, disk)
    bound = host.make(scratch / "bound.raw", 0)
    tool("mount", "--bind", b.disk("under-bound.raw"), bound)
    scratch.mounts.append(bound)
    b.refused(14, "a bind mount", b.image, bound)
    scratch.unmount(bound)
    device = scratch.loop(b.disk("read-only.raw"), "--read-only")
    b.refused(14, "a read-only device", b.image, device)
    scratch.unloop(device)
    old = b.converted("old-disk.qcow2")
    b.refused(14, "an existing qcow2 disk, in place", b.image, old, "--in-place")
    raw_name = scratch / "guest-wrote-a-header.raw"
    tool("cp", old, raw_name)
    b.refused(14, "a raw name with qcow2 content", b.image, raw_name)
    b.refused(14, "a qcow2 name with raw content", b.image, b.disk("raw.qcow2"))


def image_faults(b, scratch):
    disk = b.disk("innocent.raw")

    def no(name, image, *flags):
        b.refused(20, name, image, disk, *flags)

    no("no image", scratch / "no-image.raw")
    no("a folder as image", scratch.folder_of("a-folder"))
    fifo = scratch / "image-fifo"
    os.mkfifo(fifo)
    no("a FIFO as image", fifo)
    no("an endless device", "/dev/zero")
    spec = scratch / "deleted.toml"
    host.write(host.make(spec, 0), b'id = "i-1"\nimage = "deleted.raw"\n[system_disk]\npath = "innocent.raw"\n')
    b.refused(20, "a deleted image", "", "", "--instance", spec, watch=[disk])
    wrong_name = scratch / "named.raw"
    tool("cp", b.qcow2, wrong_name)
    no("qcow2 under a raw name", wrong_name)
    no("qcow2 declared raw", b.qcow2, "--image-format", "raw")
    no("raw declared qcow2", b.image, "--image-format", "qcow2")
    named = scratch / "raw-named.qcow2"
    tool("cp", b.image, named)
    no("raw under a qcow2 name", named)
    for kind in ("vmdk", "vdi", "vhdx", "qed"):
        path = scratch / f"image.{kind}"
        tool("qemu-img", "convert", "-f", "raw", "-O", kind, b.image, path)
        no(f"a {kind} image", path)
    for name, offset, value in (
        ("the corrupt bit", 79, b"\x02"),
        ("an external data file's bit", 79, b"\x04"),
        ("an unknown feature", 74, b"\x01"),
        ("encryption", 35, b"\x01"),
        ("version 4", 7, b"\x04"),
        ("clusters of 128 bytes", 23, b"\x07"),
        ("a virtual size of 2^63", 24, b"\x80"),
        ("an L1 table that is not there", 40, b"\x00\x00\x00\x00\x7f\xff\x00\x00"),
    ):
        path = scratch / "changed.qcow2"
        tool("cp", b.qcow2, path)
        with open(path, "r+b") as image:
            image.seek(offset)
            image.write(value)
        no(name, path)
    path = scratch / "truncated.qcow2"
    tool("cp", b.qcow2, path)
    os.truncate(path, 2 * MIB)
    no("a truncated image", path)
    no("a truncated image, all decoded", path, "--preflight", "deep")
    overlay = scratch / "needs-base.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", b.qcow2, "-F", "qcow2", overlay)
    no("a backing file that is not allowed", overlay)
    no("a backing file outside of the folder", overlay, "--allow-backing", scratch.folder_of("elsewhere"))
    data = scratch / "external.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={scratch / 'external.data'}", data, "3M")
    no("an external data file", data, "--allow-backing", scratch.folder)
    broken = text_image(scratch)
    spoil_compressed(broken, 2 * MIB)
    no("a cluster that does not decode, all decoded", broken, "--preflight", "deep")


def text_image(scratch):
    """A zlib image of 3 MiB of text."""
    raw, path = scratch / "text.raw", scratch / "text.qcow2"
    text = b"".join(b"%07d bottles of beer on the wall\n" % number for number in range(90_000))
    host.write(host.make(raw, 0), text[: 3 * MIB].ljust(3 * MIB, b"."))
    tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, path)
    return path


def spoil_compressed(path, offset):
    """Damages the compressed cluster that holds the disk's byte `offset`."""
    with open(path, "r+b") as image:
        head = image.read(104)
        bits, l1 = struct.unpack(">I", head[20:24])[0], struct.unpack(">Q", head[40:48])[0]
        per_table = (1 << bits) // 8
        cluster = offset >> bits
        image.seek(l1 + cluster // per_table * 8)
        l2 = struct.unpack(">Q", image.read(8))[0] & 0x00FFFFFFFFFFFE00
        image.seek(l2 + cluster % per_table * 8)
        entry = struct.unpack(">Q", image.read(8))[0]
        if not entry >> 62 & 1:
            raise host.Broken("the cluster is not compressed")
        where = entry & ((1 << (62 - (bits - 8))) - 1)
        image.seek(where)
        image.write(b"\xff" * 64)


def digests(b, scratch):
    disk = b.disk("digest.raw")
    for algorithm, words in (("sha256", ("sha256sum",)), ("blake3", ("b3sum",))):
        digest = tool(*words, b.qcow2).split()[0]
        wrong = ("0" if digest[0] != "0" else "1") + digest[1:]
        b.refused(21, f"another {algorithm}", b.qcow2, disk, "--expect-digest", f"{algorithm}:{wrong}")
        target = scratch / "right-digest.raw"
        outcome = b.program.rebuild(b.qcow2, target, "--expect-digest", f"{algorithm}:{digest}")
        b.tally.expect(outcome.code == 0, f"the right {algorithm}", outcome)
        os.unlink(target)
