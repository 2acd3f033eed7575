//! Positioned writes and reads of a target, and what keeps them out of the page cache.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, FallocateFlags};

use crate::range::ByteRange;

// linux/fs.h: RWF_DONTCACHE, Linux 6.14.
const RWF_DONTCACHE: libc::c_int = 0x80;

/// How one file is written; remembers whether its file system knows uncached writes.
#[derive(Debug, Default)]
pub(crate) struct UncachedWrites {
    refused: AtomicBool,
}

impl UncachedWrites {
    /// Writes all of `bytes` at `offset`, and lets them be on their way to the disk; no sync is made.
    pub(crate) fn write_all_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
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
