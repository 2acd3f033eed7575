//! The MBR: its records, the logical partitions behind an extended one, and the disk signature.

use std::collections::BTreeSet;
use std::io;

use super::bytes::{self, ReadBytes, has, le16, le32};
use crate::range::ByteRange;

/// An MBR counts in sectors of 512 bytes.
const SECTOR: u64 = 512;
/// Where the four records begin, and how long each is.
const RECORDS: usize = 0x1be;
const RECORD_LEN: usize = 16;
/// The type of the record that keeps other systems off a GPT disk.
const PROTECTIVE: u8 = 0xee;
/// Linux shows at most this many partitions (DISK_MAX_PARTS).
const MAX_LOGICAL: usize = 256;

/// A partition of an MBR, primary or logical.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MbrPartition {
    /// 1 to 4 for the records of the MBR, 5 and up for logical partitions.
    pub(crate) number: u32,
    pub(crate) type_byte: u8,
    pub(crate) range: ByteRange,
}

impl MbrPartition {
    /// Whether it only holds logical partitions.
    pub(crate) fn is_extended(&self) -> bool {
        is_extended(self.type_byte)
    }
}

/// An MBR partition table.
#[derive(Clone, Debug)]
pub(crate) struct Mbr {
    /// The disk signature; 0 when it has none.
    pub(crate) disk_signature: u32,
    pub(crate) partitions: Vec<MbrPartition>,
}

impl Mbr {
    /// Whether it protects or accompanies a GPT.
    pub(crate) fn is_protective(&self) -> bool {
        self.partitions.iter().any(|partition| partition.type_byte == PROTECTIVE)
    }

    /// Where the size of the only record lies, if that one protects the whole disk.
    ///
    /// A hybrid MBR has further records, and they are somebody's deliberate work: `None`.
    pub(super) fn lone_protective_size_at(&self) -> Option<u64> {
        match &self.partitions[..] {
            [only] if only.type_byte == PROTECTIVE && only.range.start() == SECTOR => {
                let record = u64::from(only.number - 1) * 16;
                Some(0x1be + record + 12)
            }
            _ => None,
        }
    }

    /// The disk signature as blkid prints it; `None` when there is none.
    pub(crate) fn id(&self) -> Option<String> {
        (self.disk_signature != 0).then(|| format!("{:08x}", self.disk_signature))
    }
}

/// The MBR partition table of a disk, if it has one.
///
/// The boot sector of a FAT or NTFS file system ends in the same two bytes and is none.
pub(crate) fn read(disk: &dyn ReadBytes) -> io::Result<Option<Mbr>> {
    let Some(sector) = bytes::read(disk, 0, SECTOR)? else { return Ok(None) };
    if !has(&sector, 510, &[0x55, 0xaa]) || is_file_system(&sector) {
        return Ok(None);
    }
    let records = records(&sector);
    if records.iter().any(|record| record.flag & 0x7f != 0) {
        return Ok(None);
    }
    let mut partitions = Vec::new();
    for (number, record) in (1..).zip(&records) {
        if let Some(range) = record.range(0) {
            partitions.push(MbrPartition { number, type_byte: record.type_byte, range });
        }
    }
    let extended = partitions.iter().find(|partition| partition.is_extended());
    if let Some(range) = extended.map(|partition| partition.range) {
        let logical = logical(disk, range)?;
        partitions.extend(logical);
    }
    let disk_signature = le32(&sector, 440).expect("a sector has 512 bytes");
    Ok(Some(Mbr { disk_signature, partitions }))
}

struct Record {
    flag: u8,
    type_byte: u8,
    start: u32,
    sectors: u32,
}

impl Record {
    /// What it describes, counted from sector `base`; `None` when it is not used.
    fn range(&self, base: u64) -> Option<ByteRange> {
        if self.type_byte == 0 || self.sectors == 0 {
            return None;
        }
        let start = base.checked_add(u64::from(self.start))?.checked_mul(SECTOR)?;
        let len = u64::from(self.sectors) * SECTOR;
        start.checked_add(len).map(|end| ByteRange::between(start, end))
    }
}

fn records(sector: &[u8]) -> [Record; 4] {
    [0, 1, 2, 3].map(|index| {
        let at = RECORDS + index * RECORD_LEN;
        Record {
            flag: sector[at],
            type_byte: sector[at + 4],
            start: le32(sector, at + 8).expect("a sector has 512 bytes"),
            sectors: le32(sector, at + 12).expect("a sector has 512 bytes"),
        }
    })
}

/// The logical partitions: each EBR holds one and the way to the next, counted from the extended partition.
fn logical(disk: &dyn ReadBytes, extended: ByteRange) -> io::Result<Vec<MbrPartition>> {
    let base = extended.start() / SECTOR;
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut at = base;
    // A chain that comes back to where it was, or leaves its partition, ends there.
    while found.len() < MAX_LOGICAL && seen.len() < MAX_LOGICAL && seen.insert(at) {
        let Some(offset) = at.checked_mul(SECTOR).filter(|offset| extended.contains(*offset)) else { break };
        let Some(sector) = bytes::read(disk, offset, SECTOR)? else { break };
        if !has(&sector, 510, &[0x55, 0xaa]) {
            break;
        }
        let [partition, next, ..] = records(&sector);
        if let Some(range) = partition.range(at).filter(|_| !is_extended(partition.type_byte)) {
            let number = u32::try_from(found.len()).expect("logical partitions are few") + 5;
            found.push(MbrPartition { number, type_byte: partition.type_byte, range });
        }
        if !is_extended(next.type_byte) || next.sectors == 0 {
            break;
        }
        at = base + u64::from(next.start);
    }
    Ok(found)
}

