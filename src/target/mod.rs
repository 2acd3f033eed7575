//! Targets: the system disk that is written. Only a `Claim` becomes one; the writer takes only
//! `VerifiedChunk`s.
//!
//! `disk` reads what is stored, `file` and `device` write, `qcow2` writes a file that describes the disk, `staged` puts
//! a new file into an old one's place, and `former` the old one back into its own.
//! `sim` is a disk in memory that crashes, fails and lies, for tests.

mod device;
mod disk;
mod error;
mod file;
mod former;
mod qcow2;
#[cfg(feature = "sim")]
mod sim;
mod staged;

pub(crate) use disk::HostDisk;
pub use error::TargetError;
pub(crate) use former::{Former, FormerFault, changed_ns, give_back, modified_ns};
pub(crate) use qcow2::{Backing, NewQcow2, Qcow2Shape};
#[cfg(feature = "sim")]
pub use sim::{SimAction, SimDisk, SimFault, SimHistory, SimLie, SimMoment, SimOperation, SimWhen};

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use crate::guard::{Claim, Held, Promise};
use crate::range::ByteRange;
use crate::request::Placement;
use crate::verify::VerifiedChunk;

/// A disk whose stored bytes can be read: a system disk, or a target that somebody brings along.
///
/// Every method may be called from several threads.
pub trait Disk: Send + Sync {
    /// The disk's size in bytes.
    fn size(&self) -> u64;

    /// The unit in which it is read and written: 1 for files, the logical sector's bytes for devices.
    fn sector_size(&self) -> u32;

    /// Reads what the disk holds, not what the page cache holds, into the first `range.len()` bytes of
    /// `buffer`; the buffer is page-aligned and has room for the whole sectors that they lie in.
    ///
    /// # Errors
    ///
    /// When the bytes cannot be read.
    fn read(&self, range: ByteRange, buffer: &mut [u8]) -> Result<(), TargetError>;

    /// The first run at or behind `offset` that is not proved to be a hole; `None` when all the rest is.
    ///
    /// A device proves nothing and answers with all that remains.
    ///
    /// # Errors
    ///
    /// When the file cannot be asked.
    fn next_data(&self, offset: u64) -> Result<Option<ByteRange>, TargetError>;
}

/// A system disk that may be written.
///
/// What one thread wrote, another reads back after `sync`.
pub trait Target: Disk {
    /// What names the disk in the state folder, so that a later run knows it again and can go on.
    ///
    /// Without a name no run on it goes on where another stopped. The host's own disks have theirs from the guard.
    fn identity(&self) -> Option<String> {
        None
    }

    /// The exchange that ends the run, where a new file is written beside the system disk; asked once.
    ///
    /// `None` where the system disk itself is written.
    fn exchange(&self) -> Option<Box<dyn Exchange>> {
        None
    }

    /// Whether every byte that was not written yet reads as zero (a new file).
    fn is_new(&self) -> bool;

    /// Writes the bytes of a chunk to where they belong, padded to whole sectors.
    ///
    /// # Errors
    ///
    /// When not all of them could be handed to the kernel.
    fn write(&self, chunk: &VerifiedChunk) -> Result<(), TargetError>;

    /// Makes `range` (whole sectors, at most 256 MiB) read as zero, whatever was there.
    ///
    /// # Errors
    ///
    /// When that could not be guaranteed.
    fn write_zeroes(&self, range: ByteRange) -> Result<(), TargetError>;

    /// Makes everything written so far durable.
    ///
    /// # Errors
    ///
    /// When it is not: then nothing since the last good sync may be believed.
    fn sync(&self) -> Result<(), TargetError>;

    /// Gives the disk the size that `size` tells, where it has another yet.
    ///
    /// It is called once, when the disk already says that it is unfinished.
    ///
    /// # Errors
    ///
    /// When it cannot have that size.
    fn take_size(&self) -> Result<(), TargetError> {
        Ok(())
    }

    /// Gives a new file its size, which was not known when it was opened: then `size` told none, and it took all that
    /// was written.
    ///
    /// # Errors
    ///
    /// When it cannot have that size.
    fn end_at(&self, size: u64) -> Result<(), TargetError> {
        let _ = size;
        Err(TargetError::during("deciding the disk's size")(std::io::ErrorKind::Unsupported.into()))
    }

    /// Makes the host forget partitions that it knows of the old content.
    ///
    /// # Errors
    ///
    /// When a partition is held by somebody.
    fn forget_partitions(&self) -> Result<(), TargetError> {
        Ok(())
    }
}

