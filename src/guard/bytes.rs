//! An open disk's bytes, for those who read tables and labels or compute a digest.

use std::fs::File;
use std::io;

use crate::layout::ReadBytes;
use crate::range::ByteRange;
use crate::sys::aligned::AlignedBuffer;
use crate::sys::store;

/// O_DIRECT wants offsets and lengths in multiples of this, on every store that we know.
const BLOCK: u64 = 4096;

/// The disk that an open file describes, where the file is not the disk itself.
pub(crate) struct Inside {
    /// The disk's size in bytes.
    pub(crate) size: u64,
    /// Its bytes, where they can be read.
    pub(crate) bytes: Option<Box<dyn ReadBytes + Send + Sync>>,
}

/// An open disk's bytes; the descriptor may be one of O_DIRECT.
pub(crate) struct OpenBytes<'a> {
    pub(super) file: &'a File,
    pub(super) size: u64,
}

impl ReadBytes for OpenBytes<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        let start = range.start() - range.start() % BLOCK;
        let index = |bytes: u64| usize::try_from(bytes).map_err(io::Error::other);
        let (from, to) = (index(range.start() - start)?, index(range.end() - start)?);
        let mut blocks = AlignedBuffer::zeroed(to.next_multiple_of(index(BLOCK)?).max(1))?;
        if store::read_up_to(self.file, &mut blocks, start)? < to {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer[..to - from].copy_from_slice(&blocks[from..to]);
        Ok(())
    }
}
