//! The L1 table, checked and kept, and a window on the L2 tables.

use std::sync::Mutex;

use super::Budget;
use super::entry;
use super::header::Header;
use crate::image::error::{EntryFault, ImageError};
use crate::image::fault::{Fault, Sink};
use crate::image::file::{SourceFile, Stretch};
use crate::range::ByteRange;

/// How many bytes of L2 tables are in memory at once, per layer.
const WINDOW_LEN: u64 = 256 << 10;

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
        let mut l1 = Vec::with_capacity(usize::try_from(needed).expect("an L1 table is at most 32 MiB"));
        let mut bytes = vec![0; 64 << 10];
        for part in ByteRange::new(header.l1_table.start(), needed * 8).cut(64 << 10) {
            let bytes = &mut bytes[..usize::try_from(part.len()).expect("at most 64 KiB")];
            file.read_exact_at(bytes, part.start())?;
            for (value, at) in bytes.as_chunks::<8>().0.iter().zip((part.start()..).step_by(8)) {
                let entry = check_l1_entry(file, header, u64::from_be_bytes(*value), at);
                l1.push(entry.or_else(|fault| sink(l1_fault(header, fault, at)).map(|()| 0))?);
            }
        }
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

    /// Fails if bytes of the disk lie where the image's own structures are.
    pub(super) fn check_apart(
        &self,
        file: &SourceFile,
        header: &Header,
        range: ByteRange,
        what: &'static str,
    ) -> Result<(), ImageError> {
        let overlap = |other| Err(ImageError::Overlap { path: file.path().into(), what, range, other });
        if range.start() < header.cluster_size() {
            return overlap("the header");
        }
        if range.intersection(header.l1_table).is_some() {
            return overlap("the L1 table");
        }
        if range.intersection(header.refcount_table).is_some() {
            return overlap("the refcount table");
        }
        let next = self.l2_offsets.partition_point(|offset| offset + header.cluster_size() <= range.start());
        match self.l2_offsets.get(next) {
            Some(offset) if *offset < range.end() => overlap("an L2 table"),
            _ => Ok(()),
        }
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

    /// The L2 table's bytes from `at` on, read if they are not in the window; `None` where the rest of the
    /// table is a hole of the file, which says nothing about any cluster.
    pub(super) fn entry_bytes<'a>(
        &self,
        file: &SourceFile,
        window: &'a mut Window,
        table: ByteRange,
        at: u64,
        l1_index: usize,
    ) -> Result<Option<&'a [u8]>, ImageError> {
        if window.offset_of(at).is_none() {
            let wanted = self.window_range(table, at, l1_index);
            let (stretch, part) = file.stretch_at(ByteRange::between(at, table.end()));
            if stretch == Stretch::Hole && part.end() == table.end() {
                return Ok(None);
            }
            window.load(file, wanted)?;
        }
        let offset = window.offset_of(at).expect("the window was loaded around the entry");
        Ok(Some(&window.bytes[offset..]))
    }

    /// The part of a large table that holds the entry, or the table with those that lie right behind it and
    /// come next.
    fn window_range(&self, table: ByteRange, at: u64, l1_index: usize) -> ByteRange {
        if table.len() >= WINDOW_LEN {
            return ByteRange::new(at - at % WINDOW_LEN, WINDOW_LEN);
        }
        let mut end = table.end();
        for next in &self.l1[l1_index + 1..] {
            if *next != end || end + table.len() > table.start() + WINDOW_LEN {
                break;
            }
            end += table.len();
        }
        ByteRange::between(table.start(), end)
    }
}

impl Window {
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
    if table.end() > file.len() {
        return Err(ImageError::BeyondEnd {
            path: file.path().into(),
            what: "an L2 table",
            range: table,
            file_size: file.len(),
        });
    }
    for (other, range) in [("the L1 table", header.l1_table), ("the refcount table", header.refcount_table)] {
        if table.intersection(range).is_some() {
            let path = file.path().into();
            return Err(ImageError::Overlap { path, what: "an L2 table", range: table, other });
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
    let mut met = vec![false; shared.len()];
    for (entry, at) in l1.iter_mut().zip((header.l1_table.start()..).step_by(8)) {
        let place = shared.partition_point(|table| *table < *entry);
        if *entry == 0 || shared.get(place) != Some(entry) || !std::mem::replace(&mut met[place], true) {
            continue;
        }
        let fault = ImageError::BadEntry {
            path: file.path().into(),
            table: "L1",
            range: ByteRange::new(at, 8),
            value: *entry,
            why: EntryFault::SharedTable,
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
