//! The L1 table, checked and kept, and a window on the L2 tables.

use std::sync::Mutex;

use super::Budget;
use super::entry;
use super::header::Header;
use super::map::be64;
use super::placed::Placed;
use crate::image::error::{EntryFault, ImageError};
use crate::image::fault::{Fault, Sink};
use crate::image::file::{SourceFile, Stretch};
use crate::range::ByteRange;

/// How many bytes of L2 tables are in memory at once, per layer.
const WINDOW_LEN: u64 = 256 << 10;

/// How much of a table of numbers is read at once.
const PART_LEN: u64 = 64 << 10;

/// What a file's known holes take at most, which counts as tables too.
const STRETCHES_LEN: u64 = 256 << 10;

/// What is kept of a layer's tables.
pub(super) struct Tables {
    /// The offset of each L2 table that the virtual disk needs, 0 where there is none.
    pub(super) l1: Vec<u64>,
    /// The offsets of all L2 tables, sorted.
    l2_offsets: Vec<u64>,
    pub(super) window: Mutex<Window>,
}

/// A run of bytes of L2 tables.
#[derive(Default)]
pub(super) struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Tables {
    /// Reads the L1 table and checks each of its entries that the virtual disk needs.
    ///
    /// What the sink passes over is taken for an entry that says nothing.
    pub(super) fn read(
        file: &SourceFile,
        header: &Header,
        budget: &mut Budget,
        sink: &mut Sink<'_>,
    ) -> Result<Self, ImageError> {
        let needed = header.l1_entries_needed();
        budget.take(WINDOW_LEN + STRETCHES_LEN + needed * 8, file)?;
        let mut l1 = vec![0; usize::try_from(needed).expect("an L1 table is at most 32 MiB")];
        let start = header.l1_table.start();
        each_number(file, ByteRange::new(start, needed * 8), |value, at| {
            let entry = check_l1_entry(file, header, value, at);
            let entry = entry.or_else(|fault| sink(l1_fault(header, fault, at)).map(|()| 0))?;
            l1[usize::try_from((at - start) / 8).expect("an L1 table is at most 32 MiB")] = entry;
            Ok(())
        })?;
        let tables = l1.iter().filter(|offset| **offset != 0).count();
        budget.take(u64::try_from(tables).unwrap_or(u64::MAX).saturating_mul(8), file)?;
        let mut l2_offsets = Vec::with_capacity(tables);
        l2_offsets.extend(l1.iter().filter(|offset| **offset != 0));
        l2_offsets.sort_unstable();
        if l2_offsets.windows(2).any(|pair| pair[0] == pair[1]) {
            let shared: Vec<u64> =
                l2_offsets.windows(2).filter_map(|pair| (pair[0] == pair[1]).then_some(pair[0])).collect();
            refuse_shared(file, header, (&mut l1, &shared), sink)?;
            l2_offsets.dedup();
        }
        Ok(Self { l1, l2_offsets, window: Mutex::default() })
    }

    /// Fails if something lies where the image's own structures are.
    pub(super) fn check_apart(
        &self,
        file: &SourceFile,
        header: &Header,
        placed: Placed,
    ) -> Result<(), ImageError> {
        self.check_apart_from_roots(file, header, placed)?;
        let range = placed.range;
        let next = self.l2_offsets.partition_point(|offset| offset + header.cluster_size() <= range.start());
        match self.l2_offsets.get(next) {
            Some(offset) if *offset < range.end() => Err(placed.lies_on(file, "an L2 table")),
            _ => Ok(()),
        }
    }

    /// The same without the L2 tables.
    pub(super) fn check_apart_from_roots(
        &self,
        file: &SourceFile,
        header: &Header,
        placed: Placed,
    ) -> Result<(), ImageError> {
        if placed.range.start() < header.cluster_size() {
            return Err(placed.lies_on(file, "the header"));
        }
        for (other, table) in
            [("the L1 table", header.l1_table), ("the refcount table", header.refcount_table)]
        {
            if placed.range.intersection(table).is_some() {
                return Err(placed.lies_on(file, other));
            }
        }
        Ok(())
    }

    /// Whether an L2 table that the disk needs begins there.
    pub(super) fn has_l2_table(&self, offset: u64) -> bool {
        self.l2_offsets.binary_search(&offset).is_ok()
    }

    /// The bytes around an offset in which no structure of the image lies; the offset itself lies in none.
    pub(super) fn free_around(&self, header: &Header, offset: u64) -> ByteRange {
        let next = self.l2_offsets.partition_point(|table| *table <= offset);
        let mut start = header.cluster_size();
        let mut end = self.l2_offsets.get(next).copied().unwrap_or(u64::MAX);
        if let Some(before) = next.checked_sub(1) {
            start = start.max(self.l2_offsets[before] + header.cluster_size());
        }
        for table in [header.l1_table, header.refcount_table] {
            if table.end() <= offset {
                start = start.max(table.end());
            } else {
                end = end.min(table.start());
            }
        }
        ByteRange::between(start, end)
    }

    /// Where the first structure of the image begins behind an offset, and what it is.
    pub(super) fn next_behind(&self, header: &Header, offset: u64) -> Option<(u64, &'static str)> {
        let next = self.l2_offsets.partition_point(|table| *table <= offset);
        let l2_table = self.l2_offsets.get(next).map(|table| (*table, "an L2 table"));
        let others = [(header.l1_table, "the L1 table"), (header.refcount_table, "the refcount table")];
        let others = others.into_iter().map(|(table, what)| (table.start(), what));
        others.chain(l2_table).filter(|(table, _)| *table > offset).min()
    }

    /// The L2 tables that come behind that of an L1 entry.
    pub(super) fn following(&self, l1_index: usize) -> &[u64] {
        &self.l1[l1_index + 1..]
    }
}

