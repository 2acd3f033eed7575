//! What the reference counts of clusters say. Section "Host cluster management".

use super::Qcow2;
use super::map::be64;
use super::tables::{Found, Window};
use crate::image::error::ImageError;
use crate::image::file::SourceFile;
use crate::range::ByteRange;

/// Reads them one after the other; those asked for in the order of the file are read once.
pub(super) struct Refcounts<'a> {
    qcow2: &'a Qcow2,
    file: &'a SourceFile,
    /// The offsets of the blocks that are where they may be, sorted.
    blocks: &'a [u64],
    table: Window,
    block: Window,
}

impl<'a> Refcounts<'a> {
    pub(super) fn of(qcow2: &'a Qcow2, file: &'a SourceFile, blocks: &'a [u64]) -> Self {
        Self { qcow2, file, blocks, table: Window::default(), block: Window::default() }
    }

    /// What is counted for a cluster; `None` if the block that should say it is not where it may be.
    pub(super) fn of_cluster(&mut self, cluster: u64) -> Result<Option<u64>, ImageError> {
        let header = &self.qcow2.header;
        let bits = u64::from(header.refcount_bits);
        let per_block = header.cluster_size() * 8 / bits;
        let table = header.refcount_table;
        let in_table = cluster / per_block;
        if in_table >= table.len() / 8 {
            return Ok(Some(0));
        }
        let at = table.start() + in_table * 8;
        let block = match self.table.bytes_at(self.file, (table, &[]), at)? {
            Found::Stored(bytes) => bytes.first_chunk::<8>().map_or(0, |bytes| be64(bytes)),
            Found::Hole { .. } => 0,
        };
        if block == 0 {
            return Ok(Some(0));
        }
        if self.blocks.binary_search(&block).is_err() {
            return Ok(None);
        }
        // The last cluster of a file may be shorter.
        let stored = ByteRange::between(block, (block + header.cluster_size()).min(self.file.len()));
        let bit = cluster % per_block * bits;
        let at = block + bit / 8;
        if at >= stored.end() {
            return Ok(Some(0));
        }
        Ok(Some(match self.block.bytes_at(self.file, (stored, &[]), at)? {
            Found::Stored(bytes) if bits < 8 => u64::from(bytes[0]) >> (bit % 8) & ((1 << bits) - 1),
            Found::Stored(bytes) => {
                let len = usize::try_from(bits / 8).expect("at most 8");
                let bytes = bytes.get(..len).unwrap_or_default();
                bytes.iter().fold(0, |count, byte| count << 8 | u64::from(*byte))
            }
            Found::Hole { .. } => 0,
        }))
    }
}
