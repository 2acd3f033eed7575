//! Labels that do not lie in a file system's first sector: those of FAT, exFAT and NTFS.
//!
//! Every number on the way is the disk's own claim: sums are checked, and of a directory only the
//! beginning is read, where programs put the label.

use std::io;

use super::bytes::{self, MAX_READ, ReadBytes, array, has, le16, le32, le64};

/// The size of a directory's entry, in FAT and in exFAT.
const ENTRY: usize = 32;
/// How many clusters of a directory are followed; blkid stops there as well.
const MAX_CLUSTERS: usize = 100;

/// The label of a file system of this `kind` whose beginning is `head`, if it keeps one elsewhere.
pub(super) fn read(disk: &dyn ReadBytes, head: &[u8], kind: &str) -> io::Result<Option<String>> {
    match kind {
        "vfat" => fat(disk, head),
        "exfat" => exfat(disk, head),
        "ntfs" => ntfs(disk, head),
        _ => Ok(None),
    }
}

/// Clusters and the table that chains them, offsets and lengths in bytes.
struct Chain {
    table: u64,
    /// Where cluster 2, the first, lies.
    heap: u64,
    cluster: u64,
    /// The bits of a table's entry that say which cluster is next.
    mask: u32,
}

impl Chain {
    /// The beginning of the directory that begins with the cluster `first`.
    fn directory(&self, disk: &dyn ReadBytes, first: u32) -> io::Result<Vec<u8>> {
        let mut found = Vec::new();
        let mut next = first;
        for _ in 0..MAX_CLUSTERS {
            let room = MAX_READ - u64::try_from(found.len()).expect("a directory is bounded");
            // The last eight values are a bad cluster and the end.
            if next < 2 || next >= self.mask - 8 || room == 0 || self.cluster == 0 {
                break;
            }
            let place = u64::from(next - 2).checked_mul(self.cluster);
            let Some(offset) = place.and_then(|place| place.checked_add(self.heap)) else { break };
            let Some(part) = bytes::read(disk, offset, self.cluster.min(room))? else { break };
            found.extend(part);
            let Some(at) = self.table.checked_add(u64::from(next) * 4) else { break };
            let Some(entry) = bytes::read(disk, at, 4)? else { break };
            next = le32(&entry, 0).expect("4 bytes were read") & self.mask;
        }
        Ok(found)
    }
}

/// The volume's entry in the root directory (Microsoft's FAT specification, 1.03, page 23).
fn fat(disk: &dyn ReadBytes, head: &[u8]) -> io::Result<Option<String>> {
    let Some(boot) = head.get(..512) else { return Ok(None) };
    let half = |at: usize| u64::from(le16(boot, at).expect("a boot sector has 512 bytes"));
    let word = |at: usize| le32(boot, at).expect("a boot sector has 512 bytes");
    let (sector, reserved, copies) = (half(11), half(14), u64::from(boot[16]));
    let fat_sectors = if half(22) > 0 { half(22) } else { u64::from(word(36)) };
    // Products of 16, 32 and 8 bits each: they fit.
    let behind_tables = (reserved + fat_sectors * copies) * sector;
    let directory = if half(22) > 0 {
        let len = (half(17) * 32).min(MAX_READ);
        bytes::read(disk, behind_tables, len)?.unwrap_or_default()
    } else {
        let cluster = u64::from(boot[13]) * sector;
        let chain = Chain { table: reserved * sector, heap: behind_tables, cluster, mask: 0x0fff_ffff };
        chain.directory(disk, word(44))?
    };
    let entries = directory.chunks_exact(ENTRY).take_while(|entry| entry[0] != 0);
    let is_label = |entry: &&[u8]| {
        const DELETED: u8 = 0xe5;
        let (attributes, long_name) = (entry[11], entry[11] & 0x3f == 0x0f);
        let has_content = entry[20..22] != [0; 2] || entry[26..28] != [0; 2];
        entry[0] != DELETED && !long_name && !has_content && attributes & 0x18 == 0x08
    };
    Ok(entries.filter(|entry| is_label(entry)).find_map(|entry| {
        let mut name = entry[..11].to_vec();
        // 0xe5 is a letter in some code pages and is written so, for it would mean "deleted".
        if name[0] == 0x05 {
            name[0] = 0xe5;
        }
        bytes::text(&name, 0, 11)
    }))
}

/// The volume label's entry in the root directory (exFAT specification, 7.3).
fn exfat(disk: &dyn ReadBytes, head: &[u8]) -> io::Result<Option<String>> {
    let Some(boot) = head.get(..512) else { return Ok(None) };
    let word = |at: usize| le32(boot, at).expect("a boot sector has 512 bytes");
    let (sector_shift, cluster_shift) = (u32::from(boot[108]), u32::from(boot[109]));
    if !(9..=12).contains(&sector_shift) || sector_shift + cluster_shift > 25 {
        return Ok(None);
    }
    let chain = Chain {
        table: u64::from(word(80)) << sector_shift,
        heap: u64::from(word(88)) << sector_shift,
        cluster: 1 << (sector_shift + cluster_shift),
        mask: u32::MAX,
    };
    let directory = chain.directory(disk, word(96))?;
    let mut entries = directory.chunks_exact(ENTRY).take_while(|entry| entry[0] != 0);
    let label = entries.find(|entry| entry[0] == 0x83);
    Ok(label.and_then(|entry| utf16(&entry[2..24], usize::from(entry[1]) * 2)))
}

