//! Where snapshots have their L1 tables. Section "Snapshots".

use super::Qcow2;
use super::header::L1_BYTES_MAX;
use super::held::bad_entry;
use super::map::be64;
use super::placed::Placed;
use crate::image::error::{EntryFault, ImageError};
use crate::image::fault::{Fault, Sink};
use crate::image::file::SourceFile;
use crate::range::ByteRange;

/// The fixed part of a snapshot table's entry.
const ENTRY_LEN: u64 = 40;

/// How much of the snapshot table is read at once.
const PART_LEN: u64 = 4096;

/// A table that something outside of the active disk has, by the entry that says so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) range: ByteRange,
    pub(super) entry: ByteRange,
}

impl Qcow2 {
    /// The snapshot table with all that belongs to its entries, and the L1 tables that they give.
    ///
    /// The sink is told of an entry that is not in the file: from there on nothing can be known.
    pub(super) fn read_snapshots(
        &self,
        file: &SourceFile,
        sink: &mut Sink<'_>,
    ) -> Result<(ByteRange, Vec<Table>), ImageError> {
        let mut tables = Vec::new();
        let start = self.header.snapshot_table.start();
        let (mut at, mut entries) = (start, Entries::of(file));
        for _ in 0..self.header.snapshots {
            let entry = ByteRange::new(at, ENTRY_LEN);
            if entry.end() > file.len() {
                let table = ByteRange::between(start, entry.end());
                sink(Fault::told(Placed::by(entry, "the snapshot table", table).beyond_end(file), None))?;
                return Ok((self.header.snapshot_table, tables));
            }
            let bytes = entries.at(entry)?;
            let number = |at: usize, len: usize| {
                bytes[at..at + len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
            };
            let (offset, len) = (be64(bytes), number(8, 4) * 8);
            if len > L1_BYTES_MAX {
                let length = ByteRange::new(at + 8, 4);
                let error = bad_entry(file, "snapshot table", (length, len / 8), EntryFault::TooLong);
                sink(Fault::told(error, None))?;
            } else if len > 0 {
                let range = ByteRange::new(offset, len.min(u64::MAX - offset));
                tables.push(Table { range, entry: ByteRange::new(at, 8) });
            }
            let more = number(12, 2) + number(14, 2) + number(36, 4);
            at = (at + ENTRY_LEN + more).next_multiple_of(8);
        }
        Ok((ByteRange::between(start, at.min(file.len())), tables))
    }
}

/// The fixed parts of entries that lie anywhere behind each other.
pub(super) struct Entries<'a> {
    file: &'a SourceFile,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Entries<'a> {
    pub(super) fn of(file: &'a SourceFile) -> Self {
        Self { file, start: 0, bytes: Vec::new() }
    }

    /// One of them, which is short and in the file.
    pub(super) fn at(&mut self, entry: ByteRange) -> Result<&[u8], ImageError> {
        let read = ByteRange::new(self.start, u64::try_from(self.bytes.len()).expect("a part is short"));
        if !(read.contains(entry.start()) && entry.end() <= read.end()) {
            let len = PART_LEN.min(self.file.len() - entry.start());
            self.bytes.resize(usize::try_from(len).expect("a part is short"), 0);
            self.start = entry.start();
            self.file.read_exact_at(&mut self.bytes, entry.start())?;
        }
        Ok(&self.bytes[usize::try_from(entry.start() - self.start).expect("a part is short")..])
    }
}
