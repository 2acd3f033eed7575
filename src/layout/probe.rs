//! What a disk carries at its head and its end, as `blkid -p` and `wipefs` see it.
//!
//! It answers more readily than they do: a magic number without a checksum behind it counts, for the
//! question here is what firmware, kernel or an administrator's tool might take for something.

use std::io;

use serde::Serialize;

use super::bytes::{self, ReadBytes, has};
use super::gpt::{self, GptFault};
use super::sector::SectorSize;
use super::{marker, mbr, raid, superblocks, volume_labels};

/// How much of the head is read in one piece: btrfs has its superblock at 64 KiB.
const HEAD: u64 = 72 * 1024;

/// What something on a disk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Usage {
    /// Files, or swap space.
    FileSystem,
    /// A part of something larger: RAID, LVM, ZFS.
    Member,
    /// Encrypted.
    Crypto,
    /// Partitions.
    PartitionTable,
    /// An unfinished rebuild.
    Marker,
}

/// Something that a disk or a partition was found to carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Signature {
    /// Its name, as blkid has it: `ext4`, `LVM2_member`, `gpt`.
    pub kind: &'static str,
    /// The offset in bytes of what it is known by.
    pub offset: u64,
    /// The name that somebody gave it; may hold anything, so escape it for a terminal.
    pub label: Option<String>,
    /// Its id as text, as blkid prints it.
    pub uuid: Option<String>,
    /// What it is for.
    pub usage: Usage,
}

impl Signature {
    pub(super) fn new(kind: &'static str, offset: u64, usage: Usage) -> Self {
        Self { kind, offset, label: None, uuid: None, usage }
    }

    pub(super) fn named(self, label: Option<String>, uuid: Option<String>) -> Self {
        Self { label, uuid, ..self }
    }
}

/// All that a disk carries at its head and its end: tables, file systems, members of something, our marker.
pub(crate) fn probe(disk: &dyn ReadBytes) -> io::Result<Vec<Signature>> {
    let mut found = tables(disk)?;
    found.extend(file_systems(disk)?);
    Ok(found)
}

/// What a partition carries, or a disk without looking for a partition table.
pub(super) fn file_systems(disk: &dyn ReadBytes) -> io::Result<Vec<Signature>> {
    let len = disk.size().min(HEAD);
    let head = bytes::read(disk, 0, len)?.expect("the head was cut to the disk");
    let mut found: Vec<_> = superblocks::ALL.iter().filter_map(|known| known(&head)).collect();
    for signature in &mut found {
        if let Some(label) = volume_labels::read(disk, &head, signature.kind)? {
            signature.label = Some(label);
        }
    }
    if has(&head, 0, marker::FIRST_LINE) {
        let journal = marker::read(&head).map(|marker| marker.journal);
        found.push(Signature::new("reimage-unfinished", 0, Usage::Marker).named(None, journal));
    }
    found.extend(superblocks::luks_backup(disk)?);
    found.extend(raid::members(disk, &head)?);
    Ok(found)
}

/// The id of a disk's partition table as blkid prints it: the GPT's GUID, or eight digits of an MBR.
pub(crate) fn ptuuid(disk: &dyn ReadBytes) -> io::Result<Option<String>> {
    if let Some(gpt) = gpt::find(disk)? {
        return Ok(Some(gpt.header.disk_guid()));
    }
    Ok(mbr::read(disk)?.filter(|mbr| !mbr.is_protective()).and_then(|mbr| mbr.id()))
}

