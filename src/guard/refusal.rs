//! A guard rule's "no", with its evidence.

use std::path::PathBuf;

use crate::error::{Error, ErrorKind};

/// A guard rule's "no", with its evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The path is not one of a block device or a regular file.
    #[error("it is a {found}, and a system disk is a block device or a file")]
    WrongKind {
        /// What lies there.
        found: &'static str,
    },
    /// A new file would lie where the kernel keeps its own.
    #[error("no such device, and a new file is not made under {folder}")]
    SystemFolder {
        /// `/dev`, `/proc` or `/sys`.
        folder: &'static str,
    },
    /// The folder of a new file is not there.
    #[error("its folder cannot be used")]
    Folder {
        /// What the system said.
        source: std::io::Error,
    },
    /// The operating system does not open it.
    #[error("it cannot be opened for writing")]
    CannotOpen {
        /// What the system said.
        source: std::io::Error,
    },
    /// The device or the file is read-only.
    #[error("it is read-only")]
    ReadOnly,
    /// The file is immutable or append-only (`chattr +i`, `+a`).
    #[error("the file is immutable or append-only")]
    Immutable,
    /// The file has other names, which would keep the old disk.
    #[error("the file has {links} names, and replacing it would leave the others with the old disk")]
    HardLinked {
        /// How many.
        links: u64,
    },
    /// The path is a mount point of its own, which cannot be exchanged.
    #[error("the file is a bind mount")]
    BindMounted,
    /// Name and content do not agree on raw or qcow2, or agree on qcow2.
    #[error("{why}")]
    Format {
        /// Which of the two says what.
        why: &'static str,
    },
    /// It is mounted.
    #[error("{device} is mounted on {mount_point:?} (seen by process {pid})")]
    Mounted {
        /// Major and minor number.
        device: String,
        /// Where.
        mount_point: String,
        /// A process that sees the mount.
        pid: u32,
    },
    /// It is a swap device or file.
    #[error("{path:?} is in use as swap")]
    Swap {
        /// As `/proc/swaps` names it.
        path: PathBuf,
    },
    /// The kernel does not give it exclusively.
    #[error("the kernel says that it is in use (a mount, swap, RAID, LVM or another exclusive opener)")]
    Busy,
    /// Another program has locked it.
    #[error("another program holds a lock on it: {who}")]
    Locked {
        /// Which kind of program, as far as the lock tells.
        who: &'static str,
    },
    /// It is one of the disks that must survive.
    #[error("it is the data disk {path:?}")]
    DataDisk {
        /// The data disk as it was named.
        path: PathBuf,
    },
    /// A data disk cannot be looked at, so that nothing can be proved about it.
    #[error("the data disk {path:?} cannot be examined")]
    DataDiskUnknown {
        /// The data disk as it was named.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A data disk is not what it was before the run.
    #[error("the data disk is not what it was when the run began")]
    DataDiskChanged {
        /// The data disk as it was named.
        path: PathBuf,
    },
    /// It is the image or one of its backing files.
    #[error("it is {path:?}, which the image is read from")]
    Image {
        /// The image's or backing file's path.
        path: PathBuf,
    },
    /// It is the file that the seed would replace, or the other way round.
    #[error("it is the seed {path:?}")]
    Seed {
        /// The seed's path.
        path: PathBuf,
    },
    /// The seed would replace a file that must survive.
    #[error("the seed would replace {what}")]
    SeedReplaces {
        /// The image, one of its backing files, or a data disk.
        what: &'static str,
    },
    /// It is another disk than was expected.
    #[error("its {what} is {found}, and {expected} was expected")]
    Expected {
        /// Which property.
        what: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
}

impl Refusal {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Mounted { .. } | Self::Swap { .. } | Self::Busy | Self::Locked { .. } => ErrorKind::InUse,
            Self::DataDiskChanged { .. } => ErrorKind::DataDiskChanged,
            Self::DataDisk { .. }
            | Self::DataDiskUnknown { .. }
            | Self::Image { .. }
            | Self::Seed { .. }
            | Self::SeedReplaces { .. }
            | Self::Expected { .. } => ErrorKind::Identity,
            _ => ErrorKind::TargetUnusable,
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::WrongKind { .. } | Self::SystemFolder { .. } => {
                "name the block device or the file that the machine uses as its system disk"
            }
            Self::Folder { .. } => "make the folder first, or correct the path",
            Self::CannotOpen { .. } => "run as a user that may write the disk and its folder",
            Self::ReadOnly => {
                "make it writable (blockdev --setrw, chmod, or mount its file system rw) if it really is the system disk"
            }
            Self::Immutable => "chattr -i -a the file first",
            Self::HardLinked { .. } | Self::BindMounted => {
                "--in-place writes into the file, under all its names"
            }
            Self::Format { .. } => {
                "say --target-format raw if the machine uses it as a raw disk; qcow2 system disks are not written yet"
            }
            Self::Mounted { .. } => "stop the instance, or umount it",
            Self::Swap { .. } => "swapoff it first, if it really is the system disk",
            Self::Busy => "stop the instance; lsblk and /proc/mounts on this host show who built on it",
            Self::Locked { .. } => "stop the instance, or wait for the other program",
            Self::DataDisk { .. } => "data disks are never written; correct the system disk's path",
            Self::DataDiskUnknown { .. } => {
                "correct the data disk's path, so that it can be told apart from the system disk"
            }
            Self::DataDiskChanged { .. } => "find out what wrote to it",
            Self::Image { .. } => "name another target: the image must survive",
            Self::Seed { .. } | Self::SeedReplaces { .. } => "give the seed a file of its own",
            Self::Expected { .. } => {
                "this is not the disk that was meant: find out which device name it has now"
            }
        }
    }

    /// The refusal as an error about `path`.
    pub(crate) fn about(self, path: &std::path::Path) -> Error {
        let (kind, hint) = (self.kind(), self.hint());
        Error::new(kind, self).at_path(path).hint_that(hint)
    }
}
