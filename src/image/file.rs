//! One file of an image: opened once, held against writers, read without leaving pages behind.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::error::ImageError;
use crate::range::ByteRange;
use crate::sys::{locks, read::UncachedReads, sparse, store};
use crate::verify::Digest;

/// How much of a file tells it from another.
const HEAD: u64 = 64 << 10;

/// What tells one file from all others, and shows that it changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FileIdentity {
    /// The file's name when it was opened.
    #[serde(serialize_with = "crate::error::path_text")]
    pub path: PathBuf,
    /// The device number of the file system that it is on.
    pub device: u64,
    /// Its inode there.
    pub inode: u64,
    /// The device that it stands for, when it is a block device.
    pub block_device: Option<u64>,
    /// Its size in bytes.
    pub size: u64,
    /// When its content changed last, in nanoseconds since 1970; 0 for a block device.
    pub modified_ns: i64,
    /// When its content or its attributes changed last; 0 for a block device.
    pub changed_ns: i64,
    /// The BLAKE3 of its first 64 KiB.
    pub head: Digest,
}

/// A file's state at one moment; equal stamps mean unchanged bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What lies in a stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stretch {
    /// Stored bytes.
    Stored,
    /// Nothing: it reads as zeroes.
    Hole,
}

/// One open file of an image.
pub(super) struct SourceFile {
    file: File,
    identity: FileIdentity,
    stamp: Stamp,
    /// Where each known stretch begins, with its end; `None` when the file has no holes.
    stretches: Option<Mutex<BTreeMap<u64, (u64, Stretch)>>>,
    /// How many bytes are no holes.
    stored: u64,
    reads: UncachedReads,
}

const SECTOR: u64 = 512;

/// How many stretches are remembered: about 200 KiB.
const STRETCHES_MAX: usize = 4096;

impl SourceFile {
    /// Opens what the caller named: a regular file or a block device.
    pub(super) fn open(path: &Path) -> Result<Self, ImageError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => ImageError::Missing { path: path.into() },
            _ => ImageError::Io { doing: "opening the image", path: path.into(), range: None, source },
        };
        // Opening some character devices has effects; so look before.
        refuse_wrong_kind(path, &std::fs::metadata(path).map_err(failed)?)?;
        // A FIFO put there meanwhile must not make the open wait: O_NONBLOCK.
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
        let open = |more| std::fs::OpenOptions::new().read(true).custom_flags(flags | more).open(path);
        // Only its owner may read a file and leave its access time as it was (open(2)).
        let file = open(libc::O_NOATIME).or_else(|_| open(0)).map_err(failed)?;
        refuse_wrong_kind(path, &file.metadata().map_err(failed)?)?;
        Self::hold(file, path)
    }

    /// Takes over an open file: nobody may be writing it, and nobody shall begin.
    pub(super) fn hold(file: File, path: &Path) -> Result<Self, ImageError> {
        hold_against_writers(&file, path)?;
        Self::held_already(file, path)
    }

    /// The same of a disk, of which nothing need be readable, and which is read once, past the page cache.
    pub(super) fn hold_disk(file: File, path: &Path) -> Result<Self, ImageError> {
        hold_against_writers(&file, path)?;
        let reads = UncachedReads::past_the_cache(&file);
        Self::take((file, path), reads, Head::MayBeUnreadable)
    }

    /// Takes over an open file that this process holds by other means.
    pub(super) fn held_already(file: File, path: &Path) -> Result<Self, ImageError> {
        Self::take((file, path), UncachedReads::default(), Head::IsNeeded)
    }

    fn take((file, path): (File, &Path), reads: UncachedReads, wanted: Head) -> Result<Self, ImageError> {
        let failed = |doing| move |source| ImageError::Io { doing, path: path.into(), range: None, source };
        let metadata = file.metadata().map_err(failed("looking at the image"))?;
        let is_device = metadata.file_type().is_block_device();
        let len = sparse::end(file.as_fd()).map_err(failed("finding the image's size"))?;
        let stamp = stamp(&metadata, len);
        let head = match (read_head(&reads, &file, len), wanted) {
            (Err(_), Head::MayBeUnreadable) => unread_head(),
            (head, _) => head.map_err(failed("reading the head of the image"))?,
        };
        let nanoseconds =
            |(seconds, more): (i64, i64)| seconds.saturating_mul(1_000_000_000).saturating_add(more);
        let stored = metadata.blocks().saturating_mul(512);
        let may_have_holes = !is_device && stored < len;
        // Some file systems do not say it, and an image is no file of nothing.
        let stored = if may_have_holes && stored > 0 { stored } else { len };
        Ok(Self {
            identity: FileIdentity {
                path: path.into(),
                device: metadata.dev(),
                inode: metadata.ino(),
                block_device: is_device.then(|| metadata.rdev()),
                size: len,
                modified_ns: nanoseconds(stamp.modified),
                changed_ns: nanoseconds(stamp.changed),
                head,
            },
            stamp,
            stretches: may_have_holes.then(Mutex::default),
            stored,
            reads,
            file,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.identity.path
    }

    pub(super) fn len(&self) -> u64 {
        self.stamp.len
    }

    /// How many of its bytes are no holes.
    pub(super) fn stored_len(&self) -> u64 {
        self.stored
    }

    pub(super) fn identity(&self) -> &FileIdentity {
        &self.identity
    }

    pub(super) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Fills the buffer with the file's bytes from `offset` on.
    pub(super) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let len = u64::try_from(buffer.len()).unwrap_or(u64::MAX).min(u64::MAX - offset);
        let range = ByteRange::new(offset, len);
        self.reads.read_exact_at(self.file.as_fd(), buffer, offset).map_err(|source| ImageError::Io {
            doing: "reading the image",
            path: self.path().into(),
            range: Some(range),
            source,
        })?;
        if self.identity.block_device.is_some() {
            // No device knows uncached reads; a disk that is read to its end would push out everybody else's pages.
            let _ = store::drop_pages(&self.file, range);
        }
        Ok(())
    }

    /// What lies at the start of a range within the file, and how far that goes.
    pub(super) fn stretch_at(&self, range: ByteRange) -> (Stretch, ByteRange) {
        let Some(stretches) = &self.stretches else { return (Stretch::Stored, range) };
        let mut stretches = stretches.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            stretches.range(..=range.start()).next_back().filter(|(_, (end, _))| *end > range.start());
        let (end, kind) = if let Some((_, stretch)) = known {
            *stretch
        } else {
            let found = self.look_for_stretch(range.start());
            if stretches.len() >= STRETCHES_MAX {
                stretches.clear();
            }
            // One that begins later and is of the same kind is covered by the new one.
            let covered: Vec<u64> =
                stretches.range(range.start()..found.0).map(|(start, _)| *start).collect();
            for start in covered {
                stretches.remove(&start);
            }
            stretches.insert(range.start(), found);
            found
        };
        (kind, ByteRange::between(range.start(), end.min(range.end())))
    }

    /// The same of a range that begins at a sector's border, in whole sectors: a hole may be said to end anywhere.
    pub(super) fn sectors_at(&self, range: ByteRange) -> (Stretch, ByteRange) {
        let (stretch, part) = self.stretch_at(range);
        let whole = if part.end() == range.end() { part.end() } else { part.end() - part.end() % SECTOR };
        if stretch == Stretch::Hole && whole > range.start() {
            return (stretch, ByteRange::between(range.start(), whole));
        }
        let end = part.end().next_multiple_of(SECTOR).min(range.end());
        (Stretch::Stored, ByteRange::between(range.start(), end))
    }

    /// A file system that cannot tell has stored bytes everywhere.
    fn look_for_stretch(&self, offset: u64) -> (u64, Stretch) {
        let all_stored = (u64::MAX, Stretch::Stored);
        match sparse::next_data(self.file.as_fd(), offset) {
            Ok(None) if offset < self.len() => (self.len(), Stretch::Hole),
            Ok(Some(data)) if data > offset => (data, Stretch::Hole),
            Ok(Some(_)) => match sparse::next_hole(self.file.as_fd(), offset) {
                Ok(Some(hole)) if hole > offset => (hole, Stretch::Stored),
                _ => all_stored,
            },
            _ => all_stored,
        }
    }

    /// Fails if the file is no longer as it was when it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), ImageError> {
        let failed = |source| ImageError::Io {
            doing: "looking at the image again",
            path: self.path().into(),
            range: None,
            source,
        };
        let metadata = self.file.metadata().map_err(failed)?;
        let now = stamp(&metadata, sparse::end(self.file.as_fd()).map_err(failed)?);
        // The times of a device say nothing, and those of a file can be set.
        let head = read_head(&self.reads, &self.file, self.len()).unwrap_or_else(|_| unread_head());
        if now == self.stamp && head == self.identity.head {
            Ok(())
        } else {
            Err(ImageError::Changed { path: self.path().into() })
        }
    }
}

