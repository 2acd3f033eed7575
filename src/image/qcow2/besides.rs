//! What reading needs nothing of: reference counts, snapshots, bitmaps, and the places of clusters that read as zeroes.
//!
//! Faults there forbid nobody to read the image; they are told to who wants to know everything.

use super::Qcow2;
use super::entry::OFFSET_MASK;
use super::held::{HELD_ROOM, Held, HeldRoom, Share, bad_entry};
use super::placed::Placed;
use super::slots::Slot;
use super::snapshots::Table;
use super::tables::each_number;
use super::walk::{Inspector, Owned};
use crate::image::error::{EntryFault, ImageError};
use crate::image::fault::{Fault, Sink};
use crate::image::file::SourceFile;
use crate::range::{ByteRange, RangeSet};

/// Where the structures lie that reading needs nothing of.
pub(super) struct Besides {
    room: HeldRoom,
    /// The offsets of all refcount blocks, sorted.
    blocks: Vec<u64>,
    /// What is longer, in whole clusters, sorted and apart.
    areas: Vec<(ByteRange, &'static str)>,
    snapshot_l1: RangeSet,
    bitmap_tables: RangeSet,
    held: Held,
}

impl Qcow2 {
    /// Finds them, and tells what is wrong with them.
    ///
    /// What lies on something else is not followed: it may say anything.
    pub(super) fn read_besides(&self, file: &SourceFile, sink: &mut Sink<'_>) -> Result<Besides, ImageError> {
        self.read_besides_in(HELD_ROOM, file, sink)
    }

    /// The same in so much memory.
    fn read_besides_in(
        &self,
        room: HeldRoom,
        file: &SourceFile,
        sink: &mut Sink<'_>,
    ) -> Result<Besides, ImageError> {
        let mut besides = Besides::of(room);
        let l1_end = self.header.l1_table.end();
        let l1_rest = ByteRange::between(l1_end, l1_end.next_multiple_of(self.header.cluster_size()));
        let mut areas = vec![Placed::alone("the cluster in which the L1 table ends", l1_rest)];
        let snapshots = Placed::alone("the snapshot table", self.header.snapshot_table);
        if !snapshots.range.is_empty() && self.is_area((file, "header"), snapshots, sink)? {
            let (range, tables) = self.read_snapshots(file, sink)?;
            areas.push(self.in_clusters(Placed { range, ..snapshots }));
            for Table { range, entry } in tables {
                let table = Placed::by(entry, "a snapshot's L1 table", range);
                if self.is_area((file, "snapshot table"), table, sink)? {
                    areas.push(self.in_clusters(table));
                    besides.snapshot_l1.insert(range);
                }
            }
        }
        if let Some(Table { range, entry }) = self.bitmap_directory(file)? {
            let directory = Placed::by(entry, "the bitmap directory", range);
            if self.is_area((file, "bitmaps extension"), directory, sink)? {
                areas.push(self.in_clusters(directory));
                for Table { range, entry } in self.bitmap_tables(file, range)? {
                    let table = Placed::by(entry, "a bitmap's table", range);
                    if self.is_area((file, "bitmap directory"), table, sink)? {
                        areas.push(self.in_clusters(table));
                        besides.bitmap_tables.insert(range);
                    }
                }
            }
        }
        besides.snapshot_l1.merge();
        besides.bitmap_tables.merge();
        besides.areas = apart(file, areas, sink)?;
        besides.blocks = self.read_blocks(file, &besides, sink)?;
        besides.held = self.held_from(file, &besides, 0, sink)?;
        Ok(besides)
    }

