//! An image and a disk as the layout room sees them: bytes.

use std::io;

use crate::image::{Decoder, Image};
use crate::layout::ReadBytes;
use crate::range::ByteRange;
use crate::sys::aligned::AlignedBuffer;
use crate::target::Disk;

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