/// Partition tables, both copies of a GPT by either sector size; a damaged header counts, without its id.
fn tables(disk: &dyn ReadBytes) -> io::Result<Vec<Signature>> {
    let mut found = Vec::new();
    if let Some(mbr) = mbr::read(disk)? {
        let kind = if mbr.is_protective() { "PMBR" } else { "dos" };
        let id = mbr.id().filter(|_| !mbr.is_protective());
        found.push(Signature::new(kind, 510, Usage::PartitionTable).named(None, id));
    }
    for sector in SectorSize::ALL {
        for lba in [1, gpt::last_lba(disk, sector)] {
            let offset = lba * sector.bytes();
            let id = match gpt::read_header(disk, sector, lba) {
                Ok(header) => Some(header.disk_guid()),
                Err(GptFault::Read(error)) => return Err(error),
                Err(GptFault::Absent { .. }) => continue,
                Err(_) => None,
            };
            if lba > 0 && found.iter().all(|other: &Signature| other.offset != offset) {
                found.push(Signature::new("gpt", offset, Usage::PartitionTable).named(None, id));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{MIB, from_sgdisk, gpt_disk};
    use super::super::sector::SectorSize;
    use super::*;

    /// A mebibyte of zeroes but for these bytes at these offsets.
    fn disk(fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut disk = vec![0; 1024 * 1024];
        for (at, bytes) in fields {
            disk[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        disk
    }

    #[track_caller]
    fn check(fields: &[(usize, &[u8])], kind: &str, offset: u64, label: Option<&str>, uuid: Option<&str>) {
        let found = probe(&disk(fields)).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].kind, found[0].offset), (kind, offset));
        assert_eq!((found[0].label.as_deref(), found[0].uuid.as_deref()), (label, uuid), "{kind}");
    }

    const ID: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    const ID_TEXT: Option<&str> = Some("01020304-0506-0708-090a-0b0c0d0e0f10");

    #[test]
    fn every_file_system_is_known_by_its_superblock() {
        for (features, kind) in [
            ([0, 0, 2, 0, 3], "ext2"),
            ([4, 0, 2, 0, 3], "ext3"),
            ([4, 0, 0x42, 0, 3], "ext4"),
            ([0, 0, 2, 0, 0x0b], "ext4"),
            ([0, 0, 8, 0, 0], "jbd"),
        ] {
            let words = [features[0], features[2], features[4]].map(u32::to_le_bytes);
            let ext: [(usize, &[u8]); 4] = [
                (1080, &[0x53, 0xef]),
                (1024 + 0x5c, words.as_flattened()),
                (1024 + 0x68, ID),
                (1144, b"root"),
            ];
            check(&ext, kind, 1080, Some("root"), ID_TEXT);
        }
        check(&[(0, b"XFSB"), (32, ID), (108, b"twelve chars")], "xfs", 0, Some("twelve chars"), ID_TEXT);
        let btrfs: [(usize, &[u8]); 3] = [(65600, b"_BHRfS_M"), (65568, ID), (65536 + 0x12b, b"pool \0x")];
        check(&btrfs, "btrfs", 65600, Some("pool"), ID_TEXT);
        check(&[(3, b"NTFS    "), (72, &[1, 2])], "ntfs", 3, None, Some("0000000000000201"));
        check(&[(3, b"EXFAT   "), (100, &[1, 0, 2])], "exfat", 3, None, Some("0002-0001"));
        check(&[(0, b"hsqs")], "squashfs", 0, None, None);
        check(&[(4086, b"SWAPSPACE2"), (1036, ID), (1052, b"swap")], "swap", 4086, Some("swap"), ID_TEXT);
        check(&[(65526, b"SWAPSPACE2")], "swap", 65526, None, None);
        let iso: [(usize, &[u8]); 3] =
            [(32769, b"CD001"), (32808, b"cidata   "), (32768 + 813, b"2026112503041500")];
        check(&iso, "iso9660", 32769, Some("cidata"), Some("2026-11-25-03-04-15-00"));
        let fat: [(usize, &[u8]); 4] = [
            (11, &[0, 2, 1, 1, 0, 2]),
            (39, b"\x78\x56\x34\x12CIDATA     "),
            (54, b"FAT16   "),
            (510, b"\x55\xaa"),
        ];
        check(&fat, "vfat", 54, Some("CIDATA"), Some("1234-5678"));
    }

    #[test]
    fn every_member_is_known_at_head_and_end() {
        let md = |sector: u64| {
            let mut block = vec![0; 256];
            block[..8].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]);
            block[16..32].copy_from_slice(ID);
            block[32..38].copy_from_slice(b"host:0");
            block[144..152].copy_from_slice(&sector.to_le_bytes());
            block
        };
        for sector in [0, 8, 2032_u64] {
            let at = usize::try_from(sector * 512).unwrap();
            check(&[(at, &md(sector))], "linux_raid_member", sector * 512, Some("host:0"), ID_TEXT);
        }
        assert!(probe(&disk(&[(4096, &md(0))])).unwrap().is_empty(), "a copy elsewhere is no member");
        let mut odd = disk(&[(2032 * 512, &md(2032))]);
        odd.resize(odd.len() + 7 * 512 + 5, 0);
        assert_eq!(probe(&odd).unwrap().len(), 1, "md rounds down to 4 KiB from an odd end");
        let old: [(usize, &[u8]); 3] =
            [(983_040, &[0xfc, 0x4e, 0x2b, 0xa9]), (983_060, &ID[..4]), (983_092, &ID[4..])];
        let uuid = Some("04030201-0807-0605-0c0b-0a09100f0e0d");
        check(&old, "linux_raid_member", 983_040, None, uuid);
        let lvm: [(usize, &[u8]); 3] =
            [(512, b"LABELONE"), (532, b"\x20\0\0\0LVM2 001"), (544, b"abcdefghijklmnopqrstuvwxyz012345")];
        check(&lvm, "LVM2_member", 536, None, Some("abcdef-ghij-klmn-opqr-stuv-wxyz-012345"));
        for at in [0x20000, 0x60000, 0xa0000, 0xe0400] {
            let offset = u64::try_from(at).unwrap();
            check(&[(at, &0x00ba_b10c_u64.to_be_bytes())], "zfs_member", offset, None, None);
        }
        check(&[(1024 * 1024 - 1024, b"Intel Raid ISM Cfg Sig. ")], "isw_raid_member", 1_047_552, None, None);
        let luks: [(usize, &[u8]); 3] = [(0, b"LUKS\xba\xbe\0\x02"), (24, b"data"), (168, b"1-2-3")];
        check(&luks, "crypto_LUKS", 0, Some("data"), Some("1-2-3"));
        check(&[(0x8000, b"SKUL\xba\xbe")], "crypto_LUKS", 0x8000, None, None);
    }

    #[test]
    fn both_copies_of_a_gpt_are_found_and_a_left_over_backup_too() {
        for sector in SectorSize::ALL {
            let mut disk = gpt_disk(sector, MIB, &[]);
            let kinds = |disk: &Vec<u8>| -> Vec<_> {
                probe(disk).unwrap().into_iter().map(|found| (found.kind, found.offset)).collect()
            };
            let (head, end) = (sector.bytes(), MIB - sector.bytes());
            assert_eq!(kinds(&disk), [("PMBR", 510), ("gpt", head), ("gpt", end)]);
            assert_eq!(ptuuid(&disk).unwrap().unwrap(), "d1d1d1d1-d1d1-d1d1-d1d1-d1d1d1d1d1d1");
            disk[..8192].fill(0);
            assert_eq!(kinds(&disk), [("gpt", end)]);
            assert!(ptuuid(&disk).unwrap().is_some());
            disk[usize::try_from(end).unwrap() + 60] ^= 1;
            assert_eq!(kinds(&disk), [("gpt", end)], "damaged, and still a left-over");
            assert_eq!(ptuuid(&disk).unwrap(), None);
        }
        assert_eq!(ptuuid(&from_sgdisk()).unwrap().unwrap(), "5f1d0c9e-5a3b-4c53-9d8b-0c0f9f6f2b11");
    }

    #[test]
    fn an_mbr_has_the_id_that_blkid_prints() {
        let dos: [(usize, &[u8]); 3] =
            [(440, &[0x78, 0x56, 0x34, 0x02]), (450, &[0x83]), (510, &[0x55, 0xaa])];
        check(&dos, "dos", 510, None, Some("02345678"));
        assert_eq!(ptuuid(&disk(&dos)).unwrap().unwrap(), "02345678");
        assert_eq!(ptuuid(&disk(&dos[1..])).unwrap(), None);
    }

    #[test]
    fn no_bytes_and_no_size_make_it_panic() {
        // Every magic at once, in a sea of one value, on a disk of every awkward size.
        for filling in [0, 1, 0x7f, 0xff] {
            let mut all = vec![filling; 1024 * 1024];
            let magics: [(usize, &[u8]); 12] = [
                (0, b"LUKS\xba\xbe"),
                (512, b"EFI PART"),
                (536, b"LVM2 001"),
                (1080, &[0x53, 0xef]),
                (1536, b"LABELONE"),
                (1560, b"LVM2 001"),
                (4086, b"SWAPSPACE2"),
                (4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
                (32769, b"CD001"),
                (65600, b"_BHRfS_M"),
                (0x20000, &[0x0c, 0xb1, 0xba, 0]),
                (510, &[0x55, 0xaa]),
            ];
            for (at, magic) in magics {
                all[at..at + magic.len()].copy_from_slice(magic);
            }
            for size in [0, 1, 511, 512, 513, 1024, 4096, 36864, 65535, 65536, 131_072, 524_288, 1_048_576] {
                let disk = all[..size].to_vec();
                probe(&disk).unwrap();
                ptuuid(&disk).unwrap();
            }
        }
    }
}