    /// Whether a table is where one may be; the sink is told why not. `of` is in what it is said to be there.
    fn is_area(
        &self,
        (file, of): (&SourceFile, &'static str),
        placed: Placed,
        sink: &mut Sink<'_>,
    ) -> Result<bool, ImageError> {
        let start = placed.range.start();
        let fault = match placed.entry {
            Some(entry) if !start.is_multiple_of(self.header.cluster_size()) => {
                Err(bad_entry(file, of, (entry, start), EntryFault::Misaligned))
            }
            _ if placed.range.end() > file.len() => Err(placed.beyond_end(file)),
            _ => self.tables.check_apart(file, &self.header, placed),
        };
        match fault {
            Ok(()) => Ok(true),
            Err(error) => sink(Fault::told(error, None)).map(|()| false),
        }
    }

    /// The same, with the rest of its last cluster.
    fn in_clusters(&self, placed: Placed) -> Placed {
        let end = placed.range.end().next_multiple_of(self.header.cluster_size());
        Placed { range: ByteRange::between(placed.range.start(), end), ..placed }
    }

    /// The offsets of all refcount blocks, sorted; the sink is told what is wrong with the refcount table's entries.
    fn read_blocks(
        &self,
        file: &SourceFile,
        besides: &Besides,
        sink: &mut Sink<'_>,
    ) -> Result<Vec<u64>, ImageError> {
        let mut sound = Vec::new();
        each_number(file, self.header.refcount_table, |value, at| {
            match self.check_block(file, besides, value, ByteRange::new(at, 8)) {
                Ok(()) => sound.push((value, at)),
                Err(error) => sink(Fault::told(error, None))?,
            }
            Ok(())
        })?;
        sound.sort_unstable();
        for pair in sound.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            let ((_, other), (value, at)) = (pair[0], pair[1]);
            let why = EntryFault::SharedTable { other };
            let error = bad_entry(file, "refcount table", (ByteRange::new(at, 8), value), why);
            sink(Fault::told(error, None))?;
        }
        let mut blocks: Vec<u64> = sound.into_iter().map(|(block, _)| block).collect();
        blocks.shrink_to_fit();
        Ok(blocks)
    }

    /// Checks an entry of the refcount table.
    fn check_block(
        &self,
        file: &SourceFile,
        besides: &Besides,
        value: u64,
        at: ByteRange,
    ) -> Result<(), ImageError> {
        let bad = |why| Err(bad_entry(file, "refcount table", (at, value), why));
        if value & 0x1ff != 0 {
            return bad(EntryFault::ReservedBits);
        }
        if !value.is_multiple_of(self.header.cluster_size()) {
            return bad(EntryFault::Misaligned);
        }
        let len = self.header.cluster_size().min(u64::MAX - value);
        let block = Placed::by(at, "a refcount block", ByteRange::new(value, len));
        // The last cluster of a file may be shorter.
        if value >= file.len() {
            return Err(block.beyond_end(file));
        }
        self.tables.check_apart(file, &self.header, block)?;
        besides.check_apart(file, self.header.cluster_size(), block)
    }

    /// Tells of places that are held by those that were not listed at first.
    pub(super) fn walk_held(
        &self,
        file: &SourceFile,
        besides: &mut Besides,
        sink: &mut Sink<'_>,
    ) -> Result<(), ImageError> {
        for _ in 1..besides.room.parts {
            let Some(first) = besides.held.next else { break };
            besides.held = self.held_from(file, besides, first, sink)?;
            let mut inspector = Inspector::of(self, file);
            self.each_slot(file, |slot| {
                let Ok(slot) = slot else { return Ok(()) };
                let Ok(owned) = inspector.look(slot) else { return Ok(()) };
                let Some((placed, share)) = self.placed(file, slot, owned) else { return Ok(()) };
                let apart = besides.check_held(file, self.header.cluster_bits, (placed, share));
                apart.or_else(|error| sink(Fault::told(error, Some(slot.guest))))
            })?;
        }
        if std::mem::take(&mut besides.held).next.is_some() {
            sink(Fault::told(ImageError::CheckIncomplete { path: file.path().into() }, None))?;
        }
        Ok(())
    }

    /// What of the file an entry is sure to have.
    fn placed(&self, file: &SourceFile, slot: Slot, owned: Owned) -> Option<(Placed, Share)> {
        let range = self.bytes_of(file, owned)?;
        Some(match owned {
            Owned::Stream { .. } => {
                let first = ByteRange::new(range.start(), 1);
                (Placed::by(slot.at, "a compressed cluster", first), Share::Part)
            }
            _ => (Placed::by(slot.at, "a cluster", range), Share::Whole),
        })
    }
}

/// Looks at one entry after the other for what reading needs nothing of.
pub(super) struct Beside<'a> {
    qcow2: &'a Qcow2,
    file: &'a SourceFile,
    besides: &'a Besides,
    /// Bytes of the file in which nothing of that lies; most entries point where the one before them did.
    free: ByteRange,
}

