//! A new image: version 3, written front to back as the disk's clusters come, in order of the disk.
//!
//! `ImageWriter` does no writing itself: it says which bytes lie where in the file (`FilePart`), each byte once, the
//! header last. In memory are the L1 table, one L2 table, one refcount block, and the cluster that compressed ones are
//! being packed into. Where things lie follows from the clusters alone, so that equal disks make equal files.

mod compress;
mod parts;
mod refcounts;
mod space;

pub(crate) use compress::Compressor;
pub(crate) use parts::FilePart;

use serde::{Deserialize, Serialize};

use super::entry;
use super::header::Compression;
use super::new_header::{self, NewHeader, Version};
use crate::range::ByteRange;
use space::Space;

/// The largest L1 table that is written: half of what qemu reads.
///
/// Then the largest refcount table that qemu reads suffices for every disk, and our own reader keeps two numbers for
/// each L2 table within its bound.
const L1_BYTES_MAX: u64 = 16 << 20;
/// The largest disk: the file stays shorter than what a compressed cluster's offset can say for clusters of 2 MiB.
const SIZE_MAX: u64 = 1 << 48;

/// How the clusters of a new image are stored.
///
/// ```
/// assert_eq!(reimage::Packing::default(), reimage::Packing::Zstd);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Packing {
    /// Compressed with Zstandard, which qemu reads since version 5.1.
    #[default]
    Zstd,
    /// Compressed with deflate, which every reader of qcow2 knows.
    Zlib,
    /// As they are.
    None,
}

/// What a new image is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewImage {
    /// The disk's size in bytes; any number, and the header says exactly that, of which qemu sees whole sectors only.
    pub(crate) virtual_size: u64,
    /// A power of two from 512 bytes to 2 MiB.
    pub(crate) cluster_size: u32,
    pub(crate) packing: Packing,
}

/// Why there is no such image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NewImageError {
    /// The format knows no such clusters.
    #[error("a cluster size of {cluster_size} bytes is no power of two between 512 and 2097152")]
    ClusterSize {
        /// What was asked for.
        cluster_size: u32,
    },
    /// The tables for so many clusters would be larger than readers accept.
    #[error(
        "clusters of {cluster_size} bytes are too small for a disk of {virtual_size} bytes: {least} is the least"
    )]
    ClustersTooSmall {
        /// What was asked for.
        cluster_size: u32,
        /// The disk's size in bytes.
        virtual_size: u64,
        /// The smallest cluster size that will do.
        least: u32,
    },
    /// No cluster size is large enough.
    #[error(
        "a disk of {virtual_size} bytes is larger than 2^48 bytes, the most that an image is written for"
    )]
    TooLarge {
        /// The disk's size in bytes.
        virtual_size: u64,
    },
}

impl NewImageError {
    /// What an operator can do about it.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::ClusterSize { .. } => "64 KiB suits most disks".into(),
            Self::ClustersTooSmall { least, .. } => format!("take clusters of at least {least} bytes"),
            Self::TooLarge { .. } => "make a smaller disk".into(),
        }
    }
}

impl NewImage {
    /// Fails unless there can be such an image.
    ///
    /// # Errors
    ///
    /// When no cluster has that size, or the disk needs larger ones.
    pub(crate) fn check(&self) -> Result<(), NewImageError> {
        let Self { virtual_size, cluster_size, .. } = *self;
        if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
            return Err(NewImageError::ClusterSize { cluster_size });
        }
        if virtual_size > SIZE_MAX {
            return Err(NewImageError::TooLarge { virtual_size });
        }
        let suffices = |bits: &u32| virtual_size.div_ceil(l2_span(*bits)) * 8 <= L1_BYTES_MAX;
        let least = (9..=21).find(suffices).expect("clusters of 2 MiB suffice for 2^48 bytes");
        if cluster_size.trailing_zeros() < least {
            return Err(NewImageError::ClustersTooSmall { cluster_size, virtual_size, least: 1 << least });
        }
        Ok(())
    }

    fn cluster_bits(&self) -> u32 {
        self.cluster_size.trailing_zeros()
    }
}

/// How many bytes of the disk one L2 table describes.
fn l2_span(cluster_bits: u32) -> u64 {
    1 << (2 * cluster_bits - 3)
}

