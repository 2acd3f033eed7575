//! Positioned reads that leave no page-cache pages behind.

use std::io::{self, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// `RWF_DONTCACHE` of `<linux/fs.h>` (Linux 6.14): pages that this read brings in are dropped again, pages
/// that were there before stay.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// How one file is read; remembers whether its file system knows uncached reads.
#[derive(Debug, Default)]
pub(crate) struct UncachedReads {
    refused: AtomicBool,
}

impl UncachedReads {
    /// Fills the whole buffer from `offset` on; the file's end is an error.
    pub(crate) fn read_exact_at(
        &self,
        file: BorrowedFd<'_>,
        mut buffer: &mut [u8],
        mut offset: u64,
    ) -> io::Result<()> {
        while !buffer.is_empty() {
            let count = match self.read_at(file, buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            buffer = &mut buffer[count..];
            offset += u64::try_from(count).expect("a buffer's length fits in 64 bits");
        }
        Ok(())
    }

    fn read_at(&self, file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
        if !self.refused.load(Ordering::Relaxed) {
            match preadv2(file, &mut [IoSliceMut::new(buffer)], offset, DONTCACHE) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                    self.refused.store(true, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        rustix::io::pread(file, buffer, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn a_read_across_the_end_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let reads = UncachedReads::default();
        let mut buffer = [0; 4];
        reads.read_exact_at(file.as_fd(), &mut buffer, 6).unwrap();
        assert_eq!(&buffer, b"6789");
        let error = reads.read_exact_at(file.as_fd(), &mut buffer, 7).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