impl<'a> Beside<'a> {
    pub(super) fn of(qcow2: &'a Qcow2, file: &'a SourceFile, besides: &'a Besides) -> Self {
        Self { qcow2, file, besides, free: ByteRange::new(0, 0) }
    }

    /// Tells where an entry's place lies on what reading needs nothing of, and what is wrong with a place that is not
    /// read.
    pub(super) fn look(&mut self, slot: Slot, owned: Owned, sink: &mut Sink<'_>) -> Result<(), ImageError> {
        let (qcow2, file) = (self.qcow2, self.file);
        let Some((placed, share)) = qcow2.placed(file, slot, owned) else {
            let host_offset = slot.value & OFFSET_MASK;
            // Of compressed clusters nothing is left to be said.
            if host_offset >= file.len() {
                let what = "the place of a cluster that reads as zeroes";
                let range = ByteRange::new(host_offset, qcow2.header.cluster_size());
                let error = Placed::by(slot.at, what, range).beyond_end(file);
                return sink(Fault::told(error, Some(slot.guest)));
            }
            return Ok(());
        };
        if self.free.start() <= placed.range.start() && placed.range.end() <= self.free.end() {
            return Ok(());
        }
        // Data has been checked against the tables.
        let on_tables = match share {
            Share::Whole => qcow2.tables.check_apart(file, &qcow2.header, placed),
            Share::Part => Ok(()),
        };
        let (cluster_size, bits) = (qcow2.header.cluster_size(), qcow2.header.cluster_bits);
        let apart = on_tables
            .and_then(|()| self.besides.check_apart(file, cluster_size, placed))
            .and_then(|()| self.besides.check_held(file, bits, (placed, share)));
        if let Err(error) = apart {
            return sink(Fault::told(error, Some(slot.guest)));
        }
        let start = placed.range.start();
        let around = qcow2.tables.free_around(&qcow2.header, start);
        self.free = self.besides.free_around(qcow2.header.cluster_bits, around, start);
        Ok(())
    }
}

impl Besides {
    /// Nothing yet.
    fn of(room: HeldRoom) -> Self {
        let (blocks, areas, held) = (Vec::new(), Vec::new(), Held::default());
        Self {
            room,
            blocks,
            areas,
            snapshot_l1: RangeSet::default(),
            bitmap_tables: RangeSet::default(),
            held,
        }
    }

    /// How many clusters that are held may be looked for.
    pub(super) fn room(&self) -> HeldRoom {
        self.room
    }

    /// Where snapshots' L1 tables are.
    pub(super) fn snapshot_l1(&self) -> &[ByteRange] {
        self.snapshot_l1.ranges()
    }

    /// The offsets of all refcount blocks, sorted.
    pub(super) fn blocks(&self) -> &[u64] {
        &self.blocks
    }

    /// The first cluster of each table that only snapshots and bitmaps need, and the first behind it.
    pub(super) fn structures(&self, cluster_bits: u32) -> impl Iterator<Item = (u64, u64)> {
        let areas = self.areas.iter().map(|(area, _)| *area);
        // What else is in the cluster in which the L1 table ends begins within it.
        let whole = areas.filter(move |area| area.start().is_multiple_of(1 << cluster_bits));
        whole.map(move |area| (area.start() >> cluster_bits, area.end().div_ceil(1 << cluster_bits)))
    }

    /// Where bitmaps' tables are.
    pub(super) fn bitmap_tables(&self) -> &[ByteRange] {
        self.bitmap_tables.ranges()
    }

    /// Fails if something lies on refcount blocks, or on tables that nobody needs who reads the disk.
    pub(super) fn check_apart(
        &self,
        file: &SourceFile,
        cluster_size: u64,
        placed: Placed,
    ) -> Result<(), ImageError> {
        let range = placed.range;
        let next = self.areas.partition_point(|(area, _)| area.end() <= range.start());
        if let Some((_, what)) = self.areas.get(next).filter(|(area, _)| area.start() < range.end()) {
            return Err(placed.lies_on(file, what));
        }
        let next = self.blocks.partition_point(|block| block.saturating_add(cluster_size) <= range.start());
        match self.blocks.get(next) {
            Some(block) if *block < range.end() => Err(placed.lies_on(file, "a refcount block")),
            _ => Ok(()),
        }
    }

