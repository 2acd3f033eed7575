//! Disks for this room's tests, made by `gptman` or by sgdisk (see `testdata/layout/README.md`).

use std::io::Cursor;

use gptman::{GPT, GPTPartitionEntry};

use super::sector::SectorSize;

pub(super) const MIB: u64 = 1024 * 1024;

/// A disk of `len` bytes with partitions of (number, first sector, last sector), boot code and disk signature.
pub(super) fn gpt_disk(sector: SectorSize, len: u64, partitions: &[(u32, u64, u64)]) -> Vec<u8> {
    let mut disk = Cursor::new(vec![0; usize::try_from(len).unwrap()]);
    let mut gpt = GPT::new_from(&mut disk, sector.bytes(), [0xd1; 16]).unwrap();
    for (number, first, last) in partitions {
        gpt[*number] = GPTPartitionEntry {
            partition_type_guid: [0x77; 16],
            unique_partition_guid: [u8::try_from(*number).unwrap(); 16],
            starting_lba: *first,
            ending_lba: *last,
            attribute_bits: 4,
            partition_name: format!("part {number}").as_str().into(),
        };
    }
    gpt.write_into(&mut disk).unwrap();
    GPT::write_protective_mbr_into(&mut disk, sector.bytes()).unwrap();
    let mut disk = disk.into_inner();
    disk[..440].fill(0x90);
    disk[440..444].copy_from_slice(&0xcafe_babe_u32.to_le_bytes());
    disk
}

/// The 8 MiB disk with partitions 1, 14 and 15 that sgdisk made.
pub(super) fn from_sgdisk() -> Vec<u8> {
    joined(
        8 * MIB,
        include_bytes!("../../testdata/layout/gpt-1-14-15.head"),
        include_bytes!("../../testdata/layout/gpt-1-14-15.tail"),
    )
}

/// The same after growing to 16 MiB and `sgdisk -e`: the head and the end of it.
pub(super) fn moved_by_sgdisk() -> (&'static [u8], &'static [u8]) {
    (
        include_bytes!("../../testdata/layout/gpt-1-14-15-moved.head"),
        include_bytes!("../../testdata/layout/gpt-1-14-15-moved.tail"),
    )
}

fn joined(len: u64, head: &[u8], tail: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; usize::try_from(len).unwrap()];
    disk[..head.len()].copy_from_slice(head);
    let tail_at = disk.len() - tail.len();
    disk[tail_at..].copy_from_slice(tail);
    disk
}

/// Overwrites a field of the header at `at` and makes the header's checksum right again.
pub(super) fn forge(disk: &mut [u8], at: usize, field: usize, bytes: &[u8]) {
    disk[at + field..at + field + bytes.len()].copy_from_slice(bytes);
    disk[at + 16..at + 20].fill(0);
    let crc = gptman_crc(&disk[at..at + 128]);
    disk[at + 16..at + 20].copy_from_slice(&crc.to_le_bytes());
}

/// The header's checksum as `gptman` computes it: it says so when it refuses a wrong one.
fn gptman_crc(header: &[u8]) -> u32 {
    match gptman::GPTHeader::read_from(&mut Cursor::new(header)) {
        Err(gptman::Error::InvalidChecksum(_, right)) => right,
        Ok(right) => right.crc32_checksum,
        Err(other) => panic!("a header that gptman parses: {other}"),
    }
}
