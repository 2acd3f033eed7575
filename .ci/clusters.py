"""What a qcow2 file says of its clusters: a small reader of all tables, which knows the format from its specification
alone, and a file that is damaged and mended again.

Sound files are read only; nothing is checked.
"""

import array
import os
import struct
import sys
from dataclasses import dataclass, field

OFFSET = 0x00FFFFFFFFFFFE00
COPIED = 1 << 63
COMPRESSED = 1 << 62
BITMAPS = 0x23852875


@dataclass(frozen=True)
class Entry:
    """An entry of an L2 table that says something: where it is, what it says, and of which cluster of the disk."""

    at: int
    value: int
    guest: int

    @property
    def packed(self):
        return bool(self.value & COMPRESSED)

    @property
    def host(self):
        """Where its cluster is, if it has one to itself."""
        return 0 if self.packed else self.value & OFFSET


@dataclass
class Disk:
    """The active disk or that of a snapshot: its L1 table, its entries that are not 0, and what is in their tables."""

    l1: int
    l1_size: int
    # Where in the snapshot table it begins; the active one is not there.
    at: int = 0
    tables: list = field(default_factory=list)
    entries: list = field(default_factory=list)

    @property
    def data(self):
        return [entry for entry in self.entries if entry.host]

    @property
    def streams(self):
        return [entry for entry in self.entries if entry.packed]


