//! Open-file-description locks on single bytes, as qemu lays them on its images.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

// qemu, block/file-posix.c (RAW_PERM_BASE, RAW_SHARED_BASE): byte 100 + n says "I use permission n", byte
// 200 + n "nobody else may have it"; n is 0 for reading, 1 for writing, 2 to 4 for rarer ones.

/// Every byte that says that a permission is used.
pub(crate) const USES: std::ops::RangeInclusive<i64> = 100..=104;
/// Somebody reads and counts on what it reads.
pub(crate) const USES_READ: i64 = 100;
/// Somebody writes.
pub(crate) const USES_WRITE: i64 = 101;
/// Every byte that says that a permission is denied to others.
pub(crate) const FORBIDS: std::ops::RangeInclusive<i64> = 200..=204;
/// Nobody else may read.
pub(crate) const FORBIDS_READ: i64 = 200;
/// Nobody else may write.
pub(crate) const FORBIDS_WRITE: i64 = 201;

/// Whether somebody else holds a lock, shared or exclusive, on that byte.
pub(crate) fn is_locked_by_others(file: BorrowedFd<'_>, byte: i64) -> io::Result<bool> {
    // An exclusive lock would conflict with every lock there is; asking for one takes none, and F_OFD_GETLK
    // does not mind that the descriptor is read-only.
    let mut lock = byte_lock(libc::F_WRLCK, byte);
    // SAFETY: the descriptor is borrowed for the call, and `lock` is a valid `struct flock` that the kernel
    // reads and writes; l_pid is 0 as F_OFD_GETLK demands.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Takes a shared lock on that byte without waiting; it lasts as long as the open file description.
pub(crate) fn lock_shared(file: BorrowedFd<'_>, byte: i64) -> io::Result<()> {
    lock(file, &byte_lock(libc::F_RDLCK, byte))
}

/// Takes that byte for this open file description alone, without waiting; the file must be open for writing.
pub(crate) fn lock_exclusive(file: BorrowedFd<'_>, byte: i64) -> io::Result<()> {
    lock(file, &byte_lock(libc::F_WRLCK, byte))
}

/// Whether this is the only open file description of a file; where the file system cannot tell, it counts as no.
pub(crate) fn is_open_here_alone(file: BorrowedFd<'_>) -> bool {
    // fcntl(2), "Leases": a write lease is given only where nobody else has the file open.
    // SAFETY: the descriptor is borrowed for the calls, which take a number and no pointer.
    let lease = |kind: libc::c_int| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    let alone = lease(libc::F_WRLCK) == 0;
    if alone {
        // A lease that stays would have others wait for us to give it up.
        lease(libc::F_UNLCK);
    }
    alone
}

fn lock(file: BorrowedFd<'_>, lock: &libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call, and `lock` is a valid `struct flock` that the kernel
    // only reads; l_pid is 0 as F_OFD_SETLK demands.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, std::ptr::from_ref(lock)) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn byte_lock(kind: libc::c_int, byte: i64) -> libc::flock {
    let short = |value| libc::c_short::try_from(value).expect("lock constants of <fcntl.h> are small");
    libc::flock { l_type: short(kind), l_whence: short(libc::SEEK_SET), l_start: byte, l_len: 1, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_shared_lock_is_seen_by_another_description_and_not_by_its_own() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let other = std::fs::File::open(file.path()).unwrap();
        lock_shared(file.as_fd(), 101).unwrap();
        assert!(is_locked_by_others(other.as_fd(), 101).unwrap());
        assert!(!is_locked_by_others(other.as_fd(), 100).unwrap());
        assert!(!is_locked_by_others(file.as_fd(), 101).unwrap());
        drop(file);
        assert!(!is_locked_by_others(other.as_fd(), 101).unwrap());
    }
}
