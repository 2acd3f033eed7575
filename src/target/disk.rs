//! Reads what a file or a block device stores, past the page cache.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};

use super::{Disk, TargetError};
use crate::range::ByteRange;
use crate::sys::direct::DIRECT_ALIGNMENT;
use crate::sys::read::reopen_direct;
use crate::sys::{block, locks, sparse, store};

/// An open file or block device, and a second descriptor of it that reads past the page cache.
pub(crate) struct HostDisk {
    pub(crate) file: File,
    direct: Option<File>,
    size: AtomicU64,
    sector_size: u32,
    medium: Medium,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Medium {
    File,
    Device,
}

impl HostDisk {
    /// A regular file that is open already.
    pub(crate) fn of_file(file: File, size: u64) -> Self {
        let direct = reopen_direct(&file).ok();
        Self { file, direct, size: size.into(), sector_size: 1, medium: Medium::File }
    }

    /// Says how long a file is whose length was not decided when it was opened.
    pub(super) fn end_at(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    /// A block device that is open already.
    pub(crate) fn of_device(file: File, sector_size: u32) -> io::Result<Self> {
        let size = block::size(&file)?;
        let direct = match rustix::fs::fcntl_getfl(&file)?.contains(OFlags::DIRECT) {
            true => Some(file.try_clone()?),
            false => None,
        };
        Ok(Self { file, direct, size: size.into(), sector_size, medium: Medium::Device })
    }

    /// Opens `path` to be read, whatever uses it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        if metadata.is_file() {
            return Ok(Self::of_file(file, metadata.len()));
        }
        if !metadata.file_type().is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a block device nor a file"));
        }
        let sector_size = block::sector_size(&file)?;
        let mut disk = Self::of_device(file, sector_size)?;
        disk.direct = reopen_direct(&disk.file).ok();
        Ok(disk)
    }

    /// Whether another program holds all the locks on it that a run holds.
    pub(crate) fn is_locked_by_another(&self) -> bool {
        use rustix::fs::{FlockOperation, flock};
        // Asked first, because asking takes nothing: flock(2) alone would for an instant keep a run out that
        // is about to begin. A virtual machine has this lock too, but not the other.
        if !locks::is_locked_by_others(self.file.as_fd(), locks::USES_WRITE).unwrap_or(true) {
            return false;
        }
        let locked = flock(&self.file, FlockOperation::NonBlockingLockShared).is_err();
        if !locked {
            // It is given back when the file closes, too.
            let _ = flock(&self.file, FlockOperation::NonBlockingUnlock);
        }
        locked
    }

    /// Drops what the page cache holds of the disk, so that the next read is one of the store.
    pub(crate) fn drop_cache(&self) -> io::Result<()> {
        match self.medium {
            Medium::File => store::drop_pages(&self.file, ByteRange::new(0, self.size())),
            Medium::Device if self.direct.is_some() => Ok(()),
            Medium::Device => block::flush_cache(&self.file),
        }
    }
}

impl Disk for HostDisk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read(&self, range: ByteRange, buffer: &mut [u8]) -> Result<(), TargetError> {
        let failed = TargetError::when("reading", range);
        // O_DIRECT reads whole blocks: from the one that holds the first byte to the one of the last.
        let start = range.start() - range.start() % DIRECT_ALIGNMENT as u64;
        let before = to_index(range.start() - start);
        let wanted = before + to_index(range.len());
        let aligned = wanted.next_multiple_of(DIRECT_ALIGNMENT);
        let direct = self.direct.as_ref().filter(|_| aligned <= buffer.len());
        let count = match direct.map(|direct| store::read_up_to(direct, &mut buffer[..aligned], start)) {
            Some(Ok(count)) => {
                if before > 0 {
                    buffer.copy_within(before..wanted, 0);
                }
                Ok(count.saturating_sub(before))
            }
            // A store that refuses the alignment is read through the cache, which holds nothing of it.
            Some(Err(error)) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
            _ => self
                .drop_range(range)
                .and_then(|()| store::read_up_to(&self.file, &mut buffer[..wanted - before], range.start())),
        };
        match count {
            Ok(count) if count >= wanted - before => Ok(()),
            Ok(_) => Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(failed(error)),
        }
    }

    fn next_data(&self, offset: u64) -> Result<Option<ByteRange>, TargetError> {
        let size = self.size();
        let rest = || ByteRange::between(offset.min(size), size);
        if self.medium == Medium::Device || offset >= size {
            return Ok(Some(rest()).filter(|rest| !rest.is_empty()));
        }
        let failed = || TargetError::during("looking for holes");
        let Some(start) = sparse::next_data(self.file.as_fd(), offset).map_err(failed())? else {
            return Ok(None);
        };
        let end = sparse::next_hole(self.file.as_fd(), start).map_err(failed())?.unwrap_or(size);
        Ok(Some(ByteRange::between(start.min(size), end.min(size))).filter(|run| !run.is_empty()))
    }
}

impl HostDisk {
    fn drop_range(&self, range: ByteRange) -> io::Result<()> {
        match self.medium {
            Medium::File => store::drop_pages(&self.file, range),
            Medium::Device => block::flush_cache(&self.file),
        }
    }
}

pub(super) fn to_index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("what is in memory is counted by usize")
}