    fn check_held(
        &self,
        file: &SourceFile,
        cluster_bits: u32,
        (placed, share): (Placed, Share),
    ) -> Result<(), ImageError> {
        match self.held.holder(placed.range.start() >> cluster_bits, share) {
            Some(holder) => Err(placed.lies_on(file, holder.what())),
            None => Ok(()),
        }
    }

    /// The part around an offset of some bytes around it in which nothing lies; the offset lies in none.
    fn free_around(&self, cluster_bits: u32, around: ByteRange, offset: u64) -> ByteRange {
        let (mut start, mut end) = (around.start(), around.end());
        let mut keep_off = |others: [Option<ByteRange>; 2]| {
            for other in others.into_iter().flatten() {
                if other.end() <= offset {
                    start = start.max(other.end());
                } else {
                    // A cluster for streams that holds one already is free for streams only.
                    end = end.min(other.start().max(offset));
                }
            }
        };
        let near = |next: usize| [next.checked_sub(1), Some(next)];
        let next = self.areas.partition_point(|(area, _)| area.end() <= offset);
        keep_off(near(next).map(|place| Some(self.areas.get(place?)?.0)));
        let block = |place: Option<usize>| {
            let block = *self.blocks.get(place?)?;
            Some(ByteRange::new(block, (1_u64 << cluster_bits).min(u64::MAX - block)))
        };
        let next = self.blocks.partition_point(|block| block.saturating_add(1 << cluster_bits) <= offset);
        keep_off(near(next).map(block));
        keep_off(self.held.near(offset >> cluster_bits).map(|cluster| {
            cluster.map(|cluster| ByteRange::new(cluster << cluster_bits, 1 << cluster_bits))
        }));
        ByteRange::between(start, end.max(start))
    }
}

/// Puts what lies in the file in order, and tells where it lies on each other; only the first has the place then.
fn apart(
    file: &SourceFile,
    mut areas: Vec<Placed>,
    sink: &mut Sink<'_>,
) -> Result<Vec<(ByteRange, &'static str)>, ImageError> {
    areas.sort_by_key(|area| area.range.start());
    let mut apart: Vec<(ByteRange, &'static str)> = Vec::new();
    for area in areas.into_iter().filter(|area| !area.range.is_empty()) {
        let mut start = area.range.start();
        if let Some((before, what)) = apart.last().filter(|(before, _)| before.end() > start) {
            sink(Fault::told(area.lies_on(file, what), None))?;
            start = before.end();
        }
        if start < area.range.end() {
            apart.push((ByteRange::between(start, area.range.end()), area.what));
        }
    }
    Ok(apart)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::image::fault::refuse;
    use crate::image::qcow2::Budget;
    use crate::image::tests::Folder;

    #[test]
    fn what_no_part_has_room_for_is_told() {
        let folder = Folder::new();
        let path = folder.unpack("v3-512.qcow2", "made.qcow2");
        // One snapshot with an L1 table of 64 entries, each with an L2 table.
        let (snapshots, l1): (u64, u64) = (1 << 20, (1 << 20) + 512);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(2 << 20).unwrap();
        file.write_all_at(&[&l1.to_be_bytes()[..], &64_u32.to_be_bytes()].concat(), snapshots).unwrap();
        for number in 0..64 {
            file.write_all_at(&(l1 + 512 + number * 512).to_be_bytes(), l1 + number * 8).unwrap();
        }
        file.write_all_at(&[&1_u32.to_be_bytes()[..], &snapshots.to_be_bytes()].concat(), 60).unwrap();
        let source = SourceFile::open(&path).unwrap();
        let qcow2 = Qcow2::open(&source, &mut Budget::new(64 << 20), &mut refuse).unwrap();
        for (parts, expected) in [(16, &[][..]), (2, &["check_incomplete"])] {
            let mut told = Vec::new();
            let mut sink = |fault: Fault| {
                told.push(fault.error.code());
                Ok(())
            };
            let room = HeldRoom { listed: 16, parts };
            let mut besides = qcow2.read_besides_in(room, &source, &mut sink).unwrap();
            qcow2.walk_held(&source, &mut besides, &mut sink).unwrap();
            assert_eq!(told, expected, "{parts} parts");
        }
    }
}
