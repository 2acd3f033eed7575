//! How often the image uses each cluster of its file, beside the reference count that the cluster has: whoever writes
//! to an image takes a cluster for free, or for one user's alone, because its count says so.
//!
//! Counted is what section "Host cluster management" counts: a cluster that several L1 tables reach through one L2
//! table is used by each of them.

use super::Qcow2;
use super::besides::Besides;
use super::contradictions::{Contradictions, Told};
use super::entry::{COPIED, Entry, OFFSET_MASK};
use super::refcounts::Refcounts;
use super::slots::{self, Part};
use super::tables::{Window, each_number};
use super::uses::{Users, Uses, UsesRoom};
use crate::image::error::ImageError;
use crate::image::fault::{Fault, Sink};
use crate::image::file::SourceFile;
use crate::range::ByteRange;

/// How much there may be.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    uses: UsesRoom,
    /// Of L2 tables, of which each is walked once for all that use it.
    tables: UsesRoom,
    /// How many stretches may end early because what is used lies far apart.
    scattered: u32,
    /// How many clusters the tables of snapshots and bitmaps may have in the file.
    structures: u64,
}

/// 16 MiB for uses either way, and 8 MiB for tables.
///
/// So many scattered stretches are enough for each file of 16 TiB in clusters of 64 KiB, or of 128 GiB in those of 512
/// bytes; so many clusters of structures for 1,024 snapshots of the longest L1 table in those of 512 bytes.
const BOUNDS: Bounds = Bounds {
    uses: UsesRoom { clusters: 4 << 20, listed: 1 << 20 },
    tables: UsesRoom { clusters: 2 << 20, listed: 512 << 10 },
    scattered: 64,
    structures: 64 << 20,
};

/// How many tables are asked for at once.
const AT_ONCE: usize = 4096;

/// An L2 table, by an L1 entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct L2Table {
    pub(super) offset: u64,
    /// The L1 entry.
    pub(super) at: ByteRange,
    /// Whether that is the disk's, and says that nobody else uses the table.
    pub(super) said_alone: bool,
}

/// A use of clusters by an L2 entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryUse {
    /// The first and the last cluster.
    pub(super) clusters: (u64, u64),
    pub(super) said_alone: bool,
}

impl Qcow2 {
    /// Tells of clusters that more use than is counted, and of entries of the disk that have a cluster not alone
    /// although they say so; not of those of which the sink has been told.
    ///
    /// The counts of an image that was not closed properly mean nothing.
    pub(super) fn recount(
        &self,
        file: &SourceFile,
        besides: &Besides,
        told: &Told,
        sink: &mut Sink<'_>,
    ) -> Result<(), ImageError> {
        if self.header.dirty || self.header.refcount_table.is_empty() {
            return Ok(());
        }
        match self.recount_in(BOUNDS, file, (besides, told), sink) {
            Err(error @ ImageError::Io { .. }) => sink(Fault::told(error, None)),
            other => other,
        }
    }

    fn recount_in(
        &self,
        bounds: Bounds,
        file: &SourceFile,
        (besides, told): (&Besides, &Told),
        sink: &mut Sink<'_>,
    ) -> Result<(), ImageError> {
        let bits = self.header.cluster_bits;
        let incomplete = || Fault::told(ImageError::CheckIncomplete { path: file.path().into() }, None);
        if besides.structures(bits).map(|(first, end)| end - first).sum::<u64>() > bounds.structures {
            return sink(incomplete());
        }
        let mut found = Contradictions::default();
        let (mut next, mut scattered) = (Some(0), 0);
        while let Some(first) = next {
            let mut uses = Uses::of(first, file.len().div_ceil(1 << bits), bounds.uses);
            self.count_structures(file, besides, &mut uses)?;
            self.each_table_once(bounds.tables, file, besides, |table, users, window, following| {
                uses.add(table >> bits, users);
                let is_active = self.tables.has_l2_table(table);
                self.each_use(file, (window, table, following), |_, used| {
                    for cluster in used.clusters.0..=used.clusters.1 {
                        uses.add(cluster, Users::new(users.count(), is_active && used.said_alone));
                    }
                })
            })?;
            let rest = uses.finish();
            let mut counts = Refcounts::of(self, file, besides.blocks());
            for (cluster, users) in uses.each().filter(|(cluster, _)| !told.has(*cluster, bits)) {
                if let Some(count) = counts.of_cluster(cluster)? {
                    found.look(cluster, users, count);
                }
            }
            scattered += u32::from(rest.is_some_and(|rest| rest.is_scattered));
            next = rest.map(|rest| rest.first);
            if scattered == bounds.scattered && next.is_some() {
                sink(incomplete())?;
                break;
            }
        }
        self.name_contradictions(file, besides, (found, bounds.tables), sink)
    }

