//! One copy of a GUID partition table: header, entries, and whether they can be believed (UEFI chapter 5).
//!
//! The reader is our own because its input is hostile: bounds come before reads, and reads before
//! allocations. `gptman`, which trusts the entry count and size, is the tests' second opinion.

use std::io;

use super::bytes::{self, MAX_READ, ReadBytes, array, guid_text, le32, le64};
use super::sector::SectorSize;
use crate::range::ByteRange;

pub(super) const SIGNATURE: &[u8] = b"EFI PART";
const REVISION_1_0: u32 = 0x0001_0000;
const HEADER_SIZE: u32 = 92;
const MAX_ENTRIES: u32 = 1024;
const ENTRY_SIZE: u32 = 128;

/// Why a copy of a GPT cannot be believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GptFault {
    #[error("there is no GPT header at sector {lba}")]
    Absent { lba: u64 },
    #[error("the GPT could not be read")]
    Read(#[from] io::Error),
    #[error("the GPT header has the unknown revision {0:#010x}")]
    Revision(u32),
    #[error("the GPT header claims a size of {0} bytes")]
    HeaderSize(u32),
    #[error("the GPT header's checksum is wrong")]
    HeaderChecksum,
    #[error("the GPT header at sector {lies} says that it lies at sector {says}")]
    Displaced { lies: u64, says: u64 },
    #[error("the GPT claims {count} entries of {size} bytes")]
    Entries { count: u32, size: u32 },
    #[error("the GPT's usable sectors {first} to {last} are impossible")]
    Usable { first: u64, last: u64 },
    #[error("the GPT's entries at sector {lba} lie where they must not")]
    ArrayPlace { lba: u64 },
    #[error("the checksum of the GPT's entries is wrong")]
    ArrayChecksum,
    #[error("partition {number} lies outside of the GPT's usable sectors")]
    Partition { number: u32 },
    #[error("the first GPT is damaged and only its backup can be read")]
    OnlyBackup(#[source] Box<GptFault>),
}

/// A header whose checksum is right and whose fields are possible.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(super) my_lba: u64,
    pub(super) other_lba: u64,
    pub(super) first_usable: u64,
    pub(super) last_usable: u64,
    disk_guid: [u8; 16],
    pub(super) array_lba: u64,
    entry_count: u32,
    entry_size: u32,
    array_crc: u32,
    /// The whole sector, as it lies.
    sector: Vec<u8>,
}

/// A partition of a GPT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GptPartition {
    /// Its slot in the table, counted from 1: 1, 14, 15 stay 1, 14, 15.
    pub(crate) number: u32,
    pub(crate) type_guid: String,
    pub(crate) guid: String,
    /// As the table has it: whoever prints it escapes it.
    pub(crate) name: String,
    pub(crate) attributes: u64,
    pub(crate) range: ByteRange,
}

/// One valid copy of a GPT, the first or the backup.
#[derive(Clone, Debug)]
pub(crate) struct Gpt {
    pub(crate) sector: SectorSize,
    pub(crate) header: Header,
    pub(crate) partitions: Vec<GptPartition>,
    /// The entries, as they lie.
    pub(super) array: Vec<u8>,
}

impl Header {
    /// The disk's GUID as text.
    pub(crate) fn disk_guid(&self) -> String {
        guid_text(self.disk_guid)
    }

    /// The length of the entries, not rounded to sectors.
    fn array_len(&self) -> u64 {
        u64::from(self.entry_count) * u64::from(self.entry_size)
    }

    /// How many sectors the entries fill.
    pub(super) fn array_sectors(&self, sector: SectorSize) -> u64 {
        self.array_len().div_ceil(sector.bytes())
    }

