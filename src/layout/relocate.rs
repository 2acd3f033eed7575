//! The backup GPT at the end of a larger disk: what `sgdisk -e` would write, as patches.
//!
//! Numbers, GUIDs and entries stay as they are; so do boot code, disk signature and a hybrid MBR. A table
//! that is not understood is an error and no guess: `--gpt keep` leaves it as the image has it.

use super::bytes::{ReadBytes, le32};
use super::gpt::{self, Gpt, GptFault, Header};
use super::sector::SectorSize;
use super::{LayoutError, NotRelocatable, mbr};
use crate::range::ByteRange;

/// Bytes that the target gets in place of what the image (and zeroes behind it) would give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    pub(crate) range: ByteRange,
    pub(crate) bytes: Vec<u8>,
}

/// Overlays what the patches change onto `bytes`, which are the disk's bytes at `range`.
pub(crate) fn apply(patches: &[Patch], range: ByteRange, bytes: &mut [u8]) {
    for patch in patches {
        overlay((patch.range, &patch.bytes), range, bytes);
    }
}

/// Copies what two ranges of a disk share from the bytes of one to those of the other.
pub(crate) fn overlay((from, source): (ByteRange, &[u8]), range: ByteRange, bytes: &mut [u8]) {
    let Some(common) = range.intersection(from) else { return };
    let place = |start: u64| {
        let at = usize::try_from(common.start() - start).expect("both lie in memory");
        at..at + usize::try_from(common.len()).expect("both lie in memory")
    };
    bytes[place(range.start())].copy_from_slice(&source[place(from.start())]);
}

/// What has to be different on the target, and why.
#[derive(Debug)]
pub(crate) struct Relocation {
    /// In order of their offsets; they do not overlap.
    pub(crate) patches: Vec<Patch>,
    pub(crate) outcome: Outcome,
}

/// What became of the backup GPT.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The image has no GPT.
    NoGpt,
    /// It lies at the target's end already.
    InPlace,
    /// It goes to the target's end.
    Moved {
        /// Where its header lies in the image, or should.
        from: u64,
        /// Entries and header at the target's end.
        to: ByteRange,
        /// What the image has there.
        image_backup: ImageBackup,
    },
}

/// What an image has where its first GPT says that the backup lies.
#[derive(Debug)]
pub(crate) enum ImageBackup {
    /// The same table.
    Same,
    /// Another valid table; the first one counts.
    Differs,
    /// None that can be believed: the image was cut short, grown, or damaged.
    Unusable(GptFault),
}

/// What `target_size` bytes need, so that the image's backup GPT lies at their end.
///
/// # Errors
///
/// When the target has no whole number of sectors or no room, or when the image's GPT cannot be moved without
/// guessing: damaged first copy, entries elsewhere than in sector 2.
pub(crate) fn relocate(
    image: &dyn ReadBytes,
    target_size: u64,
    sector: SectorSize,
) -> Result<Relocation, LayoutError> {
    if target_size < image.size() {
        return Err(LayoutError::TooSmall { needed: image.size(), size: target_size });
    }
    let unchanged = |outcome| Ok(Relocation { patches: Vec::new(), outcome });
    if target_size == image.size() {
        // The image is the disk: it reads back as it is.
        return unchanged(Outcome::InPlace);
    }
    let Some(first) = first_copy(image, sector)? else { return unchanged(Outcome::NoGpt) };
    if !target_size.is_multiple_of(sector.bytes()) {
        return Err(LayoutError::PartialSector { size: target_size, sector: sector.bytes() });
    }
    let moved = moved_headers(&first, target_size / sector.bytes())?;
    if first.header.other_lba == moved.first.other_lba
        && matches!(image_backup(image, &first)?, ImageBackup::Same)
    {
        return unchanged(Outcome::InPlace);
    }
    let to = ByteRange::between(moved.backup.array_lba * sector.bytes(), target_size);
    let mut patches = Vec::from_iter(protective_mbr(image, target_size / sector.bytes())?);
    let first_sector = moved.first.sealed();
    patches.push(Patch { range: ByteRange::new(sector.bytes(), sector.bytes()), bytes: first_sector });
    let mut bytes = first.array.clone();
    let header_at = usize::try_from(to.len() - sector.bytes()).expect("a GPT is at most a megabyte");
    bytes.resize(header_at, 0);
    bytes.extend(moved.backup.sealed());
    patches.push(Patch { range: to, bytes });
    let from = first.header.other_lba.saturating_mul(sector.bytes());
    let image_backup = image_backup(image, &first)?;
    Ok(Relocation { patches, outcome: Outcome::Moved { from, to, image_backup } })
}