/// The digest of as much of a file as tells it from another.
fn read_head(reads: &UncachedReads, file: &File, len: u64) -> io::Result<Digest> {
    let mut head = vec![0; usize::try_from(len.min(HEAD)).expect("a head is short")];
    reads.read_exact_at(file.as_fd(), &mut head, 0)?;
    Ok(Digest::of(&head))
}

/// Whether a file's head must be readable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Head {
    IsNeeded,
    MayBeUnreadable,
}

/// What stands for the head of a disk that cannot be read there.
fn unread_head() -> Digest {
    Digest::from_bytes([0; 32])
}

fn stamp(metadata: &Metadata, len: u64) -> Stamp {
    // The times of a device node say nothing about the device's content.
    let is_device = metadata.file_type().is_block_device();
    let time = |seconds, nanoseconds| if is_device { (0, 0) } else { (seconds, nanoseconds) };
    Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        len,
        modified: time(metadata.mtime(), metadata.mtime_nsec()),
        changed: time(metadata.ctime(), metadata.ctime_nsec()),
    }
}

fn refuse_wrong_kind(path: &Path, metadata: &Metadata) -> Result<(), ImageError> {
    let file_type = metadata.file_type();
    let kind = match () {
        () if file_type.is_file() || file_type.is_block_device() => return Ok(()),
        () if file_type.is_dir() => "a folder",
        () if file_type.is_fifo() => "a FIFO",
        () if file_type.is_socket() => "a socket",
        () if file_type.is_char_device() => "a character device",
        () => "something else",
    };
    Err(ImageError::WrongKind { path: path.into(), kind })
}

/// Our locks come before the look for others: of two that come together, the later sees the earlier.
fn hold_against_writers(file: &File, path: &Path) -> Result<(), ImageError> {
    let being_written = || Err(ImageError::BeingWritten { path: path.into() });
    for byte in [locks::USES_READ, locks::FORBIDS_WRITE] {
        match locks::lock_shared(file.as_fd(), byte) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return being_written(),
            // A file system without locks: the check for changes remains.
            Ok(()) | Err(_) => {}
        }
    }
    match locks::is_locked_by_others(file.as_fd(), locks::USES_WRITE) {
        Ok(true) => being_written(),
        Ok(false) | Err(_) => Ok(()),
    }
}
