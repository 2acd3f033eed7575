//! What the header of a qcow2 disk says, whatever has become of its content.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::error::ImageError;
use super::file::SourceFile;
use super::qcow2::{Corrupt, Header};

/// A qcow2 file that a machine uses as its disk, as its header tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskFile {
    /// The disk's size in bytes.
    pub(crate) virtual_size: u64,
    /// 2 or 3.
    pub(crate) version: u32,
    /// The cluster size as a power of two.
    pub(crate) cluster_bits: u32,
    /// How many internal snapshots there are.
    pub(crate) snapshots: u32,
    /// Whether it keeps dirty bitmaps.
    pub(crate) bitmaps: bool,
    /// The file below it, as it is named.
    pub(crate) backing: Option<PathBuf>,
    /// Whether the file says of itself that it is corrupt.
    pub(crate) corrupt: bool,
    pub(crate) extended_l2: bool,
}

impl DiskFile {
    /// Reads the header of an open file; one that is marked corrupt still says what the disk was.
    ///
    /// # Errors
    ///
    /// When it is no qcow2 file, or one of a kind that is not known: encrypted, or with its data elsewhere.
    pub(crate) fn read(file: File, path: &Path) -> Result<Self, ImageError> {
        let file = SourceFile::held_already(file, path)?;
        let header = Header::read(&file, Corrupt::Describe)?;
        Ok(Self {
            virtual_size: header.virtual_size,
            version: header.version,
            cluster_bits: header.cluster_bits,
            snapshots: header.snapshots,
            bitmaps: header.bitmaps,
            corrupt: header.corrupt,
            extended_l2: header.has_extended_l2(),
            backing: header.backing.map(|backing| OsStr::from_bytes(&backing.name).into()),
        })
    }
}

/// The file that an open qcow2 file names as the one below it; `None` where it names none or cannot be understood.
pub(crate) fn backing_of(file: File, path: &Path) -> Option<PathBuf> {
    DiskFile::read(file, path).ok()?.backing
}
