//! What the reference counts of clusters say. Section "Host cluster management".

use super::Qcow2;
use super::map::be64;
use super::tables::{Found, Window};
use crate::image::error::ImageError;
use crate::image::file::{SourceFile, Stretch};
use crate::range::ByteRange;

/// How much of a block is read at once: where clusters lie apart, so do their counts.
const PIECE_LEN: u64 = 4096;

/// Reads them one after the other; those asked for in the order of the file are read once.
pub(super) struct Refcounts<'a> {
    qcow2: &'a Qcow2,
    file: &'a SourceFile,
    /// The offsets of the blocks that are where they may be, sorted.
    blocks: &'a [u64],
    table: Window,
    piece: Piece,
    /// The number of a table's entry that was looked at last, and what it gives.
    last: Option<(u64, Block)>,
}

/// A few bytes of a block, or a hole of it.
struct Piece {
    /// What of the file it is.
    range: ByteRange,
    /// None of a hole.
    bytes: Vec<u8>,
}

impl Piece {
    fn none() -> Self {
        Self { range: ByteRange::EMPTY, bytes: Vec::new() }
    }

    /// The bytes of a block from an offset on, as far as they are at hand; none if that is in a hole.
    fn bytes_at(&mut self, file: &SourceFile, block: ByteRange, at: u64) -> Result<&[u8], ImageError> {
        if !self.range.contains(at) {
            self.range = ByteRange::EMPTY;
            self.bytes.clear();
            let (stretch, part) = file.sectors_at(ByteRange::between(at, block.end()));
            if stretch == Stretch::Hole {
                self.range = part;
            } else {
                let start = at - at % PIECE_LEN;
                let piece = ByteRange::between(start, (start + PIECE_LEN).min(block.end()));
                self.bytes.resize(usize::try_from(piece.len()).expect("a piece is short"), 0);
                file.read_exact_at(&mut self.bytes, piece.start())?;
                self.range = piece;
            }
        }
        let skip = usize::try_from(at - self.range.start()).unwrap_or(usize::MAX);
        Ok(self.bytes.get(skip..).unwrap_or_default())
    }
}

/// What an entry of the refcount table gives.
#[derive(Clone, Copy)]
enum Block {
    /// Nothing: all its clusters are free.
    Free,
    /// A block that is not where it may be, or that serves twice: it may say anything.
    Unknown,
    /// One that is there, as far as the file goes.
    Stored(ByteRange),
}

impl<'a> Refcounts<'a> {
    pub(super) fn of(qcow2: &'a Qcow2, file: &'a SourceFile, blocks: &'a [u64]) -> Self {
        Self { qcow2, file, blocks, table: Window::default(), piece: Piece::none(), last: None }
    }

    /// What is counted for a cluster; `None` if that cannot be known.
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
        let bytes = self.piece.bytes_at(self.file, stored, at)?;
        let len = usize::try_from(bits.div_ceil(8)).expect("at most 8");
        // In a hole, or where the file ends, there are none.
        let Some(bytes) = bytes.get(..len) else { return Ok(Some(0)) };
        let count = bytes.iter().fold(0, |count, byte| count << 8 | u64::from(*byte));
        Ok(Some(if bits < 8 { count >> (bit % 8) & ((1 << bits) - 1) } else { count }))
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
        let first = self.blocks.partition_point(|block| *block < offset);
        let same = self.blocks[first..].iter().take(2).filter(|block| **block == offset).count();
        Ok(match same {
            _ if offset == 0 => Block::Free,
            // The last cluster of a file may be shorter.
            1 => {
                let end = (offset + header.cluster_size()).min(self.file.len());
                Block::Stored(ByteRange::between(offset, end))
            }
            _ => Block::Unknown,
        })
    }
}