/// Bytes of a table from an offset on.
pub(super) enum Found<'a> {
    /// They are read; there are more than these.
    Stored(&'a [u8]),
    /// A hole of the file goes to this offset, or to the table's end: it says nothing about any cluster.
    Hole { end: u64 },
}

impl Window {
    /// A table's bytes from `at` on, which may go on into those that lie right behind it and come next.
    pub(super) fn bytes_at(
        &mut self,
        file: &SourceFile,
        (table, following): (ByteRange, &[u64]),
        at: u64,
    ) -> Result<Found<'_>, ImageError> {
        if self.offset_of(at).is_none() {
            let wanted = window_range((table, following), at);
            let (stretch, part) = file.sectors_at(ByteRange::between(at, wanted.end()));
            if stretch == Stretch::Hole {
                return Ok(Found::Hole { end: part.end().min(table.end()) });
            }
            // What lies before may be asked for, too, but is not worth reading where it is a hole.
            let (_, before) = file.sectors_at(wanted);
            let start = if before.contains(at) { wanted.start() } else { at };
            self.load(file, ByteRange::between(start, part.end()))?;
        }
        let offset = self.offset_of(at).expect("the window was loaded around the entry");
        Ok(Found::Stored(&self.bytes[offset..]))
    }

    fn offset_of(&self, at: u64) -> Option<usize> {
        let offset = usize::try_from(at.checked_sub(self.start)?).ok()?;
        (offset < self.bytes.len()).then_some(offset)
    }

    fn load(&mut self, file: &SourceFile, range: ByteRange) -> Result<(), ImageError> {
        self.bytes.resize(usize::try_from(range.len()).expect("a window is at most 256 KiB"), 0);
        self.start = range.start();
        let result = file.read_exact_at(&mut self.bytes, range.start());
        if result.is_err() {
            self.bytes.clear();
        }
        result
    }
}

