//! `DiskLayout`: what a disk's bytes mean, for `inspect` and the picture of it.

use std::io;

use serde::Serialize;

use super::bytes::{ReadBytes, Window};
use super::gpt::{self, Gpt};
use super::mbr::{self, Mbr};
use super::probe::{self, Signature, Usage};
use super::type_names;
use crate::range::ByteRange;

/// In how many partitions it looks for a file system; a hostile table could name a thousand.
const MAX_PROBED: usize = 128;

/// Which kind of partition table a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TableKind {
    /// A GUID partition table.
    Gpt,
    /// An MBR partition table.
    Dos,
}

/// The partitions and file systems of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DiskLayout {
    /// The partition table, if there is one.
    pub table: Option<TableKind>,
    /// The sectors in bytes that the table counts in.
    pub sector_size: Option<u64>,
    /// The table's id as blkid prints it (`PTUUID`).
    pub id: Option<String>,
    /// What lies on the disk itself, when there is no table.
    pub file_system: Option<Signature>,
    /// The partitions in the order of their numbers.
    pub partitions: Vec<Partition>,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Partition {
    /// Its number, as the kernel and the boot loader count: gaps stay gaps.
    pub number: u32,
    /// The bytes of the disk that are its own; they may end behind the disk's end.
    pub range: ByteRange,
    /// What its type is called, where that is known here.
    pub type_name: Option<&'static str>,
    /// The type: a GUID, or two hexadecimal digits of an MBR.
    pub type_id: String,
    /// The name in a GPT; may hold anything, so escape it for a terminal.
    pub name: Option<String>,
    /// Its id as blkid prints it (`PARTUUID`).
    ///
    /// A GUID, or an MBR's id with the partition's number; `None` in an MBR without an id.
    pub id: Option<String>,
    /// What it carries, if that is known here.
    pub file_system: Option<Signature>,
}

/// What the bytes of `disk` mean.
pub(crate) fn describe(disk: &dyn ReadBytes) -> io::Result<DiskLayout> {
    let mut layout = match gpt::find(disk)? {
        Some(gpt) => from_gpt(gpt),
        None => match mbr::read(disk)? {
            Some(mbr) => from_mbr(&mbr),
            None => return bare(disk),
        },
    };
    let containers = |partition: &&mut Partition| partition.type_name != Some("extended");
    for partition in layout.partitions.iter_mut().filter(containers).take(MAX_PROBED) {
        partition.file_system = content(&Window::new(disk, partition.range))?;
    }
    Ok(layout)
}

fn bare(disk: &dyn ReadBytes) -> io::Result<DiskLayout> {
    let file_system = content(disk)?;
    Ok(DiskLayout { table: None, sector_size: None, id: None, file_system, partitions: Vec::new() })
}

/// What counts of several finds: a container hides the file system that seems to lie in it.
fn content(disk: &dyn ReadBytes) -> io::Result<Option<Signature>> {
    let found = probe::file_systems(disk)?;
    let container = found.iter().position(|found| found.usage != Usage::FileSystem);
    Ok(found.into_iter().nth(container.unwrap_or(0)))
}

fn from_gpt(gpt: Gpt) -> DiskLayout {
    let partition = |partition: gpt::GptPartition| Partition {
        number: partition.number,
        range: partition.range,
        type_name: type_names::gpt(&partition.type_guid),
        type_id: partition.type_guid,
        name: Some(partition.name).filter(|name| !name.is_empty()),
        id: Some(partition.guid),
        file_system: None,
    };
    DiskLayout {
        table: Some(TableKind::Gpt),
        sector_size: Some(gpt.sector.bytes()),
        id: Some(gpt.header.disk_guid()),
        file_system: None,
        partitions: gpt.partitions.into_iter().map(partition).collect(),
    }
}