/// A new file that takes the system disk's place when it is complete.
///
/// Dropped before it has that place, it removes what it made.
pub trait Exchange: Send {
    /// Gives the new file the name under which it waits; asked once, when the journal knows of that name.
    ///
    /// # Errors
    ///
    /// When it could not get the name.
    fn wait(&mut self) -> Result<(), TargetError> {
        Ok(())
    }

    /// Puts the new file into the old one's place; when this fails and `has_its_place` says no, the old one is there.
    ///
    /// # Errors
    ///
    /// When it could not be put there, or it is not known whether it was.
    fn publish(&mut self) -> Result<(), TargetError>;

    /// Whether the new file bears the disk's name.
    fn has_its_place(&self) -> bool;

    /// Lets the old file stay under a lasting name of the run `journal`, from `publish` on; asked before that.
    ///
    /// # Errors
    ///
    /// When this exchange cannot keep it.
    fn keep_old(&mut self, journal: &str) -> Result<(), TargetError> {
        let _ = journal;
        Err(TargetError::during("keeping the old file")(std::io::ErrorKind::Unsupported.into()))
    }

    /// Removes the old file, unless it is to stay; everything is durable when this returns.
    ///
    /// # Errors
    ///
    /// When the exchange could not be made durable, or the old file not be removed.
    fn settle(&mut self) -> Result<(), TargetError>;

    /// Lets a new file that does not get the disk's place stay, and says under which name; `None` where there is none.
    ///
    /// # Errors
    ///
    /// When it could not get that name.
    fn preserve(&mut self, journal: &str) -> Result<Option<PathBuf>, TargetError> {
        let _ = journal;
        Ok(None)
    }
}

/// A target that is open, and what remains to be done when it is complete.
pub(crate) struct Opened {
    pub(crate) target: Box<dyn Target>,
    /// The new file that will take the old one's place; `None` where the disk itself is written.
    pub(crate) exchange: Option<Box<dyn Exchange>>,
    /// Where that file lies on this host.
    pub(crate) beside: Option<Beside>,
    /// The same file, where it is one of qcow2 that has to be sealed before it takes the place.
    pub(crate) qcow2: Option<Arc<NewQcow2>>,
}

/// What a host's disk is to become.
pub(crate) struct Wanted {
    pub(crate) placement: Placement,
    pub(crate) size: WantedSize,
    /// The shape of a new qcow2 file; without one the file is the disk.
    pub(crate) qcow2: Option<Qcow2Shape>,
}

/// The size in bytes of what a disk is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WantedSize {
    Known(u64),
    /// It is decided when the new file has been written, by `Target::end_at`.
    AtMost(u64),
}

impl WantedSize {
    fn most(self) -> u64 {
        match self {
            Self::Known(size) | Self::AtMost(size) => size,
        }
    }
}

/// A new file on this host that waits to take a disk's place.
pub(crate) struct Beside {
    pub(crate) path: PathBuf,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Where that is, and the file that lies there.
    pub(crate) place: PathBuf,
    pub(crate) old: Option<File>,
    /// The file itself.
    pub(crate) file: File,
}

/// Turns the right to write a host's disk into the target.
///
/// A new file of those numbers that an earlier run left is taken up again, if it is as it was left.
pub(crate) fn open(claim: Claim, wanted: Wanted, earlier: Option<(u64, u64)>) -> Result<Opened, TargetError> {
    let held = claim.into_held();
    let whole = |target: Box<dyn Target>| Opened { target, exchange: None, beside: None, qcow2: None };
    match held {
        Held::Device { file, sector_size } => Ok(whole(Box::new(device::Device::new(file, sector_size)?))),
        Held::File { file, .. } if wanted.placement == Placement::InPlace => {
            Ok(whole(Box::new(file::FileTarget::in_place(file, wanted.size.most()))))
        }
        Held::File { file, folder, name, .. } => staged::stage((folder, name), Some(file), wanted, earlier),
        Held::NewFile { folder, name } => staged::stage((folder, name), None, wanted, earlier),
        Held::Promised(_) => unreachable!("a promised claim is opened by `bring`"),
        Held::ReadOnly { .. } => unreachable!("a disk that is held to be read is no target"),
    }
}

/// Turns a promised claim into the caller's own target.
pub(crate) fn bring(claim: Claim, target: Box<dyn Target>) -> Opened {
    let held = claim.into_held();
    assert!(matches!(held, Held::Promised(Promise::NobodyElseUsesIt)), "a caller's target needs its promise");
    let exchange = target.exchange();
    Opened { target, exchange, beside: None, qcow2: None }
}
