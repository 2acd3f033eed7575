//! How often the image uses each cluster of its file, beside the reference count that the cluster has: whoever writes
//! to an image takes a cluster for free, or for one user's alone, because its count says so.
//!
//! Counted is what `qemu-img check` counts, section "Host cluster management": a cluster that several L1 tables reach
//! through one L2 table is used by each of them, and an entry uses what it points to, whatever else is wrong with it.

use super::Qcow2;
use super::besides::Besides;
use super::contradictions::{Contradictions, ToldClusters};
use super::entry::{self, COMPRESSED, COPIED, Entry, OFFSET_MASK};
use super::held::{Holder, bad_entry};
use super::refcounts::Refcounts;
use super::slots::{self, Part};
use super::tables::{Window, each_number};
use super::uses::{Counted, Users, Uses, UsesRoom};
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
    /// What may be done in any file, and what more for each byte that is stored, in the units of `Work`.
    work: (u64, u64),
}

/// 32 MiB for uses, and 8 MiB more while a list of them becomes cells; 8 MiB for tables.
///
/// So much work is enough, as these units add up, for each image of 6 TiB in clusters of 4 KiB, or of 100 TiB in those
/// of 64 KiB, of which nothing but the tables is stored, and for far more where the clusters are.
const BOUNDS: Bounds = Bounds {
    uses: UsesRoom { clusters: 16 << 20, listed: 512 << 10 },
    tables: UsesRoom { clusters: 0, listed: 512 << 10 },
    work: (256 << 20, 128),
};

/// How many tables are asked for at once.
const AT_ONCE: usize = 4096;

/// What is still to be done at most, in units of about a nanosecond: a small file may describe endless work.
pub(super) struct Work(u64);

impl Work {
    const OF_L1_ENTRY: u64 = 64;
    const OF_TABLE: u64 = 256;
    const OF_ENTRY: u64 = 8;
    const OF_CLUSTER: u64 = 16;

    fn of(bounds: Bounds, file: &SourceFile) -> Self {
        let (in_any, of_byte) = bounds.work;
        Self(in_any.saturating_add(file.stored_len().saturating_mul(of_byte)))
    }

    /// Fails where too much was done.
    #[inline]
    fn take(&mut self, cost: u64, file: &SourceFile) -> Result<(), ImageError> {
        match self.0.checked_sub(cost) {
            Some(left) => self.0 = left,
            None => return Err(ImageError::CheckIncomplete { path: file.path().into() }),
        }
        Ok(())
    }
}

/// An L2 table, by an L1 entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct L2Table {
    pub(super) offset: u64,
    /// The L1 entry.
    pub(super) at: ByteRange,
    /// Whether that is the disk's, and says that nobody else uses the table.
    pub(super) said_alone: bool,
}

/// The same with all that use it, and by what it is read.
pub(super) struct TableOnce<'w> {
    pub(super) offset: u64,
    pub(super) users: Users,
    window: &'w mut Window,
    /// Those that come next.
    following: &'w [u64],
    work: &'w mut Work,
}

/// What an L2 entry uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryUse {
    /// The first and the last cluster.
    pub(super) clusters: (u64, u64),
    pub(super) said_alone: bool,
}

/// What is left to be done, and what is known.
pub(super) struct Search {
    bounds: Bounds,
    pub(super) work: Work,
    /// All L2 tables, once they are listed and have room in one list.
    known: Option<Listed>,
}

/// L2 tables of a stretch of the file, and where the next one begins.
struct Listed {
    tables: Counted,
    next: Option<u64>,
}

/// An image and what lies in it, whose uses are counted.
#[derive(Clone, Copy)]
pub(super) struct Recount<'a> {
    pub(super) qcow2: &'a Qcow2,
    pub(super) file: &'a SourceFile,
    pub(super) besides: &'a Besides,
}

