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
    /// The number of a table's entry that was looked at last, and what it gives.
    last: Option<(u64, Block)>,
}

/// What an entry of the refcount table gives.
#[derive(Clone, Copy)]
enum Block {
    /// Nothing: all its clusters are free.
    Free,
    /// A block that is not where it may be: it may say anything.
    Unknown,
    /// One that is there, as far as the file goes.
    Stored(ByteRange),
}

impl<'a> Refcounts<'a> {
    pub(super) fn of(qcow2: &'a Qcow2, file: &'a SourceFile, blocks: &'a [u64]) -> Self {
        Self { qcow2, file, blocks, table: Window::default(), block: Window::default(), last: None }
    }

    /// What is counted for a cluster; `None` if the block that should say it is not where it may be.
    pub(super) fn of_cluster(&mut self, cluster: u64) -> Result<Option<u64>, ImageError> {
        let header = &self.qcow2.header;
        let bits = u64::from(header.refcount_bits);
        // Both are powers of two.
        let per_block_bits = header.cluster_bits + 3 - header.refcount_bits.ilog2();
        let (index, place) = (cluster >> per_block_bits, cluster & ((1 << per_block_bits) - 1));
        let block = match self.last {
            Some((last, block)) if last == index => block,
            _ => {
                let block = self.block_of(index)?;
                self.last = Some((index, block));
                block
            }
        };
        let stored = match block {
            Block::Free => return Ok(Some(0)),
            Block::Unknown => return Ok(None),
            Block::Stored(stored) => stored,
        };
        let bit = place * bits;
        let at = stored.start() + bit / 8;
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

    fn block_of(&mut self, index: u64) -> Result<Block, ImageError> {
        let header = &self.qcow2.header;
        let table = header.refcount_table;
        if index >= table.len() / 8 {
            return Ok(Block::Free);
        }
        let offset = match self.table.bytes_at(self.file, (table, &[]), table.start() + index * 8)? {
            Found::Stored(bytes) => be64(bytes),
            Found::Hole { .. } => 0,
        };
        Ok(match self.blocks.binary_search(&offset) {
            _ if offset == 0 => Block::Free,
            Err(_) => Block::Unknown,
            // The last cluster of a file may be shorter.
            Ok(_) => {
                let end = (offset + header.cluster_size()).min(self.file.len());
                Block::Stored(ByteRange::between(offset, end))
            }
        })
    }
}
