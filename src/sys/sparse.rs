//! Where a file's holes are.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// The offset of the first byte at or behind `offset` that is not in a hole, if there is one.
pub(crate) fn next_data(file: BorrowedFd<'_>, offset: u64) -> io::Result<Option<u64>> {
    found(seek(file, SeekFrom::Data(offset)))
}

/// The offset of the first byte at or behind `offset` that is in a hole; the file's end counts as one.
pub(crate) fn next_hole(file: BorrowedFd<'_>, offset: u64) -> io::Result<Option<u64>> {
    found(seek(file, SeekFrom::Hole(offset)))
}

/// The file's or the block device's length.
pub(crate) fn end(file: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(seek(file, SeekFrom::End(0))?)
}

fn found(result: Result<u64, Errno>) -> io::Result<Option<u64>> {
    match result {
        Ok(offset) => Ok(Some(offset)),
        // lseek(2): no data, or no byte at all, behind the offset.
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