    /// Counts what is used by the header and by what needs no L2 table.
    fn count_structures(
        &self,
        file: &SourceFile,
        besides: &Besides,
        uses: &mut Uses,
    ) -> Result<(), ImageError> {
        let bits = self.header.cluster_bits;
        let once = Users::new(1, false);
        uses.add(0, once);
        let roots = [self.header.l1_table, self.header.refcount_table];
        let roots = roots.map(|table| (table.start() >> bits, table.end().div_ceil(1 << bits)));
        for (first, end) in roots.into_iter().chain(besides.structures(bits)) {
            for cluster in first.max(uses.stretch().0)..end {
                uses.add(cluster, once);
                // The stretch may end earlier with each.
                if cluster >= uses.stretch().1 {
                    break;
                }
            }
        }
        let mut last = None;
        for block in besides.blocks().iter().filter(|block| last.replace(**block) != Some(**block)) {
            uses.add(block >> bits, once);
        }
        for range in besides.bitmap_tables() {
            each_number(file, *range, |value, at| {
                // What is wrong with it has been told.
                if let Ok(offset @ 1..) = self.check_bitmap(file, besides, value, ByteRange::new(at, 8)) {
                    uses.add(offset >> bits, once);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Gives every L2 table that the disk or a snapshot has, as often as it is used.
    pub(super) fn each_table(
        &self,
        file: &SourceFile,
        besides: &Besides,
        mut visit: impl FnMut(L2Table),
    ) -> Result<(), ImageError> {
        let l1 = self.header.l1_table;
        each_number(file, l1, |value, at| {
            let index = usize::try_from((at - l1.start()) / 8).expect("an L1 table is at most 32 MiB");
            let entry = ByteRange::new(at, 8);
            let offset = match self.tables.l1.get(index) {
                Some(table) => *table,
                // What lies behind the disk's end.
                None => self.check_snapshot_l2(file, besides, value, entry).unwrap_or(0),
            };
            if offset != 0 {
                visit(L2Table { offset, at: entry, said_alone: value & COPIED != 0 });
            }
            Ok(())
        })?;
        for range in besides.snapshot_l1() {
            each_number(file, *range, |value, at| {
                let entry = ByteRange::new(at, 8);
                if let Ok(offset @ 1..) = self.check_snapshot_l2(file, besides, value, entry) {
                    visit(L2Table { offset, at: entry, said_alone: false });
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Gives every such table once, with all that use it, in order of the file, with a window to read it by and the
    /// tables that come next.
    pub(super) fn each_table_once(
        &self,
        room: UsesRoom,
        file: &SourceFile,
        besides: &Besides,
        mut visit: impl FnMut(u64, Users, &mut Window, &[u64]) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let bits = self.header.cluster_bits;
        let mut window = Window::default();
        let mut next = Some(0);
        while let Some(first) = next {
            let mut tables = Uses::of(first, file.len().div_ceil(1 << bits), room);
            self.each_table(file, besides, |table| {
                tables.add(table.offset >> bits, Users::new(1, table.said_alone));
            })?;
            next = tables.finish().map(|rest| rest.first);
            let mut all = tables.each().map(|(cluster, users)| (cluster << bits, users));
            loop {
                let (offsets, users): (Vec<u64>, Vec<Users>) = all.by_ref().take(AT_ONCE).unzip();
                if offsets.is_empty() {
                    break;
                }
                for (index, (table, users)) in offsets.iter().zip(users).enumerate() {
                    visit(*table, users, &mut window, &offsets[index + 1..])?;
                }
            }
        }
        Ok(())
    }

    /// Gives each entry of a table that uses clusters of the file.
    pub(super) fn each_use(
        &self,
        file: &SourceFile,
        (window, table, following): (&mut Window, u64, &[u64]),
        mut visit: impl FnMut(slots::Entry, EntryUse),
    ) -> Result<(), ImageError> {
        let header = &self.header;
        let end = header.cluster_size() >> header.l2_entry_bits();
        self.each_entry(file, (window, Part { table, first: 0, end, following }), |entry| {
            let entry = entry.map_err(|unreadable| unreadable.error)?;
            // What is wrong with it is told where it is needed.
            if let Some(used) = self.used_by(file, (entry.value, entry.bitmap)) {
                visit(entry, used);
            }
            Ok(())
        })
    }

    /// Which clusters of the file an entry uses, if it uses any.
    pub(super) fn used_by(&self, file: &SourceFile, (value, bitmap): (u64, u64)) -> Option<EntryUse> {
        let bits = self.header.cluster_bits;
        let (start, end) = match Entry::decode(&self.header, value, bitmap).ok()? {
            Entry::Compressed { host_offset, host_len } => {
                (host_offset, (host_offset + u64::from(host_len)).min(file.len()))
            }
            _ => (value & OFFSET_MASK, (value & OFFSET_MASK) + 1),
        };
        let is_used = start != 0 && start < end && end <= file.len();
        is_used.then(|| EntryUse {
            clusters: (start >> bits, (end - 1) >> bits),
            said_alone: value & COPIED != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::image::fault::refuse;
    use crate::image::qcow2::Budget;
    use crate::image::tests::Folder;

    /// What is told of an image of clusters of 512 bytes, whose 256 first have a place each 2 GiB behind the other
    /// that is not counted.
    fn told(bounds: Bounds) -> Vec<(&'static str, u64)> {
        let folder = Folder::new();
        let path = folder.unpack("v3-512.qcow2", "made.qcow2");
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut head = [0; 48];
        file.read_exact_at(&mut head, 0).unwrap();
        let l1 = u64::from_be_bytes(head[40..48].try_into().unwrap());
        file.set_len(1 << 40).unwrap();
        for table in 0..4 {
            let at: u64 = (1 << 30) + table * 512;
            file.write_all_at(&at.to_be_bytes(), l1 + table * 8).unwrap();
            for number in 0..64 {
                let place: u64 = (2 + table * 64 + number) << 31;
                file.write_all_at(&place.to_be_bytes(), at + number * 8).unwrap();
            }
        }
        let source = SourceFile::open(&path).unwrap();
        let qcow2 = Qcow2::open(&source, &mut Budget::new(64 << 20), &mut refuse).unwrap();
        recounted(&source, &qcow2, bounds)
    }

    fn recounted(source: &SourceFile, qcow2: &Qcow2, bounds: Bounds) -> Vec<(&'static str, u64)> {
        let mut told = Vec::new();
        let mut sink = |fault: Fault| {
            told.push((fault.error.code(), fault.error.range().map_or(0, ByteRange::start)));
            Ok(())
        };
        let besides = qcow2.read_besides(source, &mut sink).unwrap();
        qcow2.recount_in(bounds, source, (&besides, &Told::default()), &mut sink).unwrap();
        told
    }

    #[test]
    fn what_lies_apart_in_a_long_file_is_counted_in_a_bounded_number_of_stretches() {
        let places = (0..4).map(|table| (1 << 30) + table * 512);
        let places = places.chain((0..256).map(|number| (2 + number) << 31));
        let expected: Vec<_> = places.map(|place| ("refcount_too_low", place)).collect();
        assert_eq!(told(BOUNDS), expected);
        let few = UsesRoom { clusters: 64, listed: 16 };
        let two = UsesRoom { clusters: 1, listed: 2 };
        assert_eq!(told(Bounds { uses: few, tables: two, ..BOUNDS }), expected);
        let fewer = told(Bounds { uses: UsesRoom { clusters: 64, listed: 6 }, ..BOUNDS });
        assert_eq!(fewer.iter().filter(|(code, _)| *code == "check_incomplete").count(), 1, "{fewer:?}");
        assert!(fewer.len() > 64, "what was counted is told: {fewer:?}");
        assert!(fewer[1..].iter().all(|fault| expected.contains(fault)), "{fewer:?}");
    }
    #[test]
    fn structures_that_are_too_long_are_not_counted_and_that_is_told() {
        let folder = Folder::new();
        let source = SourceFile::open(&folder.unpack("snapshots.qcow2", "made.qcow2")).unwrap();
        let qcow2 = Qcow2::open(&source, &mut Budget::new(64 << 20), &mut refuse).unwrap();
        let all = |structures| recounted(&source, &qcow2, Bounds { structures, ..BOUNDS });
        // The snapshot table, and two L1 tables.
        assert_eq!(all(3), []);
        assert_eq!(all(2), [("check_incomplete", 0)]);
    }
}