    /// The header's sector as it reads with the fields that say where it lies and where the others do.
    pub(super) fn sealed(&self) -> Vec<u8> {
        let mut sector = self.sector.clone();
        let mut put = |at: usize, value: u64| sector[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(24, self.my_lba);
        put(32, self.other_lba);
        put(40, self.first_usable);
        put(48, self.last_usable);
        put(72, self.array_lba);
        let crc = header_crc(&sector);
        sector[16..20].copy_from_slice(&crc.to_le_bytes());
        sector
    }

    fn parse(sector: Vec<u8>, lba: u64) -> Result<Self, GptFault> {
        if !sector.starts_with(SIGNATURE) {
            return Err(GptFault::Absent { lba });
        }
        let u32_at = |at| le32(&sector, at).expect("a sector holds a header");
        let u64_at = |at| le64(&sector, at).expect("a sector holds a header");
        if u32_at(8) != REVISION_1_0 {
            return Err(GptFault::Revision(u32_at(8)));
        }
        // UEFI allows more; nobody writes it, and gptman and sgdisk know 92 alone.
        if u32_at(12) != HEADER_SIZE {
            return Err(GptFault::HeaderSize(u32_at(12)));
        }
        if u32_at(16) != header_crc(&sector) {
            return Err(GptFault::HeaderChecksum);
        }
        if u64_at(24) != lba {
            return Err(GptFault::Displaced { lies: lba, says: u64_at(24) });
        }
        Ok(Self {
            my_lba: lba,
            other_lba: u64_at(32),
            first_usable: u64_at(40),
            last_usable: u64_at(48),
            disk_guid: array(&sector, 56).expect("a sector holds a header"),
            array_lba: u64_at(72),
            entry_count: u32_at(80),
            entry_size: u32_at(84),
            array_crc: u32_at(88),
            sector,
        })
    }

    /// Where the entries lie, once every number that leads there has been checked.
    fn array_range(&self, sector: SectorSize) -> Result<ByteRange, GptFault> {
        let size_is_right = self.entry_size >= ENTRY_SIZE && self.entry_size.is_multiple_of(ENTRY_SIZE);
        if !size_is_right || !(1..=MAX_ENTRIES).contains(&self.entry_count) || self.array_len() > MAX_READ {
            return Err(GptFault::Entries { count: self.entry_count, size: self.entry_size });
        }
        let usable = GptFault::Usable { first: self.first_usable, last: self.last_usable };
        let byte = |lba: u64| lba.checked_mul(sector.bytes());
        let end = self.last_usable.checked_add(1).and_then(byte);
        let (Some(first), Some(end)) = (byte(self.first_usable), end) else { return Err(usable) };
        if first >= end || (self.first_usable..=self.last_usable).contains(&self.my_lba) {
            return Err(usable);
        }
        let place = GptFault::ArrayPlace { lba: self.array_lba };
        let Some(start) = byte(self.array_lba) else { return Err(place) };
        let Some(len) = start.checked_add(self.array_len()).map(|_| self.array_len()) else {
            return Err(place);
        };
        let range = ByteRange::new(start, len);
        // A header that was read lies at an offset that fits.
        let header = ByteRange::new(self.my_lba * sector.bytes(), sector.bytes());
        let overlaps = [ByteRange::between(first, end), header].map(|other| range.intersection(other));
        if self.array_lba < 2 || overlaps.iter().any(Option::is_some) {
            return Err(place);
        }
        Ok(range)
    }
}

/// The header at sector `lba` alone, its checksum and place checked, its entries not looked at.
pub(super) fn read_header(disk: &dyn ReadBytes, sector: SectorSize, lba: u64) -> Result<Header, GptFault> {
    let offset = lba.checked_mul(sector.bytes()).ok_or(GptFault::Absent { lba })?;
    let bytes = bytes::read(disk, offset, sector.bytes())?.ok_or(GptFault::Absent { lba })?;
    Header::parse(bytes, lba)
}

/// The copy whose header lies at sector `lba`: 1 for the first, the last for the backup.
pub(crate) fn read(disk: &dyn ReadBytes, sector: SectorSize, lba: u64) -> Result<Gpt, GptFault> {
    let header = read_header(disk, sector, lba)?;
    let range = header.array_range(sector)?;
    let array = bytes::read(disk, range.start(), range.len())?
        .ok_or(GptFault::ArrayPlace { lba: header.array_lba })?;
    if crc32(&array) != header.array_crc {
        return Err(GptFault::ArrayChecksum);
    }
    let partitions = partitions(&header, sector, &array)?;
    Ok(Gpt { sector, header, partitions, array })
}

/// The first valid copy on a disk: the first GPT by both sector sizes, then the backup at the end.
pub(crate) fn find(disk: &dyn ReadBytes) -> io::Result<Option<Gpt>> {
    let first = SectorSize::ALL.map(|sector| (sector, 1));
    let backup = SectorSize::ALL.map(|sector| (sector, last_lba(disk, sector)));
    for (sector, lba) in first.into_iter().chain(backup) {
        match read(disk, sector, lba) {
            Ok(gpt) => return Ok(Some(gpt)),
            Err(GptFault::Read(error)) => return Err(error),
            Err(_) => {}
        }
    }
    Ok(None)
}

/// Where a disk's partition table lies: both copies of a GPT as far as they are valid, else an MBR; in order.
pub(crate) fn table_places(disk: &dyn ReadBytes) -> io::Result<Vec<ByteRange>> {
    for sector in SectorSize::ALL {
        let copy = |lba| match read(disk, sector, lba) {
            Err(GptFault::Read(error)) => Err(error),
            copy => Ok(copy.ok()),
        };
        let Some(first) = copy(1)? else { continue };
        let array = |gpt: &Gpt| {
            let start = gpt.header.array_lba * sector.bytes();
            ByteRange::new(start, gpt.header.array_sectors(sector) * sector.bytes())
        };
        let mut places = vec![ByteRange::between(0, 2 * sector.bytes()), array(&first)];
        if let Some(backup) = copy(first.header.other_lba)? {
            places.extend([
                array(&backup),
                ByteRange::new(backup.header.my_lba * sector.bytes(), sector.bytes()),
            ]);
        }
        return Ok(places);
    }
    Ok(super::mbr::read(disk)?.map(|_| ByteRange::new(0, 512)).into_iter().collect())
}

/// The number of the last whole sector; 0 on a disk without one.
/// How long a disk is by the first GPT that it has: its last sector holds the backup.
pub(crate) fn told_size(disk: &dyn ReadBytes) -> io::Result<Option<u64>> {
    for sector in SectorSize::ALL {
        match read_header(disk, sector, 1) {
            Ok(header) => {
                let sectors = header.other_lba.checked_add(1);
                return Ok(sectors.and_then(|sectors| sectors.checked_mul(sector.bytes())));
            }
            Err(GptFault::Read(error)) => return Err(error),
            Err(_) => {}
        }
    }
    Ok(None)
}

pub(super) fn last_lba(disk: &dyn ReadBytes, sector: SectorSize) -> u64 {
    (disk.size() / sector.bytes()).saturating_sub(1)
}

fn partitions(header: &Header, sector: SectorSize, array: &[u8]) -> Result<Vec<GptPartition>, GptFault> {
    let entry_size = usize::try_from(header.entry_size).expect("an entry is at most a megabyte");
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(array.chunks_exact(entry_size)) {
        let guid_at = |at| bytes::array::<16>(entry, at).expect("an entry has 128 bytes");
        if guid_at(0) == [0; 16] {
            continue;
        }
        let u64_at = |at| le64(entry, at).expect("an entry has 128 bytes");
        let (first, last) = (u64_at(32), u64_at(40));
        if first < header.first_usable || last > header.last_usable || first > last {
            return Err(GptFault::Partition { number });
        }
        partitions.push(GptPartition {
            number,
            type_guid: guid_text(guid_at(0)),
            guid: guid_text(guid_at(16)),
            name: name(&entry[56..128]),
            attributes: u64_at(48),
            // The end of the usable sectors was seen to fit.
            range: ByteRange::between(first * sector.bytes(), (last + 1) * sector.bytes()),
        });
    }
    Ok(partitions)
}

fn name(field: &[u8]) -> String {
    let units = field.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

fn header_crc(sector: &[u8]) -> u32 {
    let mut header = sector[..92].to_vec();
    header[16..20].fill(0);
    crc32(&header)
}

/// CRC-32 as Ethernet and UEFI 5.3.1 have it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::super::samples::{MIB, forge, from_sgdisk, gpt_disk};
    use super::*;

    #[test]
    fn the_table_that_sgdisk_made_is_read_with_its_numbers() {
        let gpt = read(&from_sgdisk(), SectorSize::B512, 1).unwrap();
        assert_eq!(gpt.header.disk_guid(), "5f1d0c9e-5a3b-4c53-9d8b-0c0f9f6f2b11");
        let expected = [
            (1, "0fc63daf-8483-4772-8e79-3d69d8477de4", 1, "root", 8192, 16350),
            (14, "21686148-6449-6e6f-744e-656564454649", 14, "", 2048, 4095),
            (15, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", 15, "ESP", 4096, 8191),
        ];
        for (found, (number, type_guid, id, name, first, last)) in gpt.partitions.iter().zip(expected) {
            let range = ByteRange::between(first * 512, (last + 1) * 512);
            let guid = format!("0d1c5b52-7b4e-4a57-8d0f-0000000000{id:02}");
            let (name, type_guid) = (name.to_owned(), type_guid.to_owned());
            assert_eq!(*found, GptPartition { number, type_guid, guid, name, attributes: 0, range });
        }
        assert_eq!(gpt.partitions.len(), 3);
    }

    #[test]
    fn both_copies_are_read_for_both_sector_sizes() {
        for sector in SectorSize::ALL {
            let disk = gpt_disk(sector, 4 * MIB, &[(3, 300, 400)]);
            for lba in [1, last_lba(&disk, sector)] {
                let gpt = read(&disk, sector, lba).unwrap();
                assert_eq!(gpt.partitions[0].number, 3);
                assert_eq!(gpt.partitions[0].name, "part 3");
                assert_eq!(gpt.partitions[0].range.start(), 300 * sector.bytes());
                assert_eq!(gpt.partitions[0].attributes, 4);
                assert_eq!(gpt.header.sealed(), gpt.header.sector);
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_header_and_entries_is_a_fault() {
        let good = gpt_disk(SectorSize::B512, MIB, &[(1, 64, 99)]);
        for at in (512..512 + 92).chain(1024..1024 + 300) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(read(&bad, SectorSize::B512, 1).is_err(), "byte {at}");
        }
    }

    #[test]
    fn fields_that_lead_astray_are_faults_though_the_checksum_is_right() {
        let good = gpt_disk(SectorSize::B512, MIB, &[(1, 64, 99)]);
        let huge = &u64::MAX.to_le_bytes()[..];
        let table: &[(usize, &[u8], &str)] = &[
            (24, &[2, 0], "at sector 1 says"),
            (40, huge, "usable sectors"),
            (48, huge, "usable sectors"),
            (48, &[10, 0], "usable sectors"),
            (40, &[0, 0], "usable sectors"),
            (40, &[65, 0], "partition 1"),
            (48, &[98, 0], "partition 1"),
            (72, huge, "must not"),
            (72, &[1, 0], "must not"),
            (72, &[33, 0], "must not"),
            (72, &[0, 0, 0x80, 0], "must not"),
            (80, &[0, 0], "0 entries"),
            (80, &[1, 4], "1025 entries"),
            (80, &[0xff; 4], "4294967295 entries"),
            (80, &[127, 0], "checksum"),
            (84, &[0, 0, 0, 0], "of 0 bytes"),
            (84, &[129, 0], "of 129 bytes"),
            (84, &[0, 0, 0, 0xff], "bytes"),
            (84, &[0, 1], "must not"),
        ];
        for (field, bytes, expected) in table {
            let mut bad = good.clone();
            forge(&mut bad, 512, *field, bytes);
            let fault = read(&bad, SectorSize::B512, 1).expect_err(expected).to_string();
            assert!(fault.contains(expected), "{field} {bytes:?}: {fault}");
        }
    }

    #[test]
    fn a_disk_cut_anywhere_is_a_fault_and_no_panic() {
        let good = gpt_disk(SectorSize::B4096, MIB, &[(1, 64, 99)]);
        for len in [0, 1, 511, 512, 4095, 4096, 8191, 8192, 8192 + 16383] {
            let cut = good[..len].to_vec();
            for sector in SectorSize::ALL {
                assert!(read(&cut, sector, 1).is_err(), "{len}");
                assert!(read(&cut, sector, u64::MAX).is_err(), "{len}");
            }
            assert!(find(&cut).unwrap().is_none(), "{len}");
        }
        assert!(find(&good[..8192 + 16384].to_vec()).unwrap().is_some());
    }

    #[test]
    fn the_backup_is_found_when_the_first_copy_is_gone() {
        for sector in SectorSize::ALL {
            let mut disk = gpt_disk(sector, MIB, &[(7, 64, 99)]);
            disk[..24 * 1024].fill(0);
            assert_eq!(find(&disk).unwrap().unwrap().partitions[0].number, 7);
        }
    }
}
