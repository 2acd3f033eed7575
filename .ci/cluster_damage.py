"""Damage to the tables of a sound qcow2 image by which clusters are used twice, or more often than is counted.

What each kind does is in its name in `KINDS`.
"""

from clusters import COMPRESSED, COPIED


class Damage:
    """Changes to a sound image. Each kind says by True that it changed something."""

    def __init__(self, image, rng):
        self.image, self.rng, self.active = image, rng, image.active
        self.areas = image.areas()
        self.snapshot_entries = [entry for disk in image.snapshots for entry in disk.entries if entry.value & ~COPIED]
        self.mend()

    def mend(self):
        """Takes all of it back."""
        self.image.mend()
        # The L1 entries of snapshots, and their L2 tables.
        self.snapshot_tables = [table for disk in self.image.snapshots for table in disk.tables]
        # Entries that are not followed, by their offsets, each with the offset that is told of it, and whether it is so
        # whatever is counted there.
        self.unfollowed = {}
        # Whether an entry of a stream is another now; whether a count is higher, and may fit another change.
        self.moved_stream = self.raised_count = False

    def one(self, choices):
        return self.rng.choice(choices) if choices else None

    def area(self, name):
        """The offset of a cluster of such an area."""
        number = self.one(self.areas[name])
        return None if number is None else number << self.image.cluster_bits

    def flag(self, value):
        """The value with or without bit 63, which no compressed cluster has."""
        return value if value & COMPRESSED else value & ~COPIED | self.rng.choice((0, COPIED))

    def place(self):
        """Where an entry of the active disk is, or could be in a table that there is."""
        table = self.one(self.active.tables)
        within = [entry for entry in self.active.entries if entry.guest < self.image.guest_clusters]
        if within and (table is None or self.rng.random() < 0.6):
            return self.rng.choice(within).at
        return None if table is None else self.slot(table, 0, self.image.guest_clusters)

    def slot(self, table, first, end):
        """An entry's place in a table, of a cluster of the disk from one on and before another."""
        per_table = self.image.cluster // self.image.entry_length
        before = (table[0] - self.active.l1) // 8 * per_table
        first, end = max(first - before, 0), min(end - before, per_table)
        return table[1] + self.rng.randrange(first, end) * self.image.entry_length if first < end else None

    def put_entry(self, at, value, bitmap=None):
        """An L2 entry; one that is extended gets all its subclusters, none, or keeps what it says of them."""
        self.moved_stream |= bool(int.from_bytes(self.image.read(at, 8), "big") & COMPRESSED)
        self.image.put_number(at, value)
        if self.image.entry_length == 16:
            kept = int.from_bytes(self.image.read(at + 8, 8), "big")
            if bitmap is None:
                bitmap = 0 if value & COMPRESSED else self.rng.choice((kept, 0, (1 << 32) - 1))
            self.image.put_number(at + 8, bitmap)
        return True

    def point_at(self, offset, at=None):
        """An entry of the active disk leads there."""
        at = self.place() if at is None else at
        if at is None or offset is None:
            return False
        zero = int(self.image.version == 3 and self.image.entry_length == 8 and self.rng.random() < 0.2)
        return self.put_entry(at, self.flag(offset) | zero)

    # Entries of the active disk

    def snapshot_entry_there(self):
        mine = {entry.guest: entry for entry in self.active.entries}
        pairs = [(mine[entry.guest], entry) for entry in self.snapshot_entries
                 if entry.guest in mine and (mine[entry.guest].value ^ entry.value) & ~COPIED]
        pair = self.one(pairs)
        return pair is not None and self.put_entry(pair[0].at, self.flag(pair[1].value))

    def snapshot_entry_elsewhere(self):
        entry, at = self.one(self.snapshot_entries), self.place()
        return entry is not None and at is not None and self.put_entry(at, self.flag(entry.value))

    def on_area(self, name):
        return self.point_at(self.area(name))

    def behind_the_end(self, name):
        """The same of an entry in the last table that the disk is too short for."""
        places = [self.slot(table, self.image.guest_clusters, 1 << 63) for table in self.active.tables[-1:]]
        at = self.one([place for place in places if place])
        return at is not None and self.point_at(self.area(name), at)

    def moved(self):
        """An entry has another's cluster, which that one has no more: wrong, but nothing is used twice."""
        own = [entry for entry in self.active.data if entry.value & COPIED]
        entry, at = self.one(own), self.place()
        if entry is None or at in (None, entry.at):
            return False
        self.put_entry(at, entry.value, int.from_bytes(self.image.read(entry.at + 8, 8), "big"))
        return self.put_entry(entry.at, 0, 0)

    def on_leaked(self):
        """A cluster that was counted and not used."""
        offset, at = self.area("a free cluster"), self.place()
        if offset is None or at is None or self.image.count_place(offset >> self.image.cluster_bits) is None:
            return False
        self.image.set_count(offset >> self.image.cluster_bits, 1)
        return self.put_entry(at, offset | COPIED)

    # What snapshots and bitmaps say

    def snapshot_on(self, offset):
        """An entry of a snapshot's, in a table that is not the active disk's as well, leads there."""
        mine = {entry.at for entry in self.active.entries}
        entry = self.one([entry for entry in self.snapshot_entries if entry.at not in mine])
        return entry is not None and offset not in (None, entry.host) and self.put_entry(entry.at, self.flag(offset))

    def snapshot_on_area(self, name):
        return self.snapshot_on(self.area(name))

    def counted_twice(self, name):
        """A snapshot has what the active disk has, and so it is counted."""
        offset = self.area(name)
        if offset is None or self.image.count_bits == 1 or not self.snapshot_on(offset):
            return False
        cluster = offset >> self.image.cluster_bits
        self.image.set_count(cluster, self.image.count(cluster) + 1)
        return True

    def table_of(self, entries, others):
        """An L1 entry gets another's L2 table."""
        mine, other = self.one(entries), self.one(others)
        if mine is None or other is None or mine[1] == other[1]:
            return False
        self.image.put_number(mine[0], self.flag(other[1]))
        self.unfollowed.pop(mine[0], None)
        return True

    def snapshot_on_active_table(self):
        return self.table_of(self.snapshot_tables, self.active.tables)

    def snapshot_on_snapshot_table(self):
        return self.table_of(self.snapshot_tables, self.snapshot_tables)

    def active_on_snapshot_table(self):
        mine = {table for _, table in self.active.tables}
        return self.table_of(self.active.tables, [table for table in self.snapshot_tables if table[1] not in mine])

    def spare_on_table(self):
        return self.table_of(self.image.spare_l1(), self.snapshot_tables or self.active.tables)

    def active_on_active_table(self):
        """Only the first of two L1 entries keeps its table; of the other it is told."""
        mine, other = self.one(self.active.tables), self.one(self.active.tables)
        if mine is None or mine == other:
            return False
        self.image.put_number(mine[0], self.flag(other[1]))
        self.unfollowed[mine[0]] = max(mine[0], other[0]), True
        return True

    def no_table(self, name):
        """A snapshot's L1 entry leads to what is no table of entries. qemu-img reads it as one."""
        mine, offset = self.one(self.snapshot_tables), self.area(name)
        if mine is None or offset is None or offset == mine[1]:
            return False
        self.image.put_number(mine[0], offset)
        self.unfollowed[mine[0]] = offset, False
        return True

    def unaligned_table(self):
        mine = self.one(self.snapshot_tables)
        if mine is None or self.image.cluster == 512:
            return False
        self.image.put_number(mine[0], mine[1] + 512)
        self.unfollowed[mine[0]] = mine[0], True
        return True

    def l1_table_of(self, others):
        """A snapshot gets another's L1 table, which is read once."""
        mine = self.one([disk for disk in self.image.snapshots if disk.tables])
        other = self.one([disk for disk in others if disk.tables and disk is not mine])
        if mine is None or other is None:
            return False
        self.image.put_number(mine.at, other.l1)
        for table in mine.tables:
            self.unfollowed.pop(table[0], None)
        self.snapshot_tables = [table for table in self.snapshot_tables if table not in mine.tables]
        # Who had its own until now has it alone.
        self.unfollowed = {at: place for at, place in self.unfollowed.items() if place != (mine.l1, True)}
        self.unfollowed[mine.at] = other.l1, True
        return True

    def two_snapshots_one_table(self):
        return self.l1_table_of(self.image.snapshots)

    def snapshot_on_active_l1(self):
        return self.l1_table_of([self.active])

    def two_bitmaps_one_table(self):
        if len(self.image.bitmaps) < 2:
            return False
        (at, _, _), (_, (table, _), _) = self.rng.sample(self.image.bitmaps, 2)
        self.image.put_number(at, table)
        self.unfollowed[at] = table, True
        return True

    def bitmap_on_data(self):
        parts = [part for _, _, parts in self.image.bitmaps for part in parts]
        part, offset = self.one(parts), self.area(self.rng.choice(("active data", "a snapshot's data", "a bitmap")))
        if part is None or offset is None or part[1] == offset:
            return False
        self.image.put_number(part[0], offset)
        return True

    # Counts

    def used(self):
        used = [cluster for name, clusters in self.areas.items() if name != "a free cluster"
                for cluster in clusters if self.image.count(cluster)]
        return self.rng.choice(used)

    def one_less(self):
        cluster = self.used()
        self.image.set_count(cluster, self.image.count(cluster) - 1)
        return True

    def none_counted(self):
        for _ in range(self.rng.randint(1, 3)):
            self.image.set_count(self.used(), 0)
        return True

    def more_counted(self):
        cluster, most = self.used(), (1 << self.image.count_bits) - 1
        count = self.image.count(cluster)
        if count == most:
            return False
        self.image.set_count(cluster, self.rng.choice((count + 1, min(count + 3, most), most)))
        self.raised_count = True
        return True

    def block_on(self, name):
        """A refcount block lies on something else. Counts are read from that if it is no table."""
        entry, offset = self.one(self.image.blocks), self.area(name)
        if offset in (None, 0, entry[1]):
            return False
        self.image.put_number(entry[0], offset)
        self.unfollowed.pop(entry[0], None)
        if name == "an L2 table":
            self.unfollowed[entry[0]] = offset, True
        return True

    def no_block(self):
        entry = self.one(self.image.blocks)
        self.image.put_number(entry[0], 0)
        self.unfollowed.pop(entry[0], None)
        return True

    # Streams

    def streams(self):
        return self.active.streams + [entry for disk in self.image.snapshots for entry in disk.streams]

    def longer(self, area):
        """A stream that goes on, by its entry, where another has the next cluster."""
        taken, ends = set(self.areas[area]), []
        for entry in self.streams():
            start, end = self.image.stream(entry.value)
            border = -(-end // self.image.cluster) * self.image.cluster
            longest = self.image.stream(self.image.packed_entry(start, 1 << 50))[1]
            if border >> self.image.cluster_bits in taken and longest > border:
                ends.append((entry, start, border + 512))
        chosen = self.one(ends)
        if chosen is None:
            return False
        entry, start, end = chosen
        self.image.put_number(entry.at, self.image.packed_entry(start, end))
        self.moved_stream = True
        return True

    def elsewhere(self, area):
        """A stream that begins before the end of the cluster before another's, or in it."""
        entry, there = self.one(self.streams()), self.area(area)
        if entry is None or not there:
            return False
        begin, end = self.image.stream(entry.value)
        start = there + self.rng.choice((-512, -1, 0, 5, 256))
        self.image.put_number(entry.at, self.image.packed_entry(start, start + end - begin))
        self.moved_stream = True
        return True

    # Bit 63

    def alone(self):
        """An entry says that nobody else has its cluster."""
        return self.say_alone([(entry.at, entry.value, entry.host) for entry in self.active.data])

    def table_alone(self):
        """The same of an L2 table."""
        return self.say_alone([(at, table, table) for at, table in self.active.tables])

    def say_alone(self, entries):
        entry = self.one([(at, value) for at, value, host in entries if not value & COPIED
                          and self.image.count(host >> self.image.cluster_bits) > 1])
        if entry is None:
            return False
        self.image.put_number(entry[0], entry[1] | COPIED)
        return True

    def not_alone(self):
        """An entry does not say that it has its cluster to itself."""
        own = [entry for entry in self.active.data if entry.value & COPIED]
        entry = self.one(own)
        if entry is None:
            return False
        self.image.put_number(entry.at, entry.value & ~COPIED)
        return True


ON_AREAS = ("the L1 table", "an L2 table", "a snapshot's L1 table", "a snapshot's L2 table", "the snapshot table",
            "the bitmap directory", "a bitmap's table", "a bitmap", "the refcount table", "a refcount block",
            "active data", "a snapshot's data")
OF_SNAPSHOTS = ("active data", "the L1 table", "an L2 table", "a snapshot's L2 table", "a refcount block", "a bitmap")
OF_STREAMS = ("active data", "a snapshot's data", "a snapshot's L2 table", "an L2 table", "a refcount block")


def on(places, kind, word, end):
    """A kind of damage for each place that there is for it."""
    return {f"{word} {place}": (lambda damage, place=place: kind(damage, place), end) for place in places}


# Few images have room for these.
RARE = ("a bitmap on data", "two bitmaps with one table", "a snapshot's L1 entry on a snapshot's table",
        "bit 63 where two have a table", "an L1 entry behind the disk's end on another's table")

# Each kind of damage, and what it must come to in a run at least once: that qemu-img tells of an "overlap", of a count
# that is too "low", of what says wrongly that it is "alone", or that it finds nothing ("clean").
KINDS = {
    "a snapshot's entry at its place": (Damage.snapshot_entry_there, "overlap"),
    "a snapshot's entry elsewhere": (Damage.snapshot_entry_elsewhere, "overlap"),
    **on(ON_AREAS, Damage.on_area, "an entry on", "overlap"),
    **on(ON_AREAS, Damage.behind_the_end, "an entry behind the disk's end on", "overlap"),
    "an entry on a free cluster": (lambda damage: damage.on_area("a free cluster"), "low"),
    "an entry on a leaked cluster": (Damage.on_leaked, "clean"),
    "a cluster that has moved": (Damage.moved, "clean"),
    **on(OF_SNAPSHOTS, Damage.snapshot_on_area, "a snapshot's entry on", "overlap"),
    **on(("active data", "an L2 table"), Damage.counted_twice, "a snapshot's entry, counted, on", "alone"),
    "a snapshot's L1 entry on an active table": (Damage.snapshot_on_active_table, "overlap"),
    "a snapshot's L1 entry on a snapshot's table": (Damage.snapshot_on_snapshot_table, "overlap"),
    "an active L1 entry on a snapshot's table": (Damage.active_on_snapshot_table, "overlap"),
    "an active L1 entry on an active table": (Damage.active_on_active_table, "overlap"),
    "an L1 entry behind the disk's end on another's table": (Damage.spare_on_table, "overlap"),
    **on(("the L1 table", "a refcount block", "active data"), Damage.no_table, "a snapshot's L1 entry on", "overlap"),
    "a snapshot's L1 entry that is not aligned": (Damage.unaligned_table, "overlap"),
    "two snapshots with one L1 table": (Damage.two_snapshots_one_table, "overlap"),
    "a snapshot with the active L1 table": (Damage.snapshot_on_active_l1, "overlap"),
    "two bitmaps with one table": (Damage.two_bitmaps_one_table, "overlap"),
    "a bitmap on data": (Damage.bitmap_on_data, "overlap"),
    "a count that is one less": (Damage.one_less, "low"),
    "counts that are none": (Damage.none_counted, "low"),
    "a count that is higher": (Damage.more_counted, "clean"),
    "a refcount block that is not there": (Damage.no_block, "low"),
    **on(("active data", "an L2 table", "a free cluster"), Damage.block_on, "a refcount block on", "overlap"),
    **on(("active data", "a snapshot's data", "an L2 table"), Damage.longer, "a longer stream into", "overlap"),
    **on(OF_STREAMS, Damage.elsewhere, "a stream elsewhere, into", "overlap"),
    "bit 63 where two have a cluster": (Damage.alone, "alone"),
    "bit 63 where two have a table": (Damage.table_alone, "alone"),
    "no bit 63": (Damage.not_alone, "clean"),
}