fn from_mbr(mbr: &Mbr) -> DiskLayout {
    let partition = |partition: &mbr::MbrPartition| Partition {
        number: partition.number,
        range: partition.range,
        type_name: type_names::mbr(partition.type_byte),
        type_id: format!("{:02x}", partition.type_byte),
        name: None,
        // The number in hexadecimal digits, as the kernel has it too (block/partitions/msdos.c).
        id: mbr.id().map(|id| format!("{id}-{:02x}", partition.number)),
        file_system: None,
    };
    DiskLayout {
        table: Some(TableKind::Dos),
        sector_size: Some(512),
        id: mbr.id(),
        file_system: None,
        partitions: mbr.partitions.iter().map(partition).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{MIB, from_sgdisk, gpt_disk};
    use super::super::sector::SectorSize;
    use super::*;

    #[test]
    fn a_cloud_image_is_described_with_its_numbers_types_and_file_systems() {
        let mut disk = from_sgdisk();
        let root = 8192 * 512;
        disk[root + 1080..root + 1082].copy_from_slice(&[0x53, 0xef]);
        let layout = describe(&disk).unwrap();
        assert_eq!((layout.table, layout.sector_size), (Some(TableKind::Gpt), Some(512)));
        let found: Vec<_> = layout
            .partitions
            .iter()
            .map(|p| (p.number, p.type_name, p.name.as_deref(), p.file_system.as_ref().map(|f| f.kind)))
            .collect();
        let expected = [
            (1, Some("Linux file system"), Some("root"), Some("ext2")),
            (14, Some("BIOS boot"), None, None),
            (15, Some("EFI system"), Some("ESP"), None),
        ];
        assert_eq!(found, expected);
        let json = serde_json::to_value(&layout).unwrap();
        assert_eq!(json["table"], "gpt");
        assert_eq!(json["partitions"][0]["range"]["offset"], root);
        assert_eq!(json["partitions"][0]["file_system"]["usage"], "file_system");
    }

    #[test]
    fn a_partition_of_an_mbr_has_the_id_that_the_kernel_gives_it() {
        let mut disk = vec![0; 65536];
        let mut record = |sector: usize, index: usize, type_byte: u8, start: u8, sectors: u8| {
            let at = sector * 512 + 446 + index * 16;
            (disk[at + 4], disk[at + 8], disk[at + 12]) = (type_byte, start, sectors);
            disk[sector * 512 + 510..][..2].copy_from_slice(&[0x55, 0xaa]);
        };
        record(0, 0, 5, 8, 64);
        for at in 8..14_u8 {
            record(at.into(), 0, 0x83, 1, 1);
            record(at.into(), 1, 5, at - 7, 1);
        }
        let ids = |disk: &Vec<u8>| -> Vec<_> {
            describe(disk).unwrap().partitions.into_iter().map(|partition| partition.id).collect()
        };
        assert_eq!(ids(&disk), vec![None; 7], "without a signature there is nothing to tell disks apart");
        disk[440..444].copy_from_slice(&[0xee, 0xff, 0xc0, 0]);
        let expected = ["01", "05", "06", "07", "08", "09", "0a"];
        assert_eq!(ids(&disk), expected.map(|number| Some(format!("00c0ffee-{number}"))));
    }

    #[test]
    fn a_disk_without_a_table_is_described_by_what_lies_on_it() {
        let mut disk = vec![0; 65536];
        assert_eq!(describe(&disk).unwrap().file_system, None);
        disk[..4].copy_from_slice(b"XFSB");
        let layout = describe(&disk).unwrap();
        assert_eq!(layout.file_system.unwrap().kind, "xfs");
        assert!(layout.table.is_none() && layout.partitions.is_empty());
    }

    #[test]
    fn a_member_hides_the_file_system_that_shows_through() {
        let mut disk = vec![0; 1024 * 1024];
        disk[1080..1082].copy_from_slice(&[0x53, 0xef]);
        disk[1024 * 1024 - 1024..][..24].copy_from_slice(b"Intel Raid ISM Cfg Sig. ");
        assert_eq!(describe(&disk).unwrap().file_system.unwrap().kind, "isw_raid_member");
    }

    #[test]
    fn a_damaged_gpt_leaves_its_protective_record() {
        let mut disk = gpt_disk(SectorSize::B512, MIB, &[(1, 64, 99)]);
        for at in [600, disk.len() - 500] {
            disk[at] ^= 1;
        }
        disk[1024] ^= 1;
        let tail = disk.len() - 33 * 512;
        disk[tail] ^= 1;
        let layout = describe(&disk).unwrap();
        assert_eq!(layout.table, Some(TableKind::Dos));
        assert_eq!(layout.partitions[0].type_name, Some("GPT protective"));
    }
}