/// The image's first GPT; `None` when it has no GPT at all.
fn first_copy(image: &dyn ReadBytes, sector: SectorSize) -> Result<Option<Gpt>, LayoutError> {
    let fault = match gpt::read(image, sector, 1) {
        Ok(gpt) if gpt.header.array_lba == 2 => return Ok(Some(gpt)),
        Ok(gpt) => {
            let lba = gpt.header.array_lba;
            return Err(LayoutError::NotRelocatable(NotRelocatable::ArrayElsewhere { lba }));
        }
        Err(GptFault::Read(error)) => return Err(error.into()),
        Err(fault) => fault,
    };
    let protected = mbr::read(image)?.is_some_and(|mbr| mbr.is_protective());
    if matches!(fault, GptFault::Absent { .. }) && !protected {
        // At most a backup that an earlier table left behind; nobody goes by it.
        return Ok(None);
    }
    let last = gpt::last_lba(image, sector);
    let backup = gpt::read(image, sector, last);
    let fault = match (fault, backup) {
        (_, Err(GptFault::Read(error))) => return Err(error.into()),
        (fault, Ok(_)) if last != 1 => GptFault::OnlyBackup(Box::new(fault)),
        (GptFault::Absent { .. }, _) => return Ok(None),
        (fault, _) => fault,
    };
    Err(LayoutError::NotRelocatable(fault.into()))
}

struct Moved {
    first: Header,
    backup: Header,
}

/// Both headers on a disk of `sectors`; everything but the places stays.
fn moved_headers(gpt: &Gpt, sectors: u64) -> Result<Moved, LayoutError> {
    let header = &gpt.header;
    let array_sectors = header.array_sectors(gpt.sector);
    let used_end = gpt.partitions.iter().map(|partition| partition.range.end()).max();
    let used_sectors = used_end.map_or(header.first_usable, |end| end / gpt.sector.bytes());
    let needed = used_sectors.max(header.first_usable + 1) + array_sectors + 1;
    if sectors < needed {
        let needed = needed.saturating_mul(gpt.sector.bytes());
        return Err(LayoutError::TooSmall { needed, size: sectors * gpt.sector.bytes() });
    }
    let last = sectors - 1;
    let last_usable = last - array_sectors - 1;
    let mut first = header.clone();
    (first.other_lba, first.last_usable) = (last, last_usable);
    let mut backup = first.clone();
    (backup.my_lba, backup.other_lba, backup.array_lba) = (last, 1, last_usable + 1);
    Ok(Moved { first, backup })
}

/// What lies where the first copy says that the backup lies.
fn image_backup(image: &dyn ReadBytes, first: &Gpt) -> Result<ImageBackup, LayoutError> {
    match gpt::read(image, first.sector, first.header.other_lba) {
        Ok(backup)
            if backup.array == first.array && backup.header.disk_guid() == first.header.disk_guid() =>
        {
            Ok(ImageBackup::Same)
        }
        Ok(_) => Ok(ImageBackup::Differs),
        Err(GptFault::Read(error)) => Err(error.into()),
        Err(fault) => Ok(ImageBackup::Unusable(fault)),
    }
}

/// The size in the record that protects the whole disk, if it says another.
fn protective_mbr(image: &dyn ReadBytes, sectors: u64) -> Result<Option<Patch>, LayoutError> {
    let Some(at) = mbr::read(image)?.and_then(|mbr| mbr.lone_protective_size_at()) else { return Ok(None) };
    let Some(old) = super::bytes::read(image, at, 4)? else { return Ok(None) };
    // UEFI 5.2.3: all ones when the size cannot be written in 32 bits.
    let size = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    let patch = Patch { range: ByteRange::new(at, 4), bytes: size.to_le_bytes().to_vec() };
    Ok((le32(&old, 0) != Some(size)).then_some(patch))
}

