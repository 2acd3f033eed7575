//! Journals whose runs have ended: looked at without keeping anybody out, and removed under their lock.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::read::{self, JournalSummary, MOST_BYTES, MOST_FILES};
use super::{SUFFIX, chunks, chunks_beside, folder};
use crate::sys::lock_file::{self, LockFile};

/// A journal as it lay in the state folder when it was looked at.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    folder: PathBuf,
    stem: String,
    pub(crate) content: Content,
    file: Option<File>,
    bytes: Vec<u8>,
}

/// What a journal says.
#[derive(Debug)]
pub(crate) enum Content {
    /// Its run lives.
    Held,
    /// Not one whole record: the run ended before it had begun.
    Nothing,
    /// Something else than records.
    Unreadable,
    /// What its records say.
    Says(Box<JournalSummary>),
}

/// A journal that nobody else can use, and that is still as it was found.
#[derive(Debug)]
pub(crate) struct Seized {
    lock: LockFile,
    chunks: PathBuf,
}

/// The names of a state folder's journals and of their chunk files without their endings, each once.
///
/// Of too many files the rest is left out.
pub(crate) fn stems(state_dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder(state_dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let stem = |name: String| {
        let stem = name.strip_suffix(SUFFIX).or_else(|| name.strip_suffix(".chunks"))?;
        Some(stem.to_owned())
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut stems: Vec<_> = names.filter_map(stem).take(MOST_FILES).collect();
    stems.sort_unstable();
    stems.dedup();
    Ok(stems)
}

/// Looks at the journal of that stem; one that is not there says nothing.
pub(crate) fn look(state_dir: &Path, stem: &str) -> io::Result<Found> {
    let (folder, path) = (folder(state_dir), path(state_dir, stem));
    let file = open(&path)?;
    let bytes = match &file {
        Some(file) => read::read_bounded(file, MOST_BYTES)?,
        None => Vec::new(),
    };
    let content = match lock_file::is_held(&folder, &format!("{stem}{SUFFIX}"))? {
        true => Content::Held,
        false => Content::of(&bytes),
    };
    Ok(Found { path, folder, stem: stem.to_owned(), content, file, bytes })
}

/// Where the journal of that stem lies.
pub(crate) fn path(state_dir: &Path, stem: &str) -> PathBuf {
    folder(state_dir).join(format!("{stem}{SUFFIX}"))
}

fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    match File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Content {
    fn of(bytes: &[u8]) -> Self {
        match read::summary(bytes) {
            Some(summary) => Self::Says(Box::new(summary)),
            None if !bytes.contains(&b'\n') => Self::Nothing,
            None => Self::Unreadable,
        }
    }
}

impl Found {
    /// Whether there is no journal, but only the file of its chunks.
    pub(crate) fn is_missing(&self) -> bool {
        self.file.is_none()
    }

    /// The file of its chunks, which is there or not.
    pub(crate) fn chunks(&self) -> PathBuf {
        chunks_beside(&self.path)
    }

    /// Takes the journal, so that it can be removed; `None` when a run has taken or changed it meanwhile.
    pub(crate) fn seize(&self) -> io::Result<Option<Seized>> {
        let lock = match lock_file::acquire(&self.folder, &format!("{}{SUFFIX}", self.stem)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            lock => lock?,
        };
        let is_same = read::read_bounded(lock.file(), MOST_BYTES)? == self.bytes;
        Ok(is_same.then(|| Seized { lock, chunks: self.chunks() }))
    }
}

impl Seized {
    /// Removes the journal, and before it the file of its chunks.
    pub(crate) fn remove(self) -> io::Result<()> {
        chunks::remove(&self.chunks).and_then(|()| self.lock.remove())
    }
}
