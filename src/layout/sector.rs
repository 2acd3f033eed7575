//! `SectorSize`: for which sectors an image's partition table was made, and whether a device has them.

use std::io;

use super::bytes::ReadBytes;
use super::gpt::{self, GptFault};
use super::{LayoutError, mbr};

/// The logical sector sizes that partition tables are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SectorSize {
    /// 512 bytes: nearly every disk.
    B512,
    /// 4096 bytes: "4Kn" disks.
    B4096,
}

impl SectorSize {
    pub(super) const ALL: [Self; 2] = [Self::B512, Self::B4096];

    /// The size in bytes.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }
}

/// What an image's partition table is made for: told by where a valid GPT header lies.
///
/// An MBR table without a GPT counts in 512 bytes; `None` without a table.
pub(crate) fn sector_size(image: &dyn ReadBytes) -> io::Result<Option<SectorSize>> {
    for sector in SectorSize::ALL {
        match gpt::read_header(image, sector, 1) {
            Ok(_) => return Ok(Some(sector)),
            Err(GptFault::Read(error)) => return Err(error),
            Err(_) => {}
        }
    }
    Ok(mbr::read(image)?.map(|_| SectorSize::B512))
}

/// The sector size to work with when `image` is put on a device of `device_sector` bytes a sector.
///
/// A file has no sectors of its own (1): then the image's are taken. `None` when there is no table.
///
/// # Errors
///
/// When the image's table would not be found on the device, for it is made for other sectors.
pub(crate) fn fits_sector(
    image: &dyn ReadBytes,
    device_sector: u32,
) -> Result<Option<SectorSize>, LayoutError> {
    // Some images carry a GPT for either size: then the device's own decides.
    for sector in SectorSize::ALL.into_iter().filter(|sector| sector.bytes() == u64::from(device_sector)) {
        match gpt::read_header(image, sector, 1) {
            Ok(_) => return Ok(Some(sector)),
            Err(GptFault::Read(error)) => return Err(error.into()),
            Err(_) => {}
        }
    }
    match sector_size(image)? {
        Some(image) if device_sector != 1 && image.bytes() != u64::from(device_sector) => {
            Err(LayoutError::SectorSize { image: image.bytes(), device: device_sector })
        }
        found => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{MIB, gpt_disk};
    use super::*;

    fn mbr_disk() -> Vec<u8> {
        let mut disk = vec![0; 65536];
        disk[446 + 4] = 0x83;
        disk[446 + 8..446 + 16].copy_from_slice(&[8, 0, 0, 0, 8, 0, 0, 0]);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk
    }

    #[test]
    fn the_place_of_a_valid_header_tells_the_sector_size() {
        let mut damaged = gpt_disk(SectorSize::B4096, MIB, &[]);
        damaged[4096 + 60] ^= 1;
        for (disk, expected) in [
            (gpt_disk(SectorSize::B512, MIB, &[]), Some(SectorSize::B512)),
            (gpt_disk(SectorSize::B4096, MIB, &[]), Some(SectorSize::B4096)),
            (mbr_disk(), Some(SectorSize::B512)),
            (damaged[4096..].to_vec(), None),
            (vec![0; 65536], None),
            (Vec::new(), None),
        ] {
            assert_eq!(sector_size(&disk).unwrap(), expected);
        }
    }

    #[test]
    fn a_table_for_other_sectors_does_not_fit() {
        use SectorSize::{B512, B4096};
        let small = gpt_disk(B512, MIB, &[]);
        let large = gpt_disk(B4096, MIB, &[]);
        let mut both = large.clone();
        both[512..4096].copy_from_slice(&small[512..4096]);
        for (disk, device, expected) in [
            (&small, 512, Some(Some(B512))),
            (&small, 1, Some(Some(B512))),
            (&small, 4096, None),
            (&large, 4096, Some(Some(B4096))),
            (&large, 1, Some(Some(B4096))),
            (&large, 512, None),
            (&large, 2048, None),
            (&both, 512, Some(Some(B512))),
            (&both, 4096, Some(Some(B4096))),
            (&mbr_disk(), 512, Some(Some(B512))),
            (&mbr_disk(), 4096, None),
            (&vec![0; 4096], 4096, Some(None)),
        ] {
            let found = fits_sector(disk, device);
            if let Err(error) = &found {
                assert_eq!(error.kind(), crate::ErrorKind::DoesNotFit);
            }
            assert_eq!(found.ok(), expected, "{device}");
        }
    }
}