#[cfg(test)]
mod tests {
    use super::super::samples::{MIB, forge, from_sgdisk, gpt_disk, moved_by_sgdisk};
    use super::*;

    const SECTOR: u64 = 512;

    /// The image, zeroes up to `size`, and the patches on top.
    fn applied(image: &[u8], size: u64, relocation: &Relocation) -> Vec<u8> {
        let mut disk = image.to_vec();
        disk.resize(usize::try_from(size).unwrap(), 0);
        for patch in &relocation.patches {
            assert_eq!(patch.range.len(), u64::try_from(patch.bytes.len()).unwrap());
            let at = usize::try_from(patch.range.start()).unwrap();
            disk[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
        }
        disk
    }

    #[test]
    fn the_moved_table_is_the_one_that_sgdisk_makes() {
        let image = from_sgdisk();
        let moved = relocate(&image, 16 * MIB, SectorSize::B512).unwrap();
        let disk = applied(&image, 16 * MIB, &moved);
        let (head, tail) = moved_by_sgdisk();
        assert_eq!(&disk[512..head.len()], &head[512..]);
        assert_eq!(&disk[disk.len() - tail.len()..], tail);
        // sgdisk zeroes the disk signature and counts cylinders anew; neither is its business.
        assert_eq!(&disk[..451], &image[..451]);
        assert_eq!(&disk[454..512], &head[454..512]);
        assert!(matches!(moved.outcome, Outcome::Moved { image_backup: ImageBackup::Same, .. }));
    }

    #[test]
    fn every_larger_size_gets_both_copies_and_loses_no_partition() {
        for sector in SectorSize::ALL {
            let unit = sector.bytes();
            let image = gpt_disk(sector, 2 * MIB, &[(1, 100, 200), (14, 40, 50), (15, 60, 70)]);
            let before = gpt::read(&image, sector, 1).unwrap();
            for more in [1, 2, 5, 32, 33, 34, 66, 2048] {
                let size = 2 * MIB + more * unit;
                let disk = applied(&image, size, &relocate(&image, size, sector).unwrap());
                let last = size / unit - 1;
                let first = gpt::read(&disk, sector, 1).unwrap();
                let backup = gpt::read(&disk, sector, last).unwrap();
                assert_eq!((&first.partitions, &backup.partitions), (&before.partitions, &before.partitions));
                assert_eq!((first.header.other_lba, backup.header.other_lba), (last, 1));
                assert_eq!(first.header.first_usable, before.header.first_usable);
                assert_eq!(first.header.last_usable + 1, backup.header.array_lba);
                assert_eq!(backup.header.array_lba + backup.header.array_sectors(sector), last);
                let size_field = u32::from_le_bytes(disk[458..462].try_into().unwrap());
                assert_eq!(u64::from(size_field), last);
                assert_eq!(&disk[..458], &image[..458], "boot code and disk signature stay");
            }
        }
    }

    #[test]
    fn nothing_is_done_where_there_is_nothing_to_do() {
        let image = gpt_disk(SectorSize::B512, MIB, &[(1, 64, 99)]);
        let no_gpt = vec![0; 512 * 100];
        let mut grown = image.clone();
        grown.resize(image.len() * 2, 0);
        let kept = applied(&image, 2 * MIB, &relocate(&image, 2 * MIB, SectorSize::B512).unwrap());
        for (image, size) in [(&image, MIB), (&no_gpt, MIB), (&grown, 2 * MIB), (&kept, 2 * MIB)] {
            assert!(relocate(image, size, SectorSize::B512).unwrap().patches.is_empty(), "{size}");
        }
        // A size that no table needs may be anything.
        assert!(matches!(relocate(&no_gpt, 51_201, SectorSize::B512).unwrap().outcome, Outcome::NoGpt));
    }

    #[test]
    fn an_image_that_lost_its_backup_gets_one_and_the_loss_is_said() {
        let whole = gpt_disk(SectorSize::B512, MIB, &[(1, 64, 99)]);
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() = 1;
        damaged[usize::try_from(MIB - 512).unwrap() + 20] = 1;
        for image in [whole[..100 * 512].to_vec(), whole[..100 * 512 + 7].to_vec(), damaged] {
            let moved = relocate(&image, 2 * MIB, SectorSize::B512).unwrap();
            let Outcome::Moved { from, image_backup: ImageBackup::Unusable(_), .. } = moved.outcome else {
                panic!("{:?}", moved.outcome)
            };
            assert_eq!(from, MIB - 512);
            assert!(gpt::read(&applied(&image, 2 * MIB, &moved), SectorSize::B512, 4095).is_ok());
        }
        // Cut short, and the target has just the size that the disk once had.
        let short = whole[..100 * 512].to_vec();
        let moved = relocate(&short, MIB, SectorSize::B512).unwrap();
        assert_eq!(applied(&short, MIB, &moved), whole);
    }

    #[test]
    fn another_table_in_the_backup_does_not_count_and_is_said() {
        let mut image = gpt_disk(SectorSize::B512, MIB, &[(1, 64, 99)]);
        let other = gpt_disk(SectorSize::B512, MIB, &[(2, 64, 99)]);
        let tail = image.len() - 33 * 512;
        image[tail..].copy_from_slice(&other[tail..]);
        let moved = relocate(&image, 2 * MIB, SectorSize::B512).unwrap();
        assert!(matches!(moved.outcome, Outcome::Moved { image_backup: ImageBackup::Differs, .. }));
        let disk = applied(&image, 2 * MIB, &moved);
        assert_eq!(gpt::read(&disk, SectorSize::B512, 4095).unwrap().partitions[0].number, 1);
    }

    #[track_caller]
    fn check_refused(image: &Vec<u8>, size: u64, kind: crate::ErrorKind, expected: &str) {
        let error = relocate(image, size, SectorSize::B512).expect_err(expected);
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(format!("{error}: {cause}").contains(expected), "{error}: {cause}");
        assert_eq!(error.kind(), kind);
    }

    #[test]
    fn a_table_that_is_not_understood_is_refused_and_not_guessed() {
        use crate::ErrorKind::{DoesNotFit, Image};
        let good = gpt_disk(SectorSize::B512, MIB, &[(1, 64, 99)]);
        let mut damaged = good.clone();
        damaged[600] ^= 1;
        check_refused(&damaged, 2 * MIB, Image, "only its backup");
        let mut gone = good.clone();
        gone[512..2048].fill(0);
        check_refused(&gone, 2 * MIB, Image, "only its backup");
        // Without the record that says GPT, a backup at the end is a left-over.
        gone[450] = 0x83;
        assert!(matches!(relocate(&gone, 2 * MIB, SectorSize::B512).unwrap().outcome, Outcome::NoGpt));
        let mut both = damaged.clone();
        both[usize::try_from(MIB - 512).unwrap() + 20] ^= 1;
        check_refused(&both, 2 * MIB, Image, "checksum");
        let mut elsewhere = gpt_disk(SectorSize::B512, MIB, &[(1, 64, 99)]);
        elsewhere.copy_within(1024..1024 + 16384, 1536);
        forge(&mut elsewhere, 512, 72, &[3, 0]);
        forge(&mut elsewhere, 512, 40, &[36, 0]);
        check_refused(&elsewhere, 2 * MIB, Image, "sector 3 instead of 2");
        check_refused(&good, 2 * MIB + 1, DoesNotFit, "no whole number");
        check_refused(&good, MIB - 512, DoesNotFit, "need 1048576 bytes");
        let short = good[..100 * 512].to_vec();
        check_refused(&short, 132 * SECTOR, DoesNotFit, "need 68096 bytes");
        assert!(relocate(&short, 133 * SECTOR, SectorSize::B512).is_ok());
    }

    #[test]
    fn records_beside_the_protective_one_stay() {
        let mut hybrid = gpt_disk(SectorSize::B512, MIB, &[(1, 64, 99)]);
        hybrid[446 + 16 + 4] = 0x0c;
        hybrid[446 + 16 + 8..446 + 16 + 16].copy_from_slice(&[64, 0, 0, 0, 36, 0, 0, 0]);
        let moved = relocate(&hybrid, 2 * MIB, SectorSize::B512).unwrap();
        assert_eq!(applied(&hybrid, 2 * MIB, &moved)[..512], hybrid[..512]);
    }
}