fn is_extended(type_byte: u8) -> bool {
    matches!(type_byte, 0x05 | 0x0f | 0x85)
}

/// Whether it is the boot sector of a FAT, exFAT, NTFS or BitLocker volume.
fn is_file_system(sector: &[u8]) -> bool {
    let fat = has(sector, 54, b"FAT") || has(sector, 82, b"FAT32");
    // Boot loaders that live in an MBR leave the names there but no geometry.
    let geometry = le16(sector, 11).is_some_and(|bytes| [512, 1024, 2048, 4096].contains(&bytes));
    let others: [&[u8]; 3] = [b"NTFS    ", b"EXFAT   ", b"-FVE-FS-"];
    (fat && geometry) || others.iter().any(|name| has(sector, 3, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An MBR sector with records of (type, start, sectors).
    fn sector(records: &[(u8, u32, u32)]) -> Vec<u8> {
        let mut sector = vec![0; 512];
        for (index, (type_byte, start, sectors)) in records.iter().enumerate() {
            let at = 0x1be + index * 16;
            sector[at + 4] = *type_byte;
            sector[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
            sector[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    fn disk(sectors: &[(usize, Vec<u8>)]) -> Vec<u8> {
        let mut disk = vec![0; 64 * 512];
        for (at, sector) in sectors {
            disk[at * 512..(at + 1) * 512].copy_from_slice(sector);
        }
        disk
    }

    #[track_caller]
    fn check(disk: &Vec<u8>, expected: &[(u32, u8, u64, u64)]) {
        let mbr = read(disk).unwrap().expect("a table");
        let found: Vec<_> = mbr
            .partitions
            .iter()
            .map(|p| (p.number, p.type_byte, p.range.start() / 512, p.range.len() / 512))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn logical_partitions_follow_the_chain_from_five_up() {
        let chain = disk(&[
            (0, sector(&[(0x83, 1, 9), (0, 0, 0), (0x05, 10, 50)])),
            (10, sector(&[(0x83, 1, 9), (0x05, 10, 10)])),
            (20, sector(&[(0x82, 2, 8), (0x05, 30, 10)])),
            (40, sector(&[(0x8e, 1, 9)])),
        ]);
        check(
            &chain,
            &[(1, 0x83, 1, 9), (3, 5, 10, 50), (5, 0x83, 11, 9), (6, 0x82, 22, 8), (7, 0x8e, 41, 9)],
        );
    }

    #[test]
    fn a_chain_that_loops_or_leaves_its_partition_ends() {
        let table = sector(&[(0x0f, 10, 50)]);
        let to_itself = disk(&[(0, table.clone()), (10, sector(&[(0x83, 1, 2), (0x05, 0, 9)]))]);
        check(&to_itself, &[(1, 0x0f, 10, 50), (5, 0x83, 11, 2)]);
        let outside = disk(&[(0, table), (10, sector(&[(0x83, 1, 2), (0x05, u32::MAX, 9)]))]);
        check(&outside, &[(1, 0x0f, 10, 50), (5, 0x83, 11, 2)]);
        let mut long = vec![0; 4000 * 512];
        long[..512].copy_from_slice(&sector(&[(0x05, 1, 3999)]));
        for at in 1..4000_u32 {
            let ebr = sector(&[(0x83, 1, 1), (0x05, at, 1)]);
            long[at as usize * 512..][..512].copy_from_slice(&ebr);
        }
        assert_eq!(read(&long).unwrap().unwrap().partitions.len(), 1 + MAX_LOGICAL);
    }

    #[test]
    fn a_boot_sector_of_a_file_system_is_no_table() {
        let mut fat = disk(&[(0, sector(&[]))]);
        assert!(read(&fat).unwrap().is_some(), "an empty table is one");
        fat[82..90].copy_from_slice(b"FAT32   ");
        fat[11..13].copy_from_slice(&512_u16.to_le_bytes());
        assert!(read(&fat).unwrap().is_none());
        let mut flagged = disk(&[(0, sector(&[]))]);
        flagged[0x1be] = 0x33;
        assert!(read(&flagged).unwrap().is_none());
        assert!(read(&vec![0; 511]).unwrap().is_none());
    }

    #[test]
    fn only_a_lone_protective_record_is_resized() {
        for (records, expected) in [
            (&[(0xee, 1, 99)][..], Some(0x1be + 12)),
            (&[(0, 0, 0), (0xee, 1, 99)], Some(0x1be + 16 + 12)),
            (&[(0xee, 1, 99), (0x0c, 200, 9)], None),
            (&[(0xee, 2, 99)], None),
            (&[(0x83, 1, 99)], None),
        ] {
            let mbr = read(&disk(&[(0, sector(records))])).unwrap().unwrap();
            assert_eq!(mbr.lone_protective_size_at(), expected, "{records:?}");
        }
    }
}
