//! `Seen`: whether a file was touched.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What a file is now: bytes, inode, time of change.
#[derive(PartialEq, Eq)]
pub(crate) struct Seen {
    bytes: Vec<u8>,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Seen {
    #[track_caller]
    pub(crate) fn of(path: &Path) -> Self {
        let metadata = fs::metadata(path).unwrap();
        Self {
            bytes: fs::read(path).unwrap(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Fails if the file is not as it was.
    #[track_caller]
    pub(crate) fn check(&self, path: &Path) {
        assert!(Self::of(path) == *self, "{path:?} is not what it was");
    }
}