/// The part of a large table that holds the entry, or the table with those that lie right behind it and come next.
fn window_range((table, following): (ByteRange, &[u64]), at: u64) -> ByteRange {
    if table.len() >= WINDOW_LEN {
        // A refcount table begins at any cluster, and ends within a window.
        let start = at - (at - table.start()) % WINDOW_LEN;
        return ByteRange::between(start, table.end().min(start + WINDOW_LEN));
    }
    let mut end = table.end();
    for next in following {
        if *next != end || end + table.len() > table.start() + WINDOW_LEN {
            break;
        }
        end += table.len();
    }
    ByteRange::between(table.start(), end)
}

/// Gives every number of 8 bytes that is not 0, with its offset; holes of the file are not read.
///
/// The range begins at a sector's border.
pub(super) fn each_number(
    file: &SourceFile,
    range: ByteRange,
    mut visit: impl FnMut(u64, u64) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let mut bytes = vec![0; usize::try_from(range.len().min(PART_LEN)).expect("at most 64 KiB")];
    let mut rest = range;
    while !rest.is_empty() {
        let (stretch, part) = file.sectors_at(rest);
        rest = ByteRange::between(part.end(), range.end());
        if stretch == Stretch::Hole {
            continue;
        }
        for part in part.cut(PART_LEN) {
            let bytes = &mut bytes[..usize::try_from(part.len()).expect("at most 64 KiB")];
            file.read_exact_at(bytes, part.start())?;
            for (value, at) in bytes.chunks_exact(8).map(be64).zip((part.start()..).step_by(8)) {
                if value != 0 {
                    visit(value, at)?;
                }
            }
        }
    }
    Ok(())
}

fn check_l1_entry(file: &SourceFile, header: &Header, value: u64, at: u64) -> Result<u64, ImageError> {
    let offset = entry::l2_table_offset(value, header.cluster_bits).map_err(|why| ImageError::BadEntry {
        path: file.path().into(),
        table: "L1",
        range: ByteRange::new(at, 8),
        value,
        why,
    })?;
    if offset == 0 {
        return Ok(0);
    }
    let table = ByteRange::new(offset, header.cluster_size());
    let placed = Placed::by(ByteRange::new(at, 8), "an L2 table", table);
    if table.end() > file.len() {
        return Err(placed.beyond_end(file));
    }
    for (other, range) in [("the L1 table", header.l1_table), ("the refcount table", header.refcount_table)] {
        if table.intersection(range).is_some() {
            return Err(placed.lies_on(file, other));
        }
    }
    Ok(offset)
}

/// A table that serves twice would let a small image describe endless work: only the first entry keeps it.
fn refuse_shared(
    file: &SourceFile,
    header: &Header,
    (l1, shared): (&mut [u64], &[u64]),
    sink: &mut Sink<'_>,
) -> Result<(), ImageError> {
    let mut first = vec![0; shared.len()];
    for (entry, at) in l1.iter_mut().zip((header.l1_table.start()..).step_by(8)) {
        let place = shared.partition_point(|table| *table < *entry);
        if *entry == 0 || shared.get(place) != Some(entry) {
            continue;
        }
        // No entry is at 0, where the header is.
        let other = first[place];
        if other == 0 {
            first[place] = at;
            continue;
        }
        let fault = ImageError::BadEntry {
            path: file.path().into(),
            table: "L1",
            range: ByteRange::new(at, 8),
            value: *entry,
            why: EntryFault::SharedTable { other },
        };
        sink(l1_fault(header, fault, at))?;
        *entry = 0;
    }
    Ok(())
}

/// The fault of an L1 entry, with the part of the disk that it is about.
fn l1_fault(header: &Header, error: ImageError, at: u64) -> Fault {
    let start = ((at - header.l1_table.start()) / 8) << header.l2_span_bits();
    let end = start.saturating_add(1 << header.l2_span_bits()).min(header.virtual_size);
    Fault::refused(error, Some(ByteRange::between(start, end)))
}
