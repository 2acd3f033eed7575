//! The entries of L2 tables, one after the other; holes of the file are not read.

use super::Qcow2;
use super::map::be64;
use super::tables::{Found, Window};
use crate::image::error::ImageError;
use crate::image::fault::Fault;
use crate::image::file::SourceFile;
use crate::range::ByteRange;

/// An L2 entry that says something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// Which bytes of the layer's disk it is about.
    pub(super) guest: ByteRange,
    /// Where in the file it is.
    pub(super) at: ByteRange,
    pub(super) value: u64,
    /// The second half of an extended one.
    pub(super) bitmap: u64,
}

/// The same of any L2 table, whatever it is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Its number in the table.
    pub(super) index: u64,
    pub(super) at: ByteRange,
    pub(super) value: u64,
    pub(super) bitmap: u64,
}

/// A part of an L2 table, and the tables that are asked for next.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) table: u64,
    /// The number of its first entry, and of the first behind it.
    pub(super) first: u64,
    pub(super) end: u64,
    pub(super) following: &'a [u64],
}

impl Qcow2 {
    /// Gives every entry of the disk that is not all zero, and what cannot be read instead of those that would be there.
    pub(super) fn each_slot(
        &self,
        file: &SourceFile,
        mut visit: impl FnMut(Result<Slot, Box<Fault>>) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let header = &self.header;
        let (cluster_size, virtual_size) = (header.cluster_size(), header.virtual_size);
        let mut window = Window::default();
        for (l1_index, table) in self.tables.l1.iter().enumerate().filter(|(_, table)| **table != 0) {
            let disk = u64::try_from(l1_index).expect("an L1 table is short") << header.l2_span_bits();
            let end =
                (virtual_size - disk).div_ceil(cluster_size).min(cluster_size >> header.l2_entry_bits());
            let part = Part { table: *table, first: 0, end, following: self.tables.following(l1_index) };
            self.each_entry(file, (&mut window, part), |entry| {
                visit(entry.map(|Entry { index, at, value, bitmap }| {
                    let guest = disk + (index << header.cluster_bits);
                    let guest = ByteRange::new(guest, cluster_size.min(virtual_size - guest));
                    Slot { guest, at, value, bitmap }
                }))
            })?;
        }
        Ok(())
    }

    /// The same of a part of one table.
    pub(super) fn each_entry(
        &self,
        file: &SourceFile,
        (window, part): (&mut Window, Part<'_>),
        mut visit: impl FnMut(Result<Entry, Box<Fault>>) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let entry_bits = self.header.l2_entry_bits();
        let entry_len = 1 << entry_bits;
        let whole = (ByteRange::new(part.table, self.header.cluster_size()), part.following);
        let end = part.table + (part.end << entry_bits);
        let mut start = part.table + (part.first << entry_bits);
        while start < end {
            let bytes = match window.bytes_at(file, whole, start) {
                Ok(Found::Stored(bytes)) => bytes,
                Ok(Found::Hole { end }) => {
                    start = end;
                    continue;
                }
                Err(error) => return visit(Err(Box::new(Fault::refused(error, None)))),
            };
            let len = (end - start).min(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            let bytes = &bytes[..usize::try_from(len).expect("a window is short")];
            let first = (start - part.table) >> entry_bits;
            for (number, bytes) in (0..).zip(bytes.chunks_exact(1 << entry_bits)) {
                let value = be64(bytes);
                let bitmap = bytes.get(8..).filter(|half| !half.is_empty()).map_or(0, be64);
                if value != 0 || bitmap != 0 {
                    let at = ByteRange::new(start + (number << entry_bits), entry_len);
                    visit(Ok(Entry { index: first + number, at, value, bitmap }))?;
                }
            }
            start += len;
        }
        Ok(())
    }
}