/// The name in the record of `$Volume`, the fourth of the master file table.
fn ntfs(disk: &dyn ReadBytes, head: &[u8]) -> io::Result<Option<String>> {
    const VOLUME_RECORD: u64 = 3;
    let Some((place, len)) = ntfs_records(head) else { return Ok(None) };
    let Some(offset) = place.checked_add(VOLUME_RECORD * len) else { return Ok(None) };
    let Some(record) = bytes::read(disk, offset, len)? else { return Ok(None) };
    Ok(if has(&record, 0, b"FILE") { ntfs_name(&record) } else { None })
}

/// Where the master file table lies, and how long a record is.
fn ntfs_records(head: &[u8]) -> Option<(u64, u64)> {
    let sector = u64::from(le16(head, 11)?);
    // Beyond 128 sectors the byte is a negative power of two (ntfs-3g, bootsect.c).
    let cluster = match *head.get(13)? {
        sectors @ ..=128 => sector * u64::from(sectors),
        power => sector.checked_shl(256 - u32::from(power))?,
    };
    let len = match *head.get(64)? {
        clusters @ ..=127 => cluster.checked_mul(clusters.into())?,
        power => 1_u64.checked_shl(256 - u32::from(power))?,
    };
    let place = le64(head, 48)?.checked_mul(cluster)?;
    (512..=64 * 1024).contains(&len).then_some((place, len))
}

/// The resident attribute `$VOLUME_NAME` among those of a record.
fn ntfs_name(record: &[u8]) -> Option<String> {
    const VOLUME_NAME: u32 = 0x60;
    const END: u32 = u32::MAX;
    let mut at = usize::from(le16(record, 20)?);
    loop {
        let (kind, len) = (le32(record, at)?, usize::try_from(le32(record, at + 4)?).ok()?);
        // Shorter than its own head: the walk would not come on.
        if kind == END || len < 24 {
            return None;
        }
        if kind == VOLUME_NAME {
            let value_len = usize::try_from(le32(record, at + 16)?).ok()?;
            let value = at.checked_add(le16(record, at + 20)?.into())?;
            return utf16(record.get(value..)?, value_len);
        }
        at = at.checked_add(len)?;
    }
}

