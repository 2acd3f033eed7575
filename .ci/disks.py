"""Disks as installers and file systems leave them: partition tables, labels, and who still sees them."""

import re
import struct
import zlib

import host
from host import MIB, Broken, speak, tool

CHUNK = MIB
"""The engine's unit; both ends of a disk are withheld in at most this size and a little more."""


def gpt_image(path, size, rng_seed=1):
    """A cloud image as Debian makes them: partitions 1, 14 and 15, boot code, two file systems."""
    host.make(path, size)
    small = size < 16 * MIB
    bios, system = ("+1M", "+2M") if small else ("+3M", "+8M")
    tool(
        "sgdisk", "--disk-guid=8D8D0A55-0000-4000-8000-00000000C0DE",
        f"--new=14:2048:{bios}", "--typecode=14:ef02", "--partition-guid=14:8D8D0A55-0000-4000-8000-000000000014",
        f"--new=15:0:{system}", "--typecode=15:ef00", "--partition-guid=15:8D8D0A55-0000-4000-8000-000000000015",
        "--new=1:0:0", "--typecode=1:8304", "--partition-guid=1:8D8D0A55-0000-4000-8000-000000000001",
        "--change-name=1:root", "--attributes=1:set:2", path,
    )
    for number, make in ((1, ("mkfs.ext4", "-q", "-F")), (15, ("mkfs.fat", "-F", "12"))):
        start, length = extent(path, number)
        part = f"{path}.part"
        host.make(part, length)
        tool(*make, part)
        tool("dd", f"if={part}", f"of={path}", "bs=64K", f"seek={start}", "oflag=seek_bytes", "conv=notrunc,sparse")
        tool("rm", part)
    with open(path, "r+b") as disk:
        disk.write(host.noise(rng_seed, 440))
        disk.seek(extent(path, 14)[0])
        disk.write(host.noise(rng_seed + 1, 200_000))
        start, length = extent(path, 1)
        disk.seek(start + length // 2)
        disk.write(host.noise(rng_seed + 2, min(length // 4, 2 * MIB)))
    return path


def extent(path, number):
    """Where a partition lies, in bytes."""
    text = tool("sgdisk", f"--info={number}", path)
    first, last = (int(re.search(rf"{word} sector: (\d+)", text)[1]) for word in ("First", "Last"))
    return first * 512, (last + 1 - first) * 512


def table(path):
    """What must survive of a GPT: the disk's GUID, and all that is said of each partition."""
    text = tool("sgdisk", "--print", path)
    numbers = re.findall(r"^ +(\d+) +\d+ +\d+ ", text, re.MULTILINE)
    guid = re.search(r"Disk identifier \(GUID\): (\S+)", text)[1]
    return guid, numbers, [tool("sgdisk", f"--info={number}", path) for number in numbers]


def problems(path):
    """What `sgdisk --verify` complains about; '' if nothing."""
    code, text = speak("sgdisk", "--verify", path)
    return "" if code == 0 and "No problems found" in text else text


def plant_md(disk, size):
    """An md superblock of version 0.90: near the end of the disk."""
    words = [0xA92B4EFC, 0, 90, 0, 0, 0x12345678, 0x65000000, 1, (size & ~0xFFFF) // 1024 - 64, 2, 2, 0, 0, 1, 2, 3]
    disk.seek((size & ~0xFFFF) - 0x10000)
    disk.write(struct.pack("<16I", *words) + bytes(4096 - 64))


def plant_zfs(disk, size, labels=(0, 1, 2, 3)):
    """Uberblocks in ZFS labels, of which two lie at the disk's head and two at its end."""
    end = size // 0x40000 * 0x40000
    for label in labels:
        start = (0, 0x40000, end - 0x80000, end - 0x40000)[label]
        for number in range(8):
            disk.seek(start + 0x20000 + number * 1024)
            disk.write(struct.pack("<6Q", 0x00BAB10C, 5000, 4, 7, 8, 1700000000))


def plant_lvm(disk):
    """An LVM2 label in the second sector."""
    body = struct.pack("<I8s", 32, b"LVM2 001") + b"A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6" + bytes(512 - 64)
    body = body[: 512 - 20]
    seal = zlib.crc32(body, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    disk.seek(512)
    disk.write(struct.pack("<8sQI", b"LABELONE", 1, seal) + body)


def labelled(path, kind):
    """Fills an existing disk with noise and plants labels at its head and end; returns their names.

    blkid looks for ZFS only on disks of 64 MiB and more.
    """
    size = host.size_of(path)
    for offset, length in ((0, 3 * MIB), (size // 2, 3 * MIB), (size - 4 * MIB, 4 * MIB)):
        host.write(path, host.noise(9, length), offset)
    if kind == "gpt":
        tool("sgdisk", "--zap-all", path, codes=None)
        tool("sgdisk", "--clear", "--new=1:0:0", "--typecode=1:8300", path)
        names = {"gpt", "PMBR", "zfs_member", "linux_raid_member"}
    else:
        tool("mkfs.ext4", "-q", "-F", "-E", "nodiscard", path)
        names = {"ext4", "LVM2_member", "zfs_member", "linux_raid_member"}
    with open(path, "r+b") as disk:
        if kind != "gpt":
            plant_lvm(disk)
        plant_zfs(disk, size, (0, 1, 2, 3) if kind == "gpt" else (2, 3))
        plant_md(disk, size)
    host.flush(path)
    found = signatures(path)
    if not names <= found:
        raise Broken(f"wipefs sees {found} of the planted {names}")
    return names


def signatures(path):
    """The names of all signatures that wipefs sees."""
    host.flush(path)
    return set(tool("wipefs", "--noheadings", "--output", "TYPE", path).split())


def sightings(path):
    """What any tool still sees at the head or the end of a disk; [] if nothing."""
    host.flush(path)
    seen = []
    if found := signatures(path):
        seen.append(f"wipefs: {sorted(found)}")
    code, text = speak("blkid", "--probe", "--cache-file", "/dev/null", path)
    if code != 2:
        seen.append(f"blkid --probe: exit {code}: {text.strip()}")
    code, text = speak("sgdisk", "--print", path)
    lines = [line for line in text.splitlines() if re.match(r"(Caution|Warning|Found|Invalid| +\d+ )", line)]
    if "Creating new GPT entries" not in text or lines:
        seen.append(f"sgdisk --print: {lines or text}")
    code, text = speak("sfdisk", "--dump", path)
    if code == 0 or "does not contain a recognized partition table" not in text:
        seen.append(f"sfdisk --dump: {text.strip()}")
    code, text = speak("partx", "--show", path)
    if code == 0 and re.search(r"^ *\d", text, re.MULTILINE):
        seen.append(f"partx --show: {text.strip()}")
    return seen
