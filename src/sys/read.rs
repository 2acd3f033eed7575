//! Positioned reads that leave no page-cache pages behind.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::direct::{self, Direct};

/// `RWF_DONTCACHE` of `<linux/fs.h>` (Linux 6.14): pages that this read brings in are dropped again, pages
/// that were there before stay.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// How one file is read; remembers whether its file system knows uncached reads.
#[derive(Debug, Default)]
pub(crate) struct UncachedReads {
    refused: AtomicBool,
    direct: Direct,
}

impl UncachedReads {
    /// Reads of that file which go past the page cache wherever they are aligned: its bytes are copied once less.
    pub(crate) fn past_the_cache(file: &File) -> Self {
        Self { direct: Direct::to(file, OFlags::RDONLY), ..Self::default() }
    }

    /// Fills the whole buffer from `offset` on; the file's end is an error.
    pub(crate) fn read_exact_at(
        &self,
        file: BorrowedFd<'_>,
        mut buffer: &mut [u8],
        mut offset: u64,
    ) -> io::Result<()> {
        while !buffer.is_empty() {
            let direct = self.direct.part(buffer, offset);
            let read = match direct {
                Some((direct, len)) => rustix::io::pread(direct, &mut buffer[..len], offset),
                None => self.read_at(file, buffer, offset),
            };
            let count = match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(errno) if direct.is_some() && self.direct.refuses(errno) => continue,
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

/// Opens an open file once more, to be read past the page cache.
pub(crate) fn reopen_direct(file: &File) -> rustix::io::Result<File> {
    direct::reopen(file, OFlags::RDONLY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    use crate::sys::aligned::PageBuffer;

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

    #[test]
    fn a_read_past_the_cache_gives_the_files_bytes_wherever_it_begins_and_in_whatever_memory() {
        let bytes: Vec<u8> = (0..50_000_u32).map(|at| (at % 251).to_le_bytes()[0]).collect();
        // Of what a store refuses, nothing is lost either: some in memory do.
        for folder in ["/dev/shm", "/var/tmp"] {
            let mut file = tempfile::tempfile_in(folder).unwrap();
            file.write_all(&bytes).unwrap();
            let reads = UncachedReads::past_the_cache(&file);
            let mut memory = PageBuffer::default();
            for (offset, len) in [(0, 8192), (4096, 45_904), (0, 50_000), (512, 8192), (49_152, 848), (9, 1)]
            {
                for shifted in [0, 8] {
                    let buffer = &mut memory.resized(len + shifted)[shifted..];
                    buffer.fill(0);
                    reads.read_exact_at(file.as_fd(), buffer, offset).unwrap();
                    let start = usize::try_from(offset).unwrap();
                    assert_eq!(buffer, &bytes[start..start + len], "{len} bytes at {offset} in {folder}");
                }
            }
            let across = reads.read_exact_at(file.as_fd(), memory.resized(4096), 49_152);
            assert_eq!(across.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
