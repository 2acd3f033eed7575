"""Memory and time do not grow with the image, but with what it holds."""

import os
import struct
import subprocess

import host
from host import MIB, tool

GIB = 1024 * MIB
MOST_MEMORY = 128 * MIB
MOST_SECONDS = 0.2


def limits(program, scratch, tally):
    needed = 10 * GIB
    room = os.statvfs(scratch.folder)
    if room.f_bavail * room.f_frsize < needed:
        raise host.Broken(f"{scratch.folder} needs {needed} bytes of room")
    for part in (much_data, much_metadata, refused, nothing, little_address_space, large_clusters):
        part(program, scratch, tally)


def run(program, tally, name, image, target, *flags):
    if os.path.exists(target):
        os.unlink(target)
    words = (image, target, "--keep-image-credentials", "--yes", *flags)
    outcome = program.measured("rebuild", *words)
    tally.expect(outcome.code == 0, name, outcome)
    memory, seconds = outcome.usage
    print(f"  {name}: {memory / MIB:.1f} MiB, {seconds:.2f} s of CPU")
    tally.expect(memory < MOST_MEMORY, f"{name}: memory", f"{memory} bytes")
    return seconds


def much_data(program, scratch, tally):
    """1 TiB with 4 GiB of data in four places."""
    image, target = scratch / "large.qcow2", scratch / "large.raw"
    tool("qemu-img", "create", "-q", "-f", "qcow2", image, "1T")
    writes = [word for place in (0, 300, 700, 1023) for word in ("-c", f"write -P {place % 200 + 1} {place}G 1G")]
    tool("qemu-io", "-f", "qcow2", *writes, image)
    run(program, tally, "1 TiB with 4 GiB of data", image, target)
    for place in (0, 300, 700, 1023):
        for offset, length in ((place * GIB, 4096), ((place + 1) * GIB - 4096, 4096)):
            with open(target, "rb") as disk:
                disk.seek(offset)
                right = disk.read(length) == bytes([place % 200 + 1]) * length
            tally.expect(right, f"1 TiB with 4 GiB of data: content at {offset}")
    os.unlink(image)
    os.unlink(target)


def much_metadata(program, scratch, tally):
    """256 GiB of clusters that are all allocated and were never written."""
    image, target = scratch / "metadata.qcow2", scratch / "metadata.raw"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, "256G")
    run(program, tally, "256 GiB of metadata", image, target)
    os.unlink(image)
    os.unlink(target)


def refused(program, scratch, tally):
    """The longest L1 table there is, four million streams, and a wrong entry at the end of it all."""
    cluster, tables, streams, room = 512, 1_980_000, 4 * MIB, 4 * MIB
    l1, l2 = 2 * cluster, 2 * cluster + 8 * room
    data = l2 + tables * cluster
    image = host.make(scratch / "refused.qcow2", 64 * GIB)
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 9, 64 * room * cluster, 0, room, l1, cluster, 1, 0, 0)
    host.write(image, header + struct.pack(">QQQII", 0, 0, 0, 4, 104))
    with open(image, "r+b") as file:
        file.seek(l1)
        file.write(b"".join(struct.pack(">Q", 1 << 63 | l2 + number * cluster) for number in range(tables)))
        file.seek(data - 8 * streams)
        file.write(b"".join(struct.pack(">Q", 1 << 62 | data + number * cluster) for number in range(streams - 1)))
        file.write(struct.pack(">Q", 1 << 63 | 1 << 50))
    outcome = program.measured("inspect", image)
    tally.expect(outcome.code == 20, "a refused image with long tables", outcome)
    memory, seconds = outcome.usage
    print(f"  a refused image with long tables: {memory / MIB:.1f} MiB, {seconds:.2f} s of CPU")
    tally.expect(memory < MOST_MEMORY, "a refused image with long tables: memory", f"{memory} bytes")
    os.unlink(image)


def nothing(program, scratch, tally):
    """8 TiB of nothing, onto a sparse file."""
    target = scratch / "nothing.raw"
    images = [scratch / "nothing.qcow2", host.make(scratch / "holes.raw", 8 << 40)]
    tool("qemu-img", "create", "-q", "-f", "qcow2", images[0], "8T")
    for image in images:
        name = f"8 TiB of nothing, {os.path.splitext(image)[1][1:]}"
        seconds = run(program, tally, name, image, target)
        tally.expect(seconds <= MOST_SECONDS, f"{name}: CPU", f"{seconds} s")
        tally.expect(os.path.getsize(target) == 8 << 40, f"{name}: size")
        tally.expect(os.stat(target).st_blocks * 512 < MIB, f"{name}: room taken", os.stat(target).st_blocks)
        outcome = program.rebuild(image, target)
        tally.expect(outcome.code == 0, f"{name}: replaced", outcome)
        outcome = program.rebuild(image, target, "--in-place")
        tally.expect(outcome.code == 0, f"{name}: in place", outcome)


def large_clusters(program, scratch, tally):
    """Images of clusters of 2 MiB, made by all threads."""
    disk, image = host.make(scratch / "clusters.raw", 0), scratch / "clusters.qcow2"
    host.write(disk, host.noise(5, 30 * MIB) + bytes(60 * MIB) + host.noise(6, 40 * MIB) + b"x" * (70 * MIB))
    for packing in ("zstd", "zlib"):
        words = (disk, image, "--yes", "--replace", "--threads", "12", "--cluster-size", "2M", "--compress", packing)
        outcome = program.measured("capture", *words)
        tally.expect(outcome.code == 0, f"clusters of 2 MiB, {packing}", outcome)
        memory, seconds = outcome.usage
        print(f"  clusters of 2 MiB, {packing}: {memory / MIB:.1f} MiB, {seconds:.2f} s of CPU")
        tally.expect(memory < MOST_MEMORY, f"clusters of 2 MiB, {packing}: memory", f"{memory} bytes")


def little_address_space(program, scratch, tally):
    """Nova and Ironic run their tools with 1 GiB of address space."""
    raw, image, target = scratch / "space.raw", scratch / "space.qcow2", scratch / "space-target.raw"
    with open("/dev/urandom", "rb") as noise:
        host.write(host.make(raw, 256 * MIB), noise.read(48 * MIB))
    tool("qemu-img", "convert", "-q", "-c", "-O", "qcow2", "-o", "cluster_size=2M", raw, image)
    keep = ("--keep-image-credentials", "--state-dir", scratch / "space-state")
    commands = (
        ("plan", image, target, *keep),
        ("rebuild", image, target, *keep, "--yes", "--preflight", "deep", "--threads", "12"),
        ("rebuild", image, target, *keep, "--yes", "--in-place"),
        ("inspect", image, "--check"),
        ("capture", target, scratch / "space-captured.qcow2", "--state-dir", scratch / "space-state", "--yes"),
    )
    for words in commands:
        limited = ["prlimit", f"--as={GIB}", program.binary, *map(str, words)]
        done = subprocess.run(limited, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        tally.expect(done.returncode == 0, f"{words[0]} in 1 GiB of address space", done.stderr[-500:])
    tally.expect(host.read(target)[: 48 * MIB] == host.read(raw)[: 48 * MIB], "1 GiB of address space: content")