impl Search {
    /// For all that is stored.
    pub(super) fn of_all(file: &SourceFile) -> Self {
        Self::of(BOUNDS, file)
    }

    fn of(bounds: Bounds, file: &SourceFile) -> Self {
        Self { bounds, work: Work::of(bounds, file), known: None }
    }
}

impl Qcow2 {
    /// Tells of clusters that more use than is counted, and of entries of the disk that have a cluster not alone
    /// although they say so, where the counts mean anything; not of those of which the sink has been told.
    ///
    /// It also tells of wrong entries in L2 tables that the disk does not need.
    pub(super) fn recount(
        &self,
        file: &SourceFile,
        besides: &Besides,
        told: &ToldClusters,
        sink: &mut Sink<'_>,
    ) -> Result<(), ImageError> {
        Recount { qcow2: self, file, besides }.tell(&mut Search::of_all(file), told, sink)
    }

    /// Which clusters of the file an entry uses, if it uses any: bytes behind the file's end are nobody's.
    #[inline]
    pub(super) fn used_by(&self, file: &SourceFile, (value, bitmap): (u64, u64)) -> Option<EntryUse> {
        let bits = self.header.cluster_bits;
        let (start, end) = if value & COMPRESSED == 0 {
            let start = value & OFFSET_MASK;
            (start, if start == 0 { 0 } else { start + self.header.cluster_size() })
        } else {
            let stream = entry::stream_of_key(entry::stream_key(value, bits), bits);
            (stream.start, if bitmap == 0 { stream.end } else { 0 })
        };
        let is_used = start < end && start < file.len();
        let last = (end.min(file.len()).max(1) - 1) >> bits;
        is_used.then_some(EntryUse { clusters: (start >> bits, last), said_alone: value & COPIED != 0 })
    }
}

