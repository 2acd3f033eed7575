//! How a new qcow2 file is laid out: header, L1, then tables and clusters as they come, reference counts at the end.
//!
//! Sections are those of qemu's `docs/interop/qcow2`.

use std::path::PathBuf;

use crate::image::{Version, room_for_name};
use crate::range::ByteRange;

/// Bytes of an L1 or L2 entry, and of an entry of the refcount table.
pub(super) const ENTRY: u64 = 8;
/// A reference count takes 16 bits, which is all that version 2 knows.
const REFCOUNT_BYTES: u64 = 2;

/// What a new qcow2 file is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Qcow2Shape {
    pub(crate) version: Version,
    /// The cluster size as a power of two, from 9 to 21.
    pub(crate) cluster_bits: u32,
    /// The file from which it reads what it does not hold itself.
    pub(crate) backing: Option<Backing>,
}

/// The file below an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backing {
    /// Its absolute path.
    pub(crate) path: PathBuf,
    /// `raw` or `qcow2`.
    pub(crate) format: &'static str,
}

impl Default for Qcow2Shape {
    /// What `qemu-img create` makes.
    fn default() -> Self {
        Self { version: Version::Three, cluster_bits: 16, backing: None }
    }
}

impl Qcow2Shape {
    /// More L1 entries than this are not made: 16 MiB of them, which the reader takes as well.
    const MOST_L1_ENTRIES: u64 = 2 << 20;

    pub(crate) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// How many bytes of the disk one L2 table describes.
    pub(super) fn span(&self) -> u64 {
        self.cluster() * (self.cluster() / ENTRY)
    }

    /// How many L1 entries a disk of that size needs; one at least.
    pub(super) fn l1_entries(&self, virtual_size: u64) -> u64 {
        virtual_size.div_ceil(self.span()).max(1)
    }

    /// The largest disk whose tables are kept within bounds.
    pub(crate) fn most_bytes(&self) -> u64 {
        self.span().saturating_mul(Self::MOST_L1_ENTRIES)
    }

    /// Whether the header's cluster has room for the name of the file below.
    pub(crate) fn has_room_for_name(&self) -> bool {
        let Some(backing) = &self.backing else { return true };
        backing.path.as_os_str().len() as u64 <= room_for_name(self.cluster_bits)
    }
}

/// The reference counts of a file in which every cluster is in use once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refcounts {
    /// Where the blocks begin; the table lies behind them.
    pub(super) blocks: u64,
    pub(super) block_count: u64,
    table_clusters: u64,
    cluster: u64,
}

impl Refcounts {
    /// Lays them out behind the first `used` bytes of the file, which are whole clusters.
    pub(super) fn behind(used: u64, cluster: u64) -> Self {
        let clusters = used / cluster;
        let (mut block_count, mut table_clusters) = (0, 0);
        // Blocks count themselves and the table, too: a few rounds, for each adds far less than it counts.
        loop {
            let blocks = (clusters + block_count + table_clusters).div_ceil(cluster / REFCOUNT_BYTES);
            let table = (blocks * ENTRY).div_ceil(cluster);
            if (blocks, table) == (block_count, table_clusters) {
                return Self { blocks: used, block_count, table_clusters, cluster };
            }
            (block_count, table_clusters) = (blocks, table);
        }
    }

    pub(super) fn table(&self) -> ByteRange {
        ByteRange::new(self.blocks + self.block_count * self.cluster, self.table_clusters * self.cluster)
    }

    /// Where the file ends.
    pub(super) fn end(&self) -> u64 {
        self.table().end()
    }

    /// The counts of the block of that index: 1 for each cluster of the file, 0 behind its end.
    pub(super) fn block(&self, index: u64, bytes: &mut [u8]) {
        let first = index * (self.cluster / REFCOUNT_BYTES);
        let counted = (self.end() / self.cluster).saturating_sub(first);
        for (count, place) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(0..) {
            *count = u16::from(place < counted).to_be_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_count_every_cluster_and_themselves_and_no_more() {
        for bits in [9, 10, 12] {
            let cluster = 1 << bits;
            let per_block = cluster / REFCOUNT_BYTES;
            for used in [1, 2, per_block - 2, per_block - 1, per_block, per_block * (cluster / 8), 1 << 18] {
                let refcounts = Refcounts::behind(used * cluster, cluster);
                let clusters = used + refcounts.block_count + refcounts.table_clusters;
                assert_eq!(refcounts.end(), clusters * cluster, "{bits} bits, {used} clusters");
                assert!(refcounts.block_count * per_block >= clusters, "{bits} bits, {used} clusters");
                assert!((refcounts.block_count - 1) * per_block < clusters, "{bits} bits, {used} clusters");
                let mut ones = 0;
                let mut block = vec![0; usize::try_from(cluster).unwrap()];
                for index in 0..refcounts.block_count {
                    refcounts.block(index, &mut block);
                    ones += block.iter().map(|byte| u64::from(*byte)).sum::<u64>();
                }
                assert_eq!(ones, clusters, "{bits} bits, {used} clusters");
            }
        }
    }
}
