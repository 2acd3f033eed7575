//! What a disk is, apart from its names: numbers that two names of one storage share.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

/// The numbers that tell one storage from another, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum StorageIdentity {
    /// A block device.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A regular file.
    File {
        /// The device number of its file system.
        device: u64,
        /// Its inode number there.
        inode: u64,
    },
}

impl StorageIdentity {
    /// Whether one is the other, or a partition of the other.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        if self == other {
            return true;
        }
        let whole = |identity| match identity {
            Self::Device { major, minor } => whole_disk(major, minor),
            Self::File { .. } => None,
        };
        whole(self) == Some(other) || whole(other) == Some(self)
    }
}

/// The storage that `metadata` is about; `None` for what is neither a block device nor a regular file.
pub(crate) fn identify(metadata: &Metadata) -> Option<StorageIdentity> {
    let kind = metadata.file_type();
    if kind.is_block_device() {
        let (major, minor) = numbers(metadata.rdev());
        return Some(StorageIdentity::Device { major, minor });
    }
    kind.is_file().then(|| StorageIdentity::File { device: metadata.dev(), inode: metadata.ino() })
}

/// Major and minor number of a device number.
pub(crate) fn numbers(device: u64) -> (u32, u32) {
    (rustix::fs::major(device), rustix::fs::minor(device))
}

/// The sysfs folder of a block device.
pub(crate) fn sysfs_folder(major: u32, minor: u32) -> io::Result<PathBuf> {
    fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))
}

/// The disk of which the device is a partition.
pub(crate) fn whole_disk(major: u32, minor: u32) -> Option<StorageIdentity> {
    let folder = sysfs_folder(major, minor).ok()?;
    folder.join("partition").exists().then_some(())?;
    let text = fs::read_to_string(folder.parent()?.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(StorageIdentity::Device { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

/// The device's serial number, where its driver tells it.
pub(crate) fn serial(major: u32, minor: u32) -> Option<String> {
    first_line(major, minor, &["serial", "device/serial"])
}

/// The device's World Wide Name, where its driver tells it.
pub(crate) fn wwn(major: u32, minor: u32) -> Option<String> {
    first_line(major, minor, &["wwid", "device/wwid"])
}

fn first_line(major: u32, minor: u32, names: &[&str]) -> Option<String> {
    let folder = sysfs_folder(major, minor).ok()?;
    let read = |name| fs::read_to_string(folder.join(name)).ok();
    names.iter().find_map(read).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// What a data disk looked like, without having been opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DataDiskEvidence {
    /// The path as it was named.
    #[serde(serialize_with = "crate::error::path_text")]
    pub path: PathBuf,
    /// What it is.
    pub identity: StorageIdentity,
    /// Its size in bytes (0 for a device, which tells it only when opened).
    pub size: u64,
    /// When its content changed last, in nanoseconds since 1970 (a file; a device's node says nothing).
    pub modified_ns: u64,
}

/// Looks at every data disk by its path; `Err` names the first that cannot be looked at.
pub(crate) fn data_disks_now(
    paths: impl Iterator<Item = PathBuf>,
) -> Result<Vec<DataDiskEvidence>, (PathBuf, io::Error)> {
    paths.map(|path| evidence(&path).map_err(|error| (path, error))).collect()
}

fn evidence(path: &Path) -> io::Result<DataDiskEvidence> {
    let metadata = fs::metadata(path)?;
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "neither a block device nor a file");
    let identity = identify(&metadata).ok_or_else(wrong)?;
    let modified = match identity {
        StorageIdentity::Device { .. } => Duration::ZERO,
        StorageIdentity::File { .. } => {
            metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
        }
    };
    let modified_ns = u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX);
    Ok(DataDiskEvidence { path: path.to_owned(), identity, size: metadata.len(), modified_ns })
}

/// Opens `path` without touching what it leads to: no driver's open, no blocking FIFO, no access time.
pub(crate) fn open_path_only(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?.into())
}

/// The identity of a block device of that number.
pub(crate) fn device_identity(device: u64) -> StorageIdentity {
    let (major, minor) = numbers(device);
    StorageIdentity::Device { major, minor }
}
