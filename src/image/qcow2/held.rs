//! Clusters that something else than the active disk holds: snapshots' L2 tables, bitmaps, and what tables say of
//! places behind the disk's end. Clusters of data that a snapshot has are not among them: the disk may have them, too.

use super::Qcow2;
use super::besides::Besides;
use super::entry::{self, Entry, OFFSET_MASK, l2_table_offset};
use super::placed::Placed;
use super::slots::Part;
use super::tables::{Window, each_number};
use crate::image::error::{EntryFault, ImageError};
use crate::image::fault::{Fault, Sink};
use crate::image::file::SourceFile;
use crate::range::ByteRange;

/// How many clusters that are held may be looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldRoom {
    /// How many are listed at once; for the others the tables are walked again.
    pub(super) listed: usize,
    /// How often that is done.
    pub(super) parts: u32,
}

/// A list of 16 MiB.
pub(super) const HELD_ROOM: HeldRoom = HeldRoom { listed: 2 << 20, parts: 64 };

/// Who holds a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    Snapshot,
    Bitmap,
    SpareTable,
    SpareCluster,
    /// Not the whole of it.
    SpareStream,
}

impl Holder {
    const ALL: [Self; 5] =
        [Self::Snapshot, Self::Bitmap, Self::SpareTable, Self::SpareCluster, Self::SpareStream];

    /// What lies in the cluster.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Snapshot => "a snapshot's L2 table",
            Self::Bitmap => "a bitmap",
            Self::SpareTable => "an L2 table for what is behind the disk's end",
            Self::SpareCluster => "a cluster for what is behind the disk's end",
            Self::SpareStream => "a compressed cluster for what is behind the disk's end",
        }
    }
}

/// Those of a stretch of the file.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// How many may be listed.
    most: usize,
    /// Eight times a cluster's number and which of the holders it is; sorted.
    list: Vec<u64>,
    first: u64,
    end: u64,
    /// The first cluster behind the stretch that is held.
    pub(super) next: Option<u64>,
}

impl Held {
    fn from(first: u64, most: usize) -> Self {
        Self { most, list: Vec::new(), first, end: u64::MAX, next: None }
    }

    fn add(&mut self, cluster: u64, holder: Holder) {
        if cluster < self.first {
            return;
        }
        if cluster >= self.end {
            self.next = Some(self.next.map_or(cluster, |next| next.min(cluster)));
            return;
        }
        self.list.push(cluster << 3 | holder as u64);
        if self.list.len() >= self.most {
            self.list.sort_unstable();
            self.list.dedup();
            if let Some(middle) = self.list.get(self.most / 2) {
                // A cluster has at most five holders.
                self.end = (middle >> 3).max(self.first + 1);
                let len = self.list.partition_point(|held| held >> 3 < self.end);
                self.next = self.list.get(len).map(|held| held >> 3);
                self.list.truncate(len);
            }
        }
    }

    fn sorted(mut self) -> Self {
        self.list.sort_unstable();
        self.list.dedup();
        self
    }

    /// The next ones before a cluster, and from it on.
    pub(super) fn near(&self, cluster: u64) -> [Option<u64>; 2] {
        let next = self.list.partition_point(|held| held >> 3 < cluster);
        [next.checked_sub(1), Some(next)].map(|place| Some(self.list.get(place?)? >> 3))
    }

    /// Who holds a cluster, if anybody does who does not leave such a share of it.
    pub(super) fn holder(&self, cluster: u64, share: Share) -> Option<Holder> {
        let place = self.list.partition_point(|held| held >> 3 < cluster);
        let held = self.list.get(place).filter(|held| **held >> 3 == cluster)?;
        let holder = Holder::ALL[usize::try_from(held & 7).expect("less than 8")];
        (share == Share::Whole || holder != Holder::SpareStream).then_some(holder)
    }
}

/// What of a cluster somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    Whole,
    /// A stream's part: other streams may have others.
    Part,
}

impl Qcow2 {
    /// Finds those from a cluster on. Of wrong entries is told when the first cluster is 0.
    pub(super) fn held_from(
        &self,
        file: &SourceFile,
        besides: &Besides,
        first: u64,
        sink: &mut Sink<'_>,
    ) -> Result<Held, ImageError> {
        let mut held = Held::from(first, besides.room().listed);
        let bits = self.header.cluster_bits;
        let mut tell = |error: ImageError| if first == 0 { sink(Fault::told(error, None)) } else { Ok(()) };
        let tables = [(besides.snapshot_l1(), Holder::Snapshot), (besides.bitmap_tables(), Holder::Bitmap)];
        for (ranges, holder) in tables {
            for range in ranges {
                each_number(file, *range, |value, at| {
                    let at = ByteRange::new(at, 8);
                    let place = match holder {
                        Holder::Bitmap => self.check_bitmap(file, besides, value, at),
                        _ => self.check_other_l2(file, besides, (value, at), holder),
                    };
                    match place {
                        Ok(0) => {}
                        Ok(offset) => held.add(offset >> bits, holder),
                        Err(error) => tell(error)?,
                    }
                    Ok(())
                })?;
            }
        }
        each_number(file, self.spare_l1(), |value, at| {
            match self.check_other_l2(file, besides, (value, ByteRange::new(at, 8)), Holder::SpareTable) {
                Ok(_) => Ok(()),
                Err(error) => tell(error),
            }
        })?;
        self.add_spare(file, &mut held)?;
        Ok(held.sorted())
    }

