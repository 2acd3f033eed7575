//! Positioned writes and reads of a target, and what keeps them out of the page cache.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, FallocateFlags, OFlags};
use rustix::io::Errno;

use super::direct::Direct;
use crate::range::ByteRange;

// linux/fs.h: RWF_DONTCACHE, Linux 6.14.
const RWF_DONTCACHE: libc::c_int = 0x80;

/// How one file is written; remembers whether its file system knows uncached writes.
#[derive(Debug, Default)]
pub(crate) struct UncachedWrites {
    refused: AtomicBool,
    direct: Direct,
}

impl UncachedWrites {
    /// Writes to that file which go past the page cache wherever they are aligned: its bytes are copied once less.
    ///
    /// What of them is no whole page goes through the cache.
    pub(crate) fn past_the_cache(file: &File) -> Self {
        Self { direct: Direct::to(file, OFlags::WRONLY), ..Self::default() }
    }

    /// Writes all of `bytes` at `offset`, and lets them be on their way to the disk; no sync is made.
    pub(crate) fn write_all_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let done = self.write_past_the_cache(bytes, offset)?;
        if done == bytes.len() {
            Ok(())
        } else {
            self.write_through(file, &bytes[done..], offset + done as u64)
        }
    }

    /// Writes as many of the first bytes as can go past the page cache.
    fn write_past_the_cache(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some((direct, len)) = self.direct.part(&bytes[done..], offset + done as u64) {
            match rustix::io::pwrite(direct, &bytes[done..done + len], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) if self.direct.refuses(errno) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(done)
    }

    fn write_through(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() && !self.refused.load(Ordering::Relaxed) {
            match write_uncached(file, &bytes[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                    self.refused.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        if done < bytes.len() {
            file.write_all_at(&bytes[done..], offset + done as u64)?;
            // Write-behind: what is on its way out now need not wait for the sync at the end.
            start_writing_out(file, ByteRange::new(offset, bytes.len() as u64))?;
        }
        Ok(())
    }
}

/// Writes as many of `bytes` as the kernel takes, and asks it to drop the pages once they are on disk.
fn write_uncached(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let offset = libc::off64_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the kernel only reads the `iov_len` bytes behind `iov_base`, which `bytes` keeps alive.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, offset, RWF_DONTCACHE) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Reads into all of `buffer` but what lies behind the end of the file; returns how many bytes that is.
pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Starts writing the dirty pages of `range` out, and does not wait for it.
fn start_writing_out(file: &File, range: ByteRange) -> io::Result<()> {
    let (offset, len) = signed(range)?;
    // SAFETY: the call takes no pointer.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Drops the clean pages of `range` from the page cache, those of all of the file if it is empty; dirty ones stay.
pub(crate) fn drop_pages(file: &File, range: ByteRange) -> io::Result<()> {
    let len = std::num::NonZeroU64::new(range.len());
    Ok(rustix::fs::fadvise(file, range.start(), len, Advice::DontNeed)?)
}

/// Makes a hole of `range`; the file keeps its length.
pub(crate) fn punch_hole(file: &File, range: ByteRange) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, range.start(), range.len())?)
}

/// Makes `range` read as zero without giving its blocks back; the file keeps its length.
pub(crate) fn zero_range(file: &File, range: ByteRange) -> io::Result<()> {
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, range.start(), range.len())?)
}

fn signed(range: ByteRange) -> io::Result<(i64, i64)> {
    let too_far = |_| io::Error::from(io::ErrorKind::InvalidInput);
    Ok((i64::try_from(range.start()).map_err(too_far)?, i64::try_from(range.len()).map_err(too_far)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::aligned::PageBuffer;

    #[test]
    fn a_write_past_the_cache_leaves_its_bytes_wherever_it_begins_and_from_whatever_memory() {
        let bytes: Vec<u8> = (0..50_000_u32).map(|at| (at % 251).to_le_bytes()[0]).collect();
        // Of what a store refuses, nothing is lost either: some in memory do.
        for folder in ["/dev/shm", "/var/tmp"] {
            for shifted in [0, 8] {
                let file = tempfile::tempfile_in(folder).unwrap();
                let writes = UncachedWrites::past_the_cache(&file);
                let mut memory = PageBuffer::default();
                // In no order, and no two in one page at once.
                for (start, end) in
                    [(20_480, 45_904), (0, 8192), (45_904, 50_000), (8192, 8692), (8692, 20_480)]
                {
                    let buffer = &mut memory.resized(end - start + shifted)[shifted..];
                    buffer.copy_from_slice(&bytes[start..end]);
                    writes.write_all_at(&file, buffer, start as u64).unwrap();
                }
                let mut found = vec![0; bytes.len() + 1];
                assert_eq!(read_up_to(&file, &mut found, 0).unwrap(), bytes.len(), "in {folder}");
                assert!(found[..bytes.len()] == bytes, "in {folder}, memory shifted by {shifted}");
            }
        }
    }
}