/// The text of `len` bytes of UTF-16, the least significant byte first; `None` when empty or not all there.
fn utf16(field: &[u8], len: usize) -> Option<String> {
    let units = field.get(..len)?.chunks_exact(2).map(|unit| array(unit, 0).map_or(0, u16::from_le_bytes));
    let units: Vec<_> = units.take_while(|unit| *unit != 0).collect();
    let text = String::from_utf16_lossy(&units).trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut disk = vec![0; 65536];
        for (at, bytes) in fields {
            disk[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        disk
    }

    #[track_caller]
    fn check(kind: &str, disk: &Vec<u8>, expected: Option<&str>) {
        let head = &disk[..disk.len().min(4096)];
        assert_eq!(read(disk, head, kind).unwrap().as_deref(), expected, "{kind}");
    }

    /// FAT32 with sectors and clusters of 512 bytes, its table in sector 1, cluster 2 in sector 2.
    const FAT32: [(usize, &[u8]); 3] = [(11, &[0, 2, 1, 1, 0, 1]), (36, &[1, 0, 0, 0]), (44, &[2, 0, 0, 0])];

    /// An entry of a directory with these attributes.
    fn entry(name: &[u8; 11], attributes: u8) -> Vec<u8> {
        [&name[..], &[attributes], &[0; 20]].concat()
    }

    #[test]
    fn the_label_of_a_fat_is_the_volume_s_entry_and_no_other() {
        let mut has_content = entry(b"CONTENT    ", 8);
        has_content[26] = 1;
        let others = [
            entry(b"\xe5ELETED    ", 8),
            entry(b"LONG NAME  ", 0x0f),
            entry(b"A FOLDER   ", 0x18),
            has_content,
            entry(b"A FILE     ", 0x20),
        ]
        .concat();
        let label = entry(b"My Data    ", 0x28);
        for (before, expected) in [(&others[..], Some("My Data")), (&[0; 32], None)] {
            let directory = [before, &label].concat();
            let fat32 = disk(&[&FAT32[..], &[(1024, &directory)]].concat());
            check("vfat", &fat32, expected);
            let fat16: [(usize, &[u8]); 2] = [(11, &[0, 2, 1, 1, 0, 1, 16, 0]), (22, &[1, 0])];
            check("vfat", &disk(&[&fat16[..], &[(1024, &directory)]].concat()), expected);
        }
    }

    #[test]
    fn a_directory_is_followed_from_cluster_to_cluster_and_a_loop_ends() {
        let full = entry(b"A FILE     ", 0x20).repeat(16);
        let label = entry(b"FURTHER    ", 8);
        let chained: [(usize, &[u8]); 3] = [(512 + 8, &[9, 0, 0, 0xf0]), (1024, &full), (4608, &label)];
        check("vfat", &disk(&[&FAT32[..], &chained].concat()), Some("FURTHER"));
        let looped: [(usize, &[u8]); 2] = [(512 + 8, &[2, 0, 0, 0]), (1024, &full)];
        check("vfat", &disk(&[&FAT32[..], &looped].concat()), None);
        let outside: [(usize, &[u8]); 2] = [(512 + 8, &[0xff; 4]), (1024, &full)];
        check("vfat", &disk(&[&FAT32[..], &outside].concat()), None);
    }

    /// A disk so large that every cluster's number is one on it; behind `head` it is full of labels.
    struct Vast {
        head: Vec<u8>,
    }

    impl ReadBytes for Vast {
        fn size(&self) -> u64 {
            1 << 50
        }

        fn read_at(&self, range: crate::range::ByteRange, buffer: &mut [u8]) -> io::Result<()> {
            if range.end() <= self.head.size() {
                return self.head.read_at(range, buffer);
            }
            buffer.chunks_exact_mut(ENTRY).for_each(|part| part.copy_from_slice(&entry(b"BEHIND     ", 8)));
            Ok(())
        }
    }

    #[test]
    fn the_end_of_a_chain_is_no_cluster_however_large_the_disk_is() {
        let full = entry(b"A FILE     ", 0x20).repeat(16);
        for (last, expected) in [([0xf7, 0xff, 0xff, 0x0f], None), ([0, 0, 1, 0], Some("BEHIND"))] {
            let chained: [(usize, &[u8]); 2] = [(512 + 8, &last), (1024, &full)];
            let head = disk(&[&FAT32[..], &chained].concat());
            let vast = Vast { head: head.clone() };
            assert_eq!(read(&vast, &head, "vfat").unwrap().as_deref(), expected);
        }
    }

    #[test]
    fn the_label_of_an_exfat_is_as_long_as_it_says() {
        let boot = |shift: u8| {
            let mut boot = vec![0; 512];
            (boot[80], boot[88], boot[96], boot[108], boot[109]) = (1, 2, 2, 9, shift);
            boot
        };
        for (shift, len, expected) in [(0, 2, Some("dä")), (0, 0, None), (0, 12, None), (200, 2, None)] {
            let label = [&[0x81][..], &[0; 31], &[0x83, len, b'd', 0, 0xe4, 0, b'x', 0]].concat();
            check("exfat", &disk(&[(0, &boot(shift)), (1024, &label)]), expected);
        }
    }

    #[test]
    fn the_label_of_an_ntfs_is_the_name_in_the_fourth_record() {
        let attribute = |kind: u8, len: u8, value: &[u8]| {
            let value_len = u8::try_from(value.len()).unwrap();
            let mut attribute = vec![0; len.into()];
            (attribute[0], attribute[4], attribute[16], attribute[20]) = (kind, len, value_len, 24);
            attribute[24..24 + value.len()].copy_from_slice(value);
            attribute
        };
        let boot = |record: u8| {
            let mut boot = vec![0; 512];
            (boot[12], boot[13], boot[48], boot[64]) = (2, 2, 4, record);
            boot
        };
        let name = [attribute(0x10, 32, &[]), attribute(0x60, 40, b"d\0\xe4\0")].concat();
        let stuck = [&[0x10, 0, 0, 0, 0, 0, 0, 0][..], &attribute(0x60, 40, b"d\0")].concat();
        let ended = [&[0xff; 4][..], &[32, 0, 0, 0], &[0; 24], &attribute(0x60, 40, b"d\0")].concat();
        for (attributes, expected) in [(name, Some("dä")), (stuck, None), (ended, None)] {
            let record = [b"FILE", &[0; 16][..], &[56, 0], &[0; 34], &attributes].concat();
            // A record is a cluster of 1024 bytes, or 2 to the power of ten.
            for record_len in [1, 246] {
                check("ntfs", &disk(&[(0, &boot(record_len)), (4096 + 3 * 1024, &record)]), expected);
            }
        }
        // A record of two gibibytes.
        check("ntfs", &disk(&[(0, &boot(225))]), None);
    }

    #[test]
    fn no_numbers_in_a_boot_sector_make_it_panic() {
        for kind in ["vfat", "exfat", "ntfs", "ext4"] {
            for filling in [0, 1, 0x7f, 0x80, 0xff] {
                check(kind, &vec![filling; 65536], None);
                check(kind, &vec![filling; 511], None);
                for at in 0..128 {
                    let mut disk = vec![0; 4096];
                    disk[at..at + 8].fill(filling);
                    disk[13] |= 8;
                    disk[64] |= 0xf6;
                    check(kind, &disk, None);
                }
            }
        }
    }
}
