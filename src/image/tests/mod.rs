//! Goal: what an image holds comes out exactly, and what is unsafe is refused.
//!
//! Method: images made by qemu-img lie in `testdata/images`, with the digests of what they hold; faulty ones are
//! made here by changing bytes of those.

mod besides;
mod chains;
mod content;
mod files;
mod findings;
mod header;
mod measured;
mod mutation;
mod ownership;
mod qcow2_rs;
mod recount;
mod sizes;
mod speed;
#[path = "../../../tests/shared/stored_images.rs"]
mod stored_images;
mod streams;
mod tables;
pub(crate) mod written;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::Digest as _;
use tempfile::TempDir;

use super::*;
pub(crate) use stored_images::{below, unpacked, write_sparse};

/// A folder of unpacked images, which goes away with the value.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn with(names: &[&str]) -> Self {
        let folder = Self::new();
        for name in names {
            folder.unpack(name, name);
        }
        folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Unpacks an image under a name of its own; blocks of zeroes become holes.
    pub(crate) fn unpack(&self, stored: &str, name: &str) -> PathBuf {
        let path = self.path(name);
        write_sparse(&path, &unpacked(stored));
        path
    }

    /// An image of clusters of 512 bytes in a long file: from 1 GiB on four L2 tables, whose 256 clusters lie 2 GiB
    /// from each other.
    pub(crate) fn with_clusters_apart(&self) -> PathBuf {
        let path = self.unpack("v3-512.qcow2", "made.qcow2");
        let l1 = field(&path, 40);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        for table in 0..4 {
            let at: u64 = (1 << 30) + table * 512;
            file.write_all_at(&at.to_be_bytes(), l1 + table * 8).unwrap();
            for number in 0..64 {
                let place: u64 = (2 + table * 64 + number) << 31;
                file.write_all_at(&place.to_be_bytes(), at + number * 8).unwrap();
            }
        }
        path
    }

    pub(crate) fn all_of(&self) -> PathBuf {
        self.0.path().to_path_buf()
    }
}

/// Every stored qcow2 image with the size and the SHA-256 of what it holds.
pub(crate) fn expected() -> Vec<(String, u64, String)> {
    stored_images::all().into_iter().map(|image| (image.name, image.size, image.sha256)).collect()
}

pub(crate) fn open_alone(path: &Path) -> Result<Box<dyn Image>, ImageError> {
    open_as(path, &OpenOptions::default())
}

/// Opens an image; one that is packed is decoded once.
pub(crate) fn open_as(path: &Path, options: &OpenOptions<'_>) -> Result<Box<dyn Image>, ImageError> {
    let packed = match open_any(path, options)? {
        Opened::Disk(image) => return Ok(image),
        Opened::Packed(packed) => packed,
    };
    let mut pass = packed.pass(u64::MAX);
    while pass.step(&Decoder::default())? != Step::Over {}
    pass.end()
}

pub(crate) fn open_chain(path: &Path, folder: &Path) -> Result<Box<dyn Image>, ImageError> {
    open_as(path, &OpenOptions { backing_folders: &[folder.to_path_buf()], ..OpenOptions::default() })
}

/// The whole disk, read in pieces of `step` bytes cut where the extents do not end.
pub(crate) fn content(image: &dyn Image, step: u64) -> Result<Vec<u8>, ImageError> {
    let mut content = vec![0xee; usize::try_from(image.virtual_size()).unwrap()];
    let mut rest = &mut content[..];
    let mut decoder = Decoder::default();
    for part in ByteRange::new(0, image.virtual_size()).cut(step) {
        let mut part = part;
        while !part.is_empty() {
            let extents = image.map(part)?;
            let end = check_gapless(part, &extents);
            let len = usize::try_from(end - part.start()).unwrap();
            let buffer = rest.split_off_mut(..len).unwrap();
            image.read(&extents, buffer, &mut decoder)?;
            part = ByteRange::between(end, part.end());
        }
    }
    Ok(content)
}

#[track_caller]
pub(super) fn check_gapless(range: ByteRange, extents: &[Extent]) -> u64 {
    assert!(!extents.is_empty() || range.is_empty());
    let mut at = range.start();
    for extent in extents {
        assert_eq!(extent.range.start(), at);
        assert!(!extent.range.is_empty());
        at = extent.range.end();
    }
    assert!(at <= range.end());
    at
}

pub(crate) fn sha256(content: &[u8]) -> String {
    sha2::Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Everything that a caller does with an image: it must end, with whatever result.
pub(super) fn everything(path: &Path) -> Result<(), ImageError> {
    let image = open_alone(path)?;
    image.check_tables()?;
    if image.virtual_size() <= 16 << 20 {
        content(&*image, 1 << 20)?;
    }
    Ok(())
}

/// Changes bytes of a file.
pub(super) fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// A big-endian field of a file.
pub(super) fn field(path: &Path, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    std::fs::File::open(path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    u64::from_be_bytes(bytes)
}

pub(super) fn append(path: &Path, bytes: &[u8]) {
    std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

/// Fails unless the result is an error of that variant whose text has those words.
#[track_caller]
pub(super) fn check_refused(case: &str, result: Result<(), ImageError>, variant: &str, words: &str) {
    let error = match result {
        Ok(()) => panic!("{case}: read without an error"),
        Err(error) => error,
    };
    let debug = format!("{error:?}");
    assert!(debug.starts_with(variant) && error.to_string().contains(words), "{case}: {debug}: {error}");
    assert!(error.path().is_some(), "{case}");
}
