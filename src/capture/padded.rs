//! A disk that ends within a sector, as the image of it must have it: qemu knows no part of a sector.
//!
//! qemu takes the size in a qcow2 header for so many whole sectors, and what is behind them for nothing.

use crate::image::{
    Decoder, DigestAlgorithm, Extent, ExtentKind, FileIdentity, Image, ImageError, ImageInfo, TableReport,
};
use crate::range::ByteRange;

const SECTOR: u64 = 512;

/// A disk with zeroes behind its end, up to the end of its last sector; all else is the disk's.
pub(super) struct Padded(Box<dyn Image>);

impl Padded {
    /// The disk as it is, where it ends with a sector; else with zeroes behind it, and what a person should know.
    pub(super) fn of(disk: Box<dyn Image>) -> (Box<dyn Image>, Option<String>) {
        let size = disk.virtual_size();
        if size.is_multiple_of(SECTOR) {
            return (disk, None);
        }
        let padded = Self(disk);
        let (image, zeroes) = (padded.virtual_size(), padded.virtual_size() - size);
        let warning = format!(
            "the disk has {size} bytes, which are no whole sectors: the image's disk has {image}, the last {zeroes} of \
             them zero, and a rebuild from it needs a disk of that size"
        );
        (Box::new(padded), Some(warning))
    }
}

impl Image for Padded {
    fn virtual_size(&self) -> u64 {
        // A size that cannot be rounded is larger than any that an image is made for.
        self.0.virtual_size().div_ceil(SECTOR).saturating_mul(SECTOR)
    }

    fn map(&self, range: ByteRange) -> Result<Vec<Extent>, ImageError> {
        assert!(range.end() <= self.virtual_size(), "a range to map is within the disk");
        let end = self.0.virtual_size();
        let mut extents = match range.intersection(ByteRange::new(0, end)) {
            Some(range) => self.0.map(range)?,
            None => Vec::new(),
        };
        let mapped = extents.last().map_or(range.start(), |extent| extent.range.end());
        if mapped >= end && mapped < range.end() {
            let zeroes = ByteRange::between(mapped, range.end());
            extents.push(Extent { range: zeroes, kind: ExtentKind::Zero });
        }
        Ok(extents)
    }

    fn read(&self, extents: &[Extent], buffer: &mut [u8], decoder: &mut Decoder) -> Result<(), ImageError> {
        let end = self.0.virtual_size();
        let (stored, zeroes) = extents.split_at(extents.partition_point(|extent| extent.range.start() < end));
        let zeroes: u64 = zeroes.iter().map(|extent| extent.range.len()).sum();
        let zeroes = usize::try_from(zeroes).expect("less than a sector");
        let (bytes, behind) = buffer.split_at_mut(buffer.len() - zeroes);
        behind.fill(0);
        self.0.read(stored, bytes, decoder)
    }

    fn check_tables(&self) -> Result<TableReport, ImageError> {
        self.0.check_tables()
    }

    fn info(&self) -> ImageInfo {
        self.0.info()
    }

    fn check_unchanged(&self) -> Result<(), ImageError> {
        self.0.check_unchanged()
    }

    fn identities(&self) -> Vec<FileIdentity> {
        self.0.identities()
    }

    fn read_file(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        self.0.read_file(offset, buffer)
    }

    fn file_digest(&self, algorithm: DigestAlgorithm) -> Result<[u8; 32], ImageError> {
        self.0.file_digest(algorithm)
    }
}