class Image:
    """All tables of a file, and its bytes for changes that are taken back."""

    def __init__(self, path):
        self.path, self.handle, self.undo = path, os.open(path, os.O_RDWR), []
        head = os.pread(self.handle, 112, 0)
        self.version, self.cluster_bits = struct.unpack_from(">I12xI", head, 4)
        self.cluster = 1 << self.cluster_bits
        self.size, l1_size, l1, self.refcount_table, self.refcount_clusters, snapshots, self.snapshot_table = (
            struct.unpack_from(">Q4xIQQIIQ", head, 24))
        features, self.autoclear, order, self.header_length = (
            struct.unpack_from(">Q8xQII", head, 72) if self.version > 2 else (0, 0, 4, 72))
        self.count_bits, self.entry_length = 1 << order, 16 if features & 16 else 8
        # As one that is not to be trusted, or whose counts may be wrong.
        self.is_marked = bool(features & 3)
        self.length = os.fstat(self.handle).st_size
        self.guest_clusters = -(-self.size // self.cluster)
        self.active = self.disk(l1, l1_size)
        self.snapshots = self.read_snapshots(snapshots) if snapshots else []
        self.directory, self.bitmaps = self.read_bitmaps()
        self.blocks = self.entries_at(self.refcount_table, self.refcount_clusters * self.cluster // 8, OFFSET)

    def close(self):
        os.close(self.handle)

    # Reading

    def numbers(self, offset, count):
        values = array.array("Q", os.pread(self.handle, count * 8, offset).ljust(count * 8, b"\0"))
        if sys.byteorder == "little":
            values.byteswap()
        return values

    def entries_at(self, offset, count, mask=~0):
        """(where, value) of those numbers that are not 0."""
        values = enumerate(self.numbers(offset, count))
        return [(offset + 8 * index, value & mask) for index, value in values if value & mask]

    def disk(self, l1, l1_size, at=0):
        disk = Disk(l1, l1_size, at, self.entries_at(l1, l1_size, OFFSET))
        per_table, step = self.cluster // self.entry_length, self.entry_length // 8
        for where, table in disk.tables:
            first = (where - l1) // 8 * per_table
            values = self.numbers(table, self.cluster // 8)[::step]
            disk.entries += [Entry(table + index * self.entry_length, value, first + index)
                             for index, value in enumerate(values) if value]
        return disk

    def read_snapshots(self, count):
        found, at = [], self.snapshot_table
        for _ in range(count):
            l1, l1_size, identity, name, extra = struct.unpack(">QIHH20xI", os.pread(self.handle, 40, at))
            found.append(self.disk(l1, l1_size, at))
            at += 40 + identity + name + extra
            at += -at % 8
        self.snapshot_table_end = at
        return found

    def read_bitmaps(self):
        """The directory's place, and of each bitmap where that names it, the table's place, and its entries."""
        at = self.header_length
        while self.version > 2 and self.autoclear & 1 and at < self.cluster - 32:
            kind, length = struct.unpack(">II", os.pread(self.handle, 8, at))
            if kind == BITMAPS:
                _, size, start = struct.unpack(">Q QQ", os.pread(self.handle, 24, at + 8))
                return (start, start + size), self.read_directory(start, start + size)
            if kind == 0:
                break
            at += 8 + length + -length % 8
        return None, []

    def read_directory(self, at, end):
        found = []
        while at < end:
            table, size, name, extra = struct.unpack(">QI6xHI", os.pread(self.handle, 24, at))
            found.append((at, (table, table + size * 8), self.entries_at(table, size, OFFSET)))
            at += 24 + name + extra
            at += -at % 8
        return found

    # Reference counts

    def count_place(self, cluster):
        """The byte and the bits in it, or the first byte, of a cluster's count; None where there is no block."""
        per_block = self.cluster * 8 // self.count_bits
        where = self.refcount_table + cluster // per_block * 8
        block = dict(self.blocks).get(where)
        if block is None:
            return None
        bit = cluster % per_block * self.count_bits
        return block + bit // 8, bit % 8

    def count(self, cluster):
        place = self.count_place(cluster)
        if place is None:
            return 0
        read = os.pread(self.handle, max(self.count_bits // 8, 1), place[0])
        return int.from_bytes(read, "big") >> place[1] & (1 << self.count_bits) - 1

    def set_count(self, cluster, count):
        at, shift = self.count_place(cluster)
        length = max(self.count_bits // 8, 1)
        mask = (1 << self.count_bits) - 1 << shift
        value = int.from_bytes(os.pread(self.handle, length, at), "big") & ~mask | count << shift
        self.put(at, value.to_bytes(length, "big"))

    # Streams of compressed clusters

    @property
    def sector_shift(self):
        return 62 - (self.cluster_bits - 8)

    def stream(self, value):
        """The first byte of a stream, and the first behind its last sector."""
        start = value & (1 << self.sector_shift) - 1
        sectors = (value & ~(COPIED | COMPRESSED)) >> self.sector_shift
        return start, start - start % 512 + (sectors + 1) * 512

    def packed_entry(self, start, end):
        """The entry of such a stream, or the longest that there is."""
        sectors = min((end - 1) // 512 - start // 512, (1 << 62 - self.sector_shift) - 1)
        return COMPRESSED | sectors << self.sector_shift | start

    # Who uses what

    def areas(self):
        """The clusters of each kind of structure: {name: [cluster]}.

        The last one of the file may be shorter, and holds nothing then that takes all of it: it is left out.
        """
        bits = self.cluster_bits

        def of(start, end):
            return range(start >> bits, -(-end // self.cluster))
        places = {
            "the header": [0],
            "the L1 table": of(self.active.l1, self.active.l1 + self.active.l1_size * 8),
            "an L2 table": [table >> bits for _, table in self.active.tables],
            "a snapshot's L1 table": [number for disk in self.snapshots if disk.l1_size
                                      for number in of(disk.l1, disk.l1 + disk.l1_size * 8)],
            "a snapshot's L2 table": [table >> bits for disk in self.snapshots for _, table in disk.tables],
            "the snapshot table": of(self.snapshot_table, self.snapshot_table_end) if self.snapshots else [],
            "the bitmap directory": of(*self.directory) if self.directory else [],
            "a bitmap's table": [number for _, table, _ in self.bitmaps for number in of(*table)],
            "a bitmap": [bitmap >> bits for _, _, parts in self.bitmaps for _, bitmap in parts],
            "the refcount table": of(self.refcount_table, self.refcount_table + self.refcount_clusters * self.cluster),
            "a refcount block": [block >> bits for _, block in self.blocks],
        }
        for name, disks in (("active data", [self.active]), ("a snapshot's data", self.snapshots)):
            data = {entry.host >> bits for disk in disks for entry in disk.data}
            data.update(number for disk in disks for entry in disk.streams for number in of(*self.stream(entry.value)))
            places[name] = data
        taken = set().union(*places.values())
        whole = range(self.length >> bits)
        places["a free cluster"] = [number for number in whole if number not in taken and self.count(number) == 0]
        return {name: sorted({number for number in numbers if number in whole}) for name, numbers in places.items()}

    def spare_l1(self):
        """L1 entries behind the disk's end: (where, 0)."""
        needed = -(-self.guest_clusters // (self.cluster // self.entry_length))
        return [(self.active.l1 + 8 * index, 0) for index in range(needed, self.active.l1_size)]

    # Damage

    def read(self, at, length):
        return os.pread(self.handle, length, at)

    def put(self, at, data):
        """Changes bytes in the file; `mend` takes it back."""
        self.undo.append((at, os.pread(self.handle, len(data), at)))
        os.pwrite(self.handle, data, at)

    def put_number(self, at, value):
        self.put(at, struct.pack(">Q", value))

    def mend(self):
        while self.undo:
            at, data = self.undo.pop()
            os.pwrite(self.handle, data, at)
        os.ftruncate(self.handle, self.length)
