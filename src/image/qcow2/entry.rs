//! What an L2 entry says. Sections "L2 table entry", "Compressed Clusters Descriptor", "Extended L2 Entries".

use super::header::{Header, L2Kind};
use super::owners::Stream;
use crate::image::error::EntryFault;

pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Nobody else uses what is pointed to.
pub(super) const COPIED: u64 = 1 << 63;
pub(super) const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZERO: u64 = 1;

/// What an L2 entry says about its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing: the backing file shows through.
    Unallocated,
    /// It reads as zeroes.
    Zero,
    /// It lies there as it is.
    Data(u64),
    /// It is compressed.
    Compressed { host_offset: u64, host_len: u32 },
    /// Each of its 32 subclusters is one of the first three.
    Subclusters { host_offset: u64, data: u32, zero: u32 },
}

/// The offset that an L1 entry gives, 0 for none; its alignment is checked too.
pub(super) fn l2_table_offset(value: u64, cluster_bits: u32) -> Result<u64, EntryFault> {
    let offset = value & OFFSET_MASK;
    if value & !(OFFSET_MASK | COPIED) != 0 {
        return Err(EntryFault::ReservedBits);
    }
    aligned(offset, cluster_bits)
}

impl Entry {
    /// What an entry says; `bitmap` is the second half of an extended one.
    pub(super) fn decode(header: &Header, value: u64, bitmap: u64) -> Result<Self, EntryFault> {
        if value & COMPRESSED != 0 {
            return if bitmap == 0 {
                Ok(compressed(value, header.cluster_bits))
            } else {
                Err(EntryFault::ReservedBits)
            };
        }
        let zero_bit = if header.version >= 3 && header.l2_kind == L2Kind::Plain { READS_AS_ZERO } else { 0 };
        if value & !(OFFSET_MASK | COPIED | zero_bit) != 0 {
            return Err(EntryFault::ReservedBits);
        }
        let host_offset = aligned(value & OFFSET_MASK, header.cluster_bits)?;
        match header.l2_kind {
            L2Kind::Extended => subclusters(host_offset, bitmap),
            L2Kind::Plain if value & zero_bit != 0 => Ok(Self::Zero),
            L2Kind::Plain if host_offset == 0 => Ok(Self::Unallocated),
            L2Kind::Plain => Ok(Self::Data(host_offset)),
        }
    }
}

/// The entry of a table or a cluster that lies there as it is, and is used once.
pub(crate) fn plain(host_offset: u64) -> u64 {
    host_offset | COPIED
}

/// The entry of a compressed cluster of `len` bytes.
pub(super) fn packed(host_offset: u64, len: usize, cluster_bits: u32) -> u64 {
    let offset_bits = compressed_offset_bits(cluster_bits);
    assert!(host_offset >> offset_bits == 0, "the file is not longer than an entry can say");
    let last = host_offset + len as u64 - 1;
    let more_sectors = last / 512 - host_offset / 512;
    COMPRESSED | more_sectors << offset_bits | host_offset
}

/// A compressed cluster's entry as a number that sorts by where the stream begins.
pub(super) fn stream_key(value: u64, cluster_bits: u32) -> u64 {
    let offset_bits = compressed_offset_bits(cluster_bits);
    let host_offset = value & ((1 << offset_bits) - 1);
    let more_sectors = (value & !(COPIED | COMPRESSED)) >> offset_bits;
    host_offset << (62 - offset_bits) | more_sectors
}

/// The stream that such a number stands for.
pub(super) fn stream_of_key(key: u64, cluster_bits: u32) -> Stream {
    let sector_bits = 62 - compressed_offset_bits(cluster_bits);
    let start = key >> sector_bits;
    let more_sectors = key & ((1 << sector_bits) - 1);
    Stream { start, end: (start / 512 + more_sectors + 1) * 512 }
}

/// How many bits of a compressed cluster's entry are its offset.
fn compressed_offset_bits(cluster_bits: u32) -> u32 {
    62 - (cluster_bits - 8)
}

fn aligned(offset: u64, cluster_bits: u32) -> Result<u64, EntryFault> {
    if offset.is_multiple_of(1 << cluster_bits) { Ok(offset) } else { Err(EntryFault::Misaligned) }
}

fn compressed(value: u64, cluster_bits: u32) -> Entry {
    let offset_bits = compressed_offset_bits(cluster_bits);
    let host_offset = value & ((1 << offset_bits) - 1);
    let more_sectors = (value & !(COPIED | COMPRESSED)) >> offset_bits;
    let host_len = (more_sectors + 1) * 512 - host_offset % 512;
    Entry::Compressed {
        host_offset,
        host_len: u32::try_from(host_len).expect("at most two clusters, which is 4 MiB"),
    }
}

fn subclusters(host_offset: u64, bitmap: u64) -> Result<Entry, EntryFault> {
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).expect("32 bits");
    let (data, zero) = (half(bitmap), half(bitmap >> 32));
    if data & zero != 0 {
        return Err(EntryFault::DataAndZero);
    }
    if host_offset == 0 && data != 0 {
        return Err(EntryFault::DataWithoutCluster);
    }
    Ok(match (data, zero) {
        (0, 0) => Entry::Unallocated,
        (u32::MAX, 0) => Entry::Data(host_offset),
        (0, u32::MAX) => Entry::Zero,
        _ => Entry::Subclusters { host_offset, data, zero },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compressed_entry_says_every_sector_that_its_bytes_touch() {
        for cluster_bits in 9..=21 {
            for (offset, len) in [(512, 1), (1023, 1), (1023, 2), (513, 511), (513, 512), (7 << 20, 400)] {
                let len = len.min((1 << cluster_bits) - 1);
                let Entry::Compressed { host_offset, host_len } =
                    compressed(packed(offset, len, cluster_bits), cluster_bits)
                else {
                    panic!("a compressed entry is read as another")
                };
                let end = (offset + len as u64).next_multiple_of(512);
                assert_eq!(
                    (host_offset, host_offset + u64::from(host_len)),
                    (offset, end),
                    "{cluster_bits} bits"
                );
            }
        }
    }
}
