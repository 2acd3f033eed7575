//! A file that is open a second time, past the page cache: what of a request can go that way.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// O_DIRECT wants offsets, lengths and memory at multiples of this, on every store that we know.
pub(crate) const DIRECT_ALIGNMENT: usize = 4096;

/// The way past the page cache, as long as the file's store takes it: bytes are copied once less.
#[derive(Debug, Default)]
pub(super) struct Direct {
    file: Option<File>,
    refused: AtomicBool,
}

impl Direct {
    /// Of a file that is open, for reading or for writing as `access` says.
    pub(super) fn to(file: &File, access: OFlags) -> Self {
        Self { file: reopen(file, access).ok(), refused: AtomicBool::new(false) }
    }

    /// How many of the first bytes of `memory` can go that way from or to `offset`, and through which file.
    pub(super) fn part(&self, memory: &[u8], offset: u64) -> Option<(&File, usize)> {
        let file = self.file.as_ref().filter(|_| !self.refused.load(Ordering::Relaxed))?;
        let len = memory.len() - memory.len() % DIRECT_ALIGNMENT;
        let is_aligned = offset.is_multiple_of(DIRECT_ALIGNMENT as u64)
            && memory.as_ptr().addr().is_multiple_of(DIRECT_ALIGNMENT);
        (is_aligned && len > 0).then_some((file, len))
    }

    /// Whether the store refuses such requests, which is remembered: it wants another alignment, or opens such files and
    /// does no more.
    pub(super) fn refuses(&self, errno: Errno) -> bool {
        let refuses = matches!(errno, Errno::INVAL | Errno::OPNOTSUPP);
        if refuses {
            self.refused.store(true, Ordering::Relaxed);
        }
        refuses
    }
}

/// Opens an open file once more, past the page cache.
pub(super) fn reopen(file: &File, access: OFlags) -> rustix::io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = access | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}
