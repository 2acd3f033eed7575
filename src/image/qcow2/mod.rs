//! qcow2, versions 2 and 3 read, version 3 written. Sections are those of qemu's `docs/interop/qcow2`.

mod besides;
mod bitmaps;
mod clusters;
mod contradictions;
mod entry;
mod extensions;
mod features;
mod header;
mod held;
mod map;
mod naming;
mod new_header;
mod owners;
mod placed;
mod recount;
mod refcounts;
mod slots;
mod snapshots;
mod tables;
mod uses;
mod walk;
mod write;

pub(crate) use entry::{OFFSET_MASK, plain as plain_entry};
pub(crate) use header::Compression;
pub(super) use header::{Backing, Corrupt, Header};
pub(super) use map::ENTRIES_MAX;
pub(crate) use new_header::{NewHeader, Version, encode as encode_header, room_for_name};
use tables::Tables;
pub use write::Packing;
pub(crate) use write::{Compressor, FilePart, Finished, ImageWriter, NewImage, NewImageError, Stored};

use super::error::ImageError;
use super::fault::Sink;
use super::file::SourceFile;

/// Memory that the tables of all layers may still take.
pub(super) struct Budget {
    left: u64,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Self {
        Self { left: bytes }
    }

    fn take(&mut self, bytes: u64, file: &SourceFile) -> Result<(), ImageError> {
        let Some(left) = self.left.checked_sub(bytes) else {
            return Err(ImageError::TooMuchMetadata {
                path: file.path().into(),
                needed: bytes,
                left: self.left,
            });
        };
        self.left = left;
        Ok(())
    }
}

/// One open qcow2 layer: its header and what is kept of its tables.
pub(super) struct Qcow2 {
    pub(super) header: Header,
    tables: Tables,
}

impl Qcow2 {
    /// Checks the header and the L1 table; what the sink passes over in that table is taken for no table at all.
    pub(super) fn open(
        file: &SourceFile,
        budget: &mut Budget,
        sink: &mut Sink<'_>,
    ) -> Result<Self, ImageError> {
        let header = Header::read_telling(file, Corrupt::Refuse, sink)?;
        let tables = Tables::read(file, &header, budget, sink)?;
        Ok(Self { header, tables })
    }
}