/// A cluster that is not all zero, as it is to be stored.
#[derive(Clone, Copy)]
pub(crate) enum Stored<'a> {
    /// As it is, a whole cluster.
    Plain(&'a [u8]),
    /// Compressed, and shorter for it.
    Packed(&'a [u8]),
}

/// Lays a new image out while the disk's clusters come in order.
pub(crate) struct ImageWriter {
    format: NewImage,
    space: Space,
    l1: Vec<u64>,
    /// The L2 table under way, and whose it is.
    l2: Vec<u64>,
    l2_index: usize,
    /// The first cluster of the disk that may still come.
    next: u64,
}

impl ImageWriter {
    /// An image without any cluster.
    ///
    /// # Errors
    ///
    /// When there can be no such image.
    pub(crate) fn new(format: NewImage) -> Result<Self, NewImageError> {
        format.check()?;
        let bits = format.cluster_bits();
        let tables = index(format.virtual_size.div_ceil(l2_span(bits)));
        Ok(Self {
            format,
            space: Space::new(bits),
            l1: vec![0; tables],
            l2: vec![0; 1 << (bits - 3)],
            l2_index: 0,
            next: 0,
        })
    }

    /// Stores the cluster of that number; those that are passed over read as zeroes.
    ///
    /// # Panics
    ///
    /// If clusters do not come in order, lie behind the disk's end, or have not the length that their form asks for.
    pub(crate) fn append(&mut self, cluster: u64, stored: Stored<'_>) {
        let bits = self.format.cluster_bits();
        assert!(cluster >= self.next, "clusters come in order of the disk");
        assert!(cluster < self.format.virtual_size.div_ceil(1 << bits), "a cluster lies within the disk");
        self.next = cluster + 1;
        let per_table = u64::from(self.format.cluster_size / 8);
        let table = index(cluster / per_table);
        if table != self.l2_index {
            self.close_l2();
            self.l2_index = table;
        }
        self.l2[index(cluster % per_table)] = match stored {
            Stored::Plain(bytes) => {
                assert_eq!(bytes.len(), 1 << bits, "a plain cluster is a whole one");
                entry::plain(self.space.put(bytes))
            }
            Stored::Packed(bytes) => entry::packed(self.space.pack(bytes), bytes.len(), bits),
        };
    }

    /// What lies where in the file by now, and was not given out before.
    pub(crate) fn take_parts(&mut self) -> Vec<FilePart> {
        self.space.take_parts()
    }

    /// Takes parts that were written: their memory serves again.
    pub(crate) fn take_back(&mut self, parts: Vec<FilePart>) {
        self.space.take_back(parts);
    }

    /// Puts the tables behind the clusters; the header is written when all else is durable.
    pub(crate) fn finish(mut self) -> Finished {
        self.close_l2();
        let l1_entries = self.l1.len();
        // As qemu does it, a disk of no bytes has no L1 table.
        let l1_offset = if l1_entries == 0 { 0 } else { self.space.put(&big_endian(&self.l1)) };
        let (parts, refcounts) = self.space.finish();
        let header = NewHeader {
            version: Version::Three,
            backing: None,
            cluster_bits: self.format.cluster_bits(),
            virtual_size: self.format.virtual_size,
            compression: match self.format.packing {
                Packing::Zstd => Compression::Zstd,
                Packing::Zlib | Packing::None => Compression::Zlib,
            },
            l1_entries: u32::try_from(l1_entries).expect("an L1 table is at most 16 MiB"),
            l1_offset,
            refcount_table: refcounts.table,
        };
        Finished { parts, header: new_header::encode(&header), file_bytes: refcounts.end }
    }

    fn close_l2(&mut self) {
        if self.l2.iter().any(|entry| *entry != 0) {
            self.l1[self.l2_index] = entry::plain(self.space.put(&big_endian(&self.l2)));
            self.l2.fill(0);
        }
    }
}

/// The end of a new image.
pub(crate) struct Finished {
    /// What is still to be written before the header.
    pub(crate) parts: Vec<FilePart>,
    /// The header cluster, for offset 0.
    pub(crate) header: Vec<u8>,
    /// How long the file is.
    pub(crate) file_bytes: u64,
}

/// Where the refcount table lies, and where the file ends.
struct RefcountsPlaced {
    table: ByteRange,
    end: u64,
}

fn big_endian(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

fn index(count: u64) -> usize {
    usize::try_from(count).expect("a table fits in memory")
}