    /// Checks an L1 entry that the disk does not need, of a snapshot's table or behind the disk's end.
    pub(super) fn check_other_l2(
        &self,
        file: &SourceFile,
        besides: &Besides,
        (value, at): (u64, ByteRange),
        holder: Holder,
    ) -> Result<u64, ImageError> {
        let table = if holder == Holder::Snapshot { "snapshot's L1" } else { "L1" };
        let bad = |why| bad_entry(file, table, (at, value), why);
        let offset = l2_table_offset(value, self.header.cluster_bits).map_err(bad)?;
        if offset == 0 {
            return Ok(0);
        }
        let table = ByteRange::new(offset, self.header.cluster_size());
        let placed = Placed::by(at, holder.what(), table);
        if table.end() > file.len() {
            return Err(placed.beyond_end(file));
        }
        // The active disk may have the same L2 table.
        self.tables.check_apart_from_roots(file, &self.header, placed)?;
        besides.check_apart(file, self.header.cluster_size(), placed)?;
        Ok(offset)
    }

    /// Checks an entry of a bitmap's table.
    pub(super) fn check_bitmap(
        &self,
        file: &SourceFile,
        besides: &Besides,
        value: u64,
        at: ByteRange,
    ) -> Result<u64, ImageError> {
        let bad = |why| bad_entry(file, "bitmap table", (at, value), why);
        let offset = value & OFFSET_MASK;
        // Without an offset the lowest bit says which all of its bits are.
        if value & !(OFFSET_MASK | u64::from(offset == 0)) != 0 {
            return Err(bad(EntryFault::ReservedBits));
        }
        if !offset.is_multiple_of(self.header.cluster_size()) {
            return Err(bad(EntryFault::Misaligned));
        }
        if offset == 0 {
            return Ok(0);
        }
        let placed =
            Placed::by(at, Holder::Bitmap.what(), ByteRange::new(offset, self.header.cluster_size()));
        // The last cluster of a file may be shorter.
        if offset >= file.len() {
            return Err(placed.beyond_end(file));
        }
        self.tables.check_apart(file, &self.header, placed)?;
        besides.check_apart(file, self.header.cluster_size(), placed)?;
        Ok(offset)
    }

    /// What tables say of places behind the disk's end. It may be anything, as long as nobody else has it.
    fn add_spare(&self, file: &SourceFile, held: &mut Held) -> Result<(), ImageError> {
        let header = &self.header;
        let (cluster_size, bits) = (header.cluster_size(), header.cluster_bits);
        let mut tables = self.spare_tables(file)?;
        let entries = cluster_size >> header.l2_entry_bits();
        let mut window = Window::default();
        let mut add_part = |part: Part<'_>, held: &mut Held| {
            self.each_entry(file, (&mut window, part), |entry| {
                // What cannot be read is told where it is needed.
                let Ok(entry) = entry else { return Ok(()) };
                let Ok(said) = Entry::decode(header, entry.value, entry.bitmap) else { return Ok(()) };
                let (offset, holder) = match said {
                    Entry::Compressed { .. } => {
                        let key = entry::stream_key(entry.value, bits);
                        (entry::stream_of_key(key, bits).start, Holder::SpareStream)
                    }
                    _ => (entry.value & OFFSET_MASK, Holder::SpareCluster),
                };
                if offset != 0 && offset < file.len() {
                    held.add(offset >> bits, holder);
                }
                Ok(())
            })
        };
        let used = (header.virtual_size % (1 << header.l2_span_bits())).div_ceil(cluster_size);
        if let Some(last) = self.tables.l1.last().filter(|table| **table != 0 && used != 0) {
            add_part(Part { table: *last, first: used, end: entries, following: &[] }, held)?;
        }
        tables.sort_unstable();
        tables.dedup();
        for table in tables {
            held.add(table >> bits, Holder::SpareTable);
            add_part(Part { table, first: 0, end: entries, following: &[] }, held)?;
        }
        Ok(())
    }

    /// The L1 entries that the disk does not need.
    fn spare_l1(&self) -> ByteRange {
        let l1 = self.header.l1_table;
        let needed = l1.start() + self.header.l1_entries_needed() * 8;
        ByteRange::between(needed.min(l1.end()), l1.end())
    }

    /// The L2 tables of L1 entries that the disk does not need, and that no entry has which it needs.
    fn spare_tables(&self, file: &SourceFile) -> Result<Vec<u64>, ImageError> {
        let header = &self.header;
        let mut tables = Vec::new();
        each_number(file, self.spare_l1(), |value, _| {
            if let Ok(table) = l2_table_offset(value, header.cluster_bits)
                && table != 0
                && table.saturating_add(header.cluster_size()) <= file.len()
                && !self.tables.has_l2_table(table)
            {
                tables.push(table);
            }
            Ok(())
        })?;
        Ok(tables)
    }
}

/// An entry of a table that nobody needs who reads the disk.
pub(super) fn bad_entry(
    file: &SourceFile,
    table: &'static str,
    (range, value): (ByteRange, u64),
    why: EntryFault,
) -> ImageError {
    ImageError::BadEntry { path: file.path().into(), table, range, value, why }
}
