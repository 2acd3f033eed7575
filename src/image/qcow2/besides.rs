//! What reading needs nothing of: reference counts, the snapshot table, and the places of clusters that read as zeroes.
//!
//! Faults there forbid nobody to read the image; they are told to who wants to know everything.

use super::Qcow2;
use super::entry::OFFSET_MASK;
use super::map::be64;
use super::walk::{Owned, Slot};
use crate::image::error::{EntryFault, ImageError};
use crate::image::fault::{Fault, Sink};
use crate::image::file::SourceFile;
use crate::range::ByteRange;

/// How much of the refcount table is read at once.
const PART: u64 = 64 << 10;

/// Where the structures lie that reading needs nothing of.
pub(super) struct Besides {
    /// The offsets of all refcount blocks, sorted.
    blocks: Vec<u64>,
    snapshots: ByteRange,
}

impl Qcow2 {
    /// Finds them, and tells what is wrong with the refcount table's entries.
    ///
    /// A file that was not closed properly may say anything in them.
    pub(super) fn read_besides(&self, file: &SourceFile, sink: &mut Sink<'_>) -> Result<Besides, ImageError> {
        let snapshots = self.header.snapshot_table;
        let mut besides = Besides { blocks: Vec::new(), snapshots };
        if let Err(error) = self.tables.check_apart(file, &self.header, snapshots, "the snapshot table")
            && !snapshots.is_empty()
        {
            sink(Fault::told(error, None))?;
        }
        if self.header.dirty {
            return Ok(besides);
        }
        let mut bytes = vec![0; 64 << 10];
        let mut sound = Vec::new();
        for part in self.header.refcount_table.cut(PART) {
            let bytes = &mut bytes[..usize::try_from(part.len()).expect("at most 64 KiB")];
            file.read_exact_at(bytes, part.start())?;
            for (value, at) in bytes.chunks_exact(8).map(be64).zip((part.start()..).step_by(8)) {
                if value == 0 {
                    continue;
                }
                match self.check_block(file, &besides, value, ByteRange::new(at, 8)) {
                    Ok(()) => sound.push((value, at)),
                    Err(error) => sink(Fault::told(error, None))?,
                }
            }
        }
        sound.sort_unstable();
        for pair in sound.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            let (value, at) = pair[1];
            let error = bad_entry(file, ByteRange::new(at, 8), value, EntryFault::SharedTable);
            sink(Fault::told(error, None))?;
        }
        besides.blocks = sound.into_iter().map(|(block, _)| block).collect();
        Ok(besides)
    }

    /// Checks an entry of the refcount table.
    fn check_block(
        &self,
        file: &SourceFile,
        besides: &Besides,
        value: u64,
        at: ByteRange,
    ) -> Result<(), ImageError> {
        if value & 0x1ff != 0 {
            return Err(bad_entry(file, at, value, EntryFault::ReservedBits));
        }
        if !value.is_multiple_of(self.header.cluster_size()) {
            return Err(bad_entry(file, at, value, EntryFault::Misaligned));
        }
        let what = "a refcount block";
        let beyond =
            |range| ImageError::BeyondEnd { path: file.path().into(), what, range, file_size: file.len() };
        let end = value.checked_add(self.header.cluster_size());
        let Some(end) = end else { return Err(beyond(ByteRange::new(value, 0))) };
        let block = ByteRange::between(value, end);
        // The last cluster of a file may be shorter.
        if value >= file.len() {
            return Err(beyond(block));
        }
        self.tables.check_apart(file, &self.header, block, what)?;
        besides.check_apart(file, self.header.cluster_size(), block, what)
    }

    /// Tells where an entry's place lies on what reading needs nothing of, and what is wrong with a place that is not
    /// read.
    pub(super) fn look_besides(
        &self,
        file: &SourceFile,
        besides: &Besides,
        (slot, owned): (Slot, Owned),
        sink: &mut Sink<'_>,
    ) -> Result<(), ImageError> {
        let (cluster, len) = (self.header.cluster_size(), file.len());
        let Some(place) = self.bytes_of(file, owned) else {
            let host_offset = slot.value & OFFSET_MASK;
            // Of compressed clusters nothing is left to be said.
            if host_offset >= len {
                let what = "the place of a cluster that reads as zeroes";
                let range = ByteRange::new(host_offset, cluster);
                let error = ImageError::BeyondEnd { path: file.path().into(), what, range, file_size: len };
                return sink(Fault::told(error, Some(slot.guest)));
            }
            return Ok(());
        };
        let (what, place) = match owned {
            // Of a stream only the first byte is sure to be its own.
            Owned::Stream { .. } => ("a compressed cluster", ByteRange::new(place.start(), 1)),
            _ => ("a cluster", place),
        };
        let on_others = besides.check_apart(file, cluster, place, what);
        // Data has been checked against these.
        let on_tables = match owned {
            Owned::Cluster { .. } => self.tables.check_apart(file, &self.header, place, what),
            _ => Ok(()),
        };
        match on_tables.and(on_others) {
            Ok(()) => Ok(()),
            Err(error) => sink(Fault::told(error, Some(slot.guest))),
        }
    }
}

impl Besides {
    fn check_apart(
        &self,
        file: &SourceFile,
        cluster_size: u64,
        range: ByteRange,
        what: &'static str,
    ) -> Result<(), ImageError> {
        let overlap = |other| Err(ImageError::Overlap { path: file.path().into(), what, range, other });
        if range.intersection(self.snapshots).is_some() {
            return overlap("the snapshot table");
        }
        let next = self.blocks.partition_point(|block| block.saturating_add(cluster_size) <= range.start());
        match self.blocks.get(next) {
            Some(block) if *block < range.end() => overlap("a refcount block"),
            _ => Ok(()),
        }
    }
}

fn bad_entry(file: &SourceFile, range: ByteRange, value: u64, why: EntryFault) -> ImageError {
    ImageError::BadEntry { path: file.path().into(), table: "refcount table", range, value, why }
}
