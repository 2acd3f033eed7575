//! Folders in which the images of `testdata/images` lie unpacked.

use std::path::Path;

use tempfile::TempDir;

pub(crate) use crate::stored_images::{Stored, all, below, unpacked, write_sparse};

/// A new folder, in memory where the system has one for that: thousands of images need not come to a disk.
pub(crate) fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let home = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(home).unwrap()
}

/// A folder with a stored image and all that lies below it.
pub(crate) fn with_chain(name: &str) -> TempDir {
    let folder = scratch();
    let own = format!("{name}.qcow2");
    for file in std::iter::once(own.as_str()).chain(below(name).iter().copied()) {
        write_sparse(&folder.path().join(file), &unpacked(file));
    }
    folder
}
