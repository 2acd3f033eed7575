//! An image and a disk as the layout room sees them: bytes.

use std::io;

use crate::image::{Decoder, ExtentKind, Image};
use crate::layout::ReadBytes;
use crate::range::ByteRange;
use crate::sys::aligned::AlignedBuffer;
use crate::target::{Disk, TargetError};

/// The virtual disk of an image.
pub(crate) struct ImageBytes<'a>(pub(crate) &'a dyn Image);

impl ReadBytes for ImageBytes<'_> {
    fn size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        let mut decoder = Decoder::default();
        let mut at = range.start();
        while at < range.end() {
            let extents = self.0.map(ByteRange::between(at, range.end())).map_err(io::Error::other)?;
            let end = extents.last().ok_or(io::ErrorKind::UnexpectedEof)?.range.end();
            let place = |offset: u64| usize::try_from(offset - range.start()).expect("it is in memory");
            self.0
                .read(&extents, &mut buffer[place(at)..place(end)], &mut decoder)
                .map_err(io::Error::other)?;
            at = end;
        }
        Ok(())
    }
}

/// The virtual disk of an image, as a disk that is compared.
pub(crate) struct ImageDisk(pub(crate) Box<dyn Image>);

impl Disk for ImageDisk {
    fn size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn sector_size(&self) -> u32 {
        1
    }

    fn read(&self, range: ByteRange, buffer: &mut [u8]) -> Result<(), TargetError> {
        let len = usize::try_from(range.len()).expect("it is in memory");
        ImageBytes(self.0.as_ref())
            .read_at(range, &mut buffer[..len])
            .map_err(TargetError::when("reading", range))
    }

    fn next_data(&self, offset: u64) -> Result<Option<ByteRange>, TargetError> {
        let (mut at, end) = (offset, self.size());
        let failed = |fault| TargetError::new("looking for what is stored", None, io::Error::other(fault));
        while at < end {
            let extents = self.0.map(ByteRange::between(at, end)).map_err(failed)?;
            if let Some(extent) = extents.iter().find(|extent| extent.kind != ExtentKind::Zero) {
                return Ok(Some(extent.range));
            }
            at = extents.last().map_or(end, |extent| extent.range.end());
        }
        Ok(None)
    }
}

/// The virtual disk of an image, as far as it is at hand; what is not reads as zeroes.
pub(crate) struct Glimpse<'a>(pub(crate) &'a dyn Image);

impl ReadBytes for Glimpse<'_> {
    fn size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        if self.0.is_at_hand(range) {
            return ImageBytes(self.0).read_at(range, buffer);
        }
        buffer.fill(0);
        Ok(())
    }
}

/// A disk that can be read.
pub(crate) struct DiskBytes<'a>(pub(crate) &'a dyn Disk);

impl ReadBytes for DiskBytes<'_> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        let len = usize::try_from(range.len()).map_err(io::Error::other)?;
        // Room for the whole sectors at both ends.
        let mut aligned = AlignedBuffer::zeroed(len + 2 * 4096)?;
        self.0.read(range, &mut aligned).map_err(io::Error::other)?;
        buffer[..len].copy_from_slice(&aligned[..len]);
        Ok(())
    }
}