impl Recount<'_> {
    fn tell(self, search: &mut Search, told: &ToldClusters, sink: &mut Sink<'_>) -> Result<(), ImageError> {
        let mut found = Contradictions::default();
        let mut result = self.check_others(search, sink);
        if self.qcow2.header.has_counts && result.is_ok() {
            result = self.count(search, told, &mut found);
            result = result.and(self.name_contradictions(search, found, sink));
        }
        result.or_else(|error| match error {
            ImageError::Io { .. } | ImageError::CheckIncomplete { .. } => sink(Fault::told(error, None)),
            error => Err(error),
        })
    }

    /// Tells of wrong entries in tables that the disk does not need: of the others was told.
    fn check_others(self, search: &mut Search, sink: &mut Sink<'_>) -> Result<(), ImageError> {
        let Self { qcow2, file, .. } = self;
        self.each_table_once(search, |table| {
            if qcow2.tables.has_l2_table(table.offset) {
                return Ok(());
            }
            self.each_use(table, |entry, _| match Entry::decode(&qcow2.header, entry.value, entry.bitmap) {
                Err(why) => sink(Fault::told(bad_entry(file, "L2", (entry.at, entry.value), why), None)),
                Ok(_) => Ok(()),
            })
        })
    }

    fn count(
        self,
        search: &mut Search,
        told: &ToldClusters,
        found: &mut Contradictions,
    ) -> Result<(), ImageError> {
        let Self { qcow2, file, besides } = self;
        let bits = qcow2.header.cluster_bits;
        let mut next = Some(0);
        while let Some(first) = next {
            let mut uses = Uses::of(first, file.len().div_ceil(1 << bits), search.bounds.uses);
            self.count_structures(&mut uses, &mut search.work)?;
            self.each_table_once(search, |table| {
                let TableOnce { offset, users, .. } = table;
                uses.add(offset >> bits, users);
                let is_of_disk = qcow2.tables.has_l2_table(offset);
                self.each_use(table, |_, used| {
                    if let Some(used) = used {
                        let users = Users::new(users.count(), is_of_disk && used.said_alone);
                        (used.clusters.0..=used.clusters.1).for_each(|cluster| uses.add(cluster, users));
                    }
                    Ok(())
                })
            })?;
            let (counted, rest) = uses.finish();
            let mut counts = Refcounts::of(qcow2, file, besides.blocks());
            for (cluster, users) in counted.each().filter(|(cluster, _)| !told.has(*cluster, bits)) {
                search.work.take(Work::OF_CLUSTER, file)?;
                if let Some(count) = counts.of_cluster(cluster)? {
                    found.look(cluster, users, count);
                }
            }
            next = rest;
        }
        Ok(())
    }

    /// Counts what is used by the header and by what needs no L2 table.
    fn count_structures(self, uses: &mut Uses, work: &mut Work) -> Result<(), ImageError> {
        let Self { qcow2, file, besides } = self;
        let (header, bits) = (&qcow2.header, qcow2.header.cluster_bits);
        let once = Users::new(1, false);
        uses.add(0, once);
        let roots = [header.l1_table, header.refcount_table];
        let roots = roots.map(|table| (table.start() >> bits, table.end().div_ceil(1 << bits)));
        for (first, end) in roots.into_iter().chain(besides.structures(bits)) {
            for cluster in first.max(uses.stretch().0)..end {
                work.take(Work::OF_CLUSTER, file)?;
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
        work.take(besides.blocks().len() as u64, file)?;
        for range in besides.bitmap_tables() {
            each_number(file, *range, |value, at| {
                work.take(Work::OF_L1_ENTRY, file)?;
                // What is wrong with it has been told.
                if let Ok(offset @ 1..) = qcow2.check_bitmap(file, besides, value, ByteRange::new(at, 8)) {
                    uses.add(offset >> bits, once);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Gives every L2 table that the disk or a snapshot has, as often as it is used.
    pub(super) fn each_table(
        self,
        work: &mut Work,
        mut visit: impl FnMut(L2Table),
    ) -> Result<(), ImageError> {
        let Self { qcow2, file, besides } = self;
        let l1 = qcow2.header.l1_table;
        let others = besides.snapshot_l1();
        // What is wrong with it has been told.
        let check = |entry, holder| qcow2.check_other_l2(file, besides, entry, holder);
        let len = others.iter().fold(l1.len(), |len, range| len.saturating_add(range.len()));
        work.take(len.min(file.stored_len()) + Work::OF_TABLE * (1 + others.len() as u64), file)?;
        each_number(file, l1, |value, at| {
            work.take(Work::OF_L1_ENTRY, file)?;
            let index = usize::try_from((at - l1.start()) / 8).expect("an L1 table is at most 32 MiB");
            let entry = ByteRange::new(at, 8);
            let offset = match qcow2.tables.l1.get(index) {
                Some(table) => *table,
                None => check((value, entry), Holder::SpareTable).unwrap_or(0),
            };
            if offset != 0 {
                visit(L2Table { offset, at: entry, said_alone: value & COPIED != 0 });
            }
            Ok(())
        })?;
        for range in others {
            each_number(file, *range, |value, at| {
                work.take(Work::OF_L1_ENTRY, file)?;
                let entry = ByteRange::new(at, 8);
                if let Ok(offset @ 1..) = check((value, entry), Holder::Snapshot) {
                    visit(L2Table { offset, at: entry, said_alone: false });
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Lists those that lie from a cluster on, as far as there is room.
    fn list_tables(self, bounds: Bounds, first: u64, work: &mut Work) -> Result<Listed, ImageError> {
        let bits = self.qcow2.header.cluster_bits;
        let mut tables = Uses::of(first, u64::MAX, bounds.tables);
        self.each_table(work, |table| tables.add(table.offset >> bits, Users::new(1, table.said_alone)))?;
        let (tables, next) = tables.finish();
        Ok(Listed { tables, next })
    }

    /// Gives every such table once, in order of the file.
    ///
    /// Where all have room in a list, it is known from then on.
    pub(super) fn each_table_once(
        self,
        search: &mut Search,
        mut visit: impl FnMut(TableOnce<'_>) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let bits = self.qcow2.header.cluster_bits;
        let mut window = Window::default();
        let mut next = Some(0);
        while let Some(first) = next {
            let listed = match search.known.take() {
                Some(listed) => listed,
                None => self.list_tables(search.bounds, first, &mut search.work)?,
            };
            let mut all = listed.tables.each().map(|(cluster, users)| (cluster << bits, users));
            loop {
                let (offsets, users): (Vec<u64>, Vec<Users>) = all.by_ref().take(AT_ONCE).unzip();
                if offsets.is_empty() {
                    break;
                }
                for (index, (offset, users)) in offsets.iter().zip(users).enumerate() {
                    let following = &offsets[index + 1..];
                    let (window, work) = (&mut window, &mut search.work);
                    visit(TableOnce { offset: *offset, users, window, following, work })?;
                }
            }
            drop(all);
            next = listed.next;
            if first == 0 && next.is_none() {
                search.known = Some(listed);
            }
        }
        Ok(())
    }

    /// Gives each entry of a table that is not zero, and what it uses of the file.
    pub(super) fn each_use(
        self,
        table: TableOnce<'_>,
        mut visit: impl FnMut(slots::Entry, Option<EntryUse>) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let Self { qcow2, file, .. } = self;
        let TableOnce { offset, window, following, work, .. } = table;
        let cluster_size = qcow2.header.cluster_size();
        work.take(Work::OF_TABLE + cluster_size / 16, file)?;
        let end = cluster_size >> qcow2.header.l2_entry_bits();
        let part = Part { table: offset, first: 0, end, following };
        qcow2.each_entry(file, (window, part), |entry| {
            work.take(Work::OF_ENTRY, file)?;
            let entry = entry.map_err(|unreadable| match qcow2.tables.has_l2_table(offset) {
                // Of what the disk needs was told.
                true => ImageError::CheckIncomplete { path: file.path().into() },
                false => unreadable.error,
            })?;
            visit(entry, qcow2.used_by(file, (entry.value, entry.bitmap)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fault::refuse;
    use crate::image::qcow2::Budget;
    use crate::image::tests::Folder;

    /// What is told of an image whose clusters lie apart, and are not counted.
    fn told(bounds: Bounds) -> Vec<(&'static str, u64)> {
        let folder = Folder::new();
        let path = folder.with_clusters_apart();
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
        Recount { qcow2, file: source, besides: &besides }
            .tell(&mut Search::of(bounds, source), &ToldClusters::default(), &mut sink)
            .unwrap();
        told
    }

    #[test]
    fn what_lies_apart_in_a_long_file_is_counted_in_a_bounded_number_of_stretches() {
        let places = (0..4).map(|table| (1 << 30) + table * 512);
        let places = places.chain((0..256).map(|number| (2 + number) << 31));
        let expected: Vec<_> = places.map(|place| ("refcount_too_low", place)).collect();
        assert_eq!(told(BOUNDS), expected);
        let few = UsesRoom { clusters: 64, listed: 16 };
        let two = UsesRoom { clusters: 0, listed: 2 };
        assert_eq!(told(Bounds { uses: few, tables: two, ..BOUNDS }), expected);
        // It ends somewhere, and says so.
        let mut lens = Vec::new();
        for work in (0..).map(|step| 4096 << step) {
            let told = told(Bounds { uses: few, tables: two, work: (work, 0) });
            let Some((("check_incomplete", 0), told)) = told.split_last() else {
                assert_eq!(told, expected);
                break;
            };
            assert!(told.iter().all(|fault| expected.contains(fault)), "{told:?}");
            lens.push(told.len());
        }
        assert!(lens[0] == 0 && lens.iter().any(|len| *len > 64), "what was counted is told: {lens:?}");
    }
}
