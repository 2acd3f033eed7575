"""Memory and time do not grow with the image, but with what it holds."""

import array
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
    for part in (much_data, much_metadata, refused, counted, nothing, little_address_space, large_clusters):
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


def hollow(folder, size, tables, *stored):
    """An image of clusters of 512 bytes that is a hole but for its header and what is stored at these places.

    `tables` are what the header says: the disk's size, the L1 table's entries and place, the refcount table's place and
    clusters, how many snapshots there are and where; and the bitmaps extension.
    """
    size_of_disk, entries, l1, counts, blocks, snapshots, snapshot_table, bitmaps = tables
    image = host.make(os.path.join(folder, "hollow.qcow2"), size)
    header = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 9, size_of_disk, 0, entries, l1, counts, blocks,
                         snapshots, snapshot_table, 0, 0, 1 if bitmaps else 0, 4, 104)
    with open(image, "r+b") as file:
        for place, content in ((0, header + bitmaps), *stored):
            file.seek(place)
            file.write(content)
    return image


def numbers(all_of_them):
    found = array.array("Q", all_of_them)
    found.byteswap()
    return found.tobytes()


def counted(program, scratch, tally):
    """What snapshots and bitmaps have, and reference counts, are looked at within bounds, whatever is said of them."""
    folder = scratch.tmpfs("hollow", "256M")
    apart, most, table, million = 1024, 65536, 1 << 20, 1 << 20
    # Tables of all kinds, as many as there may be: of the disk, of counts, of snapshots and of bitmaps.
    entries, large, far = 3_100_000, (1 << 42) + (1 << 34), 1 << 44
    snapshots = b"".join(struct.pack(">QI28x", (1 << 42) + number * apart, 1) for number in range(1, most))
    bitmaps = b"".join(struct.pack(">QIIBBHI", (1 << 42) + (1 << 35) + number * apart, 1, 0, 1, 9, 0, 0)
                       for number in range(most - 1))
    extension = struct.pack(">IIIIQQ16x", 0x23852875, 24, most - 1, 0, (most - 1) * 24, 1 << 28)
    everything = hollow(
        folder, far + (1 << 40), (entries << 15, entries, 1 << 26, table, 16384, most, 1 << 27, extension),
        (1 << 26, numbers(1 << 63 | (1 << 32) + number * 512 for number in range(entries))),
        (table, numbers((1 << 40) + number * apart for number in range(million))),
        (1 << 27, struct.pack(">QI28x", large, million) + snapshots), (1 << 28, bitmaps),
        (large, numbers(far + number * 4096 for number in range(million))))
    within(program, tally, "a check of tables of all kinds", everything, "check_incomplete", 20)
    # Four million L2 tables in any order, and 120 long L1 tables far from each other.
    step, long, count = (4 << 20) * 512 + (600 << 10) * 512, 4 << 20, 4 * million
    snapshots = b"".join(struct.pack(">QI28x", (1 << 36) + number * step, long) for number in range(120))
    many = hollow(
        folder, (1 << 44) + (count << 20) + 4096, (0, 0, 0, table, 1, 121, 1024, b""),
        (1024, struct.pack(">QI28x", 1 << 30, count) + snapshots),
        (1 << 30, numbers((1 << 44) + (number << 20) for number in reversed(range(count)))))
    within(program, tally, "a check of what lies apart", many, "check_incomplete", 6)


def within(program, tally, name, image, kind, most_seconds):
    """The time is far from what it takes, and farther from what it would take without a bound."""
    outcome = program.measured("inspect", image, "--check")
    told = [finding["kind"] for finding in (outcome.doc or {}).get("findings", ())]
    tally.expect(outcome.code == 0 and kind in told, f"{name}: {kind}", set(told))
    memory, seconds = outcome.usage
    print(f"  {name}: {memory / MIB:.1f} MiB, {seconds:.2f} s of CPU")
    tally.expect(memory < MOST_MEMORY, f"{name}: memory", f"{memory} bytes")
    tally.expect(seconds < most_seconds, f"{name}: CPU", f"{seconds} s")
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
