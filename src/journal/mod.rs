//! The record of a run in the state folder: what was begun, and how far it came.
//!
//! One file a disk, named by the disk's identity and never by its path; one line a record, each with its own
//! checksum. While a run lives it holds a lock on its file, which keeps a second run off the same storage.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::sys::durable;
use crate::sys::lock_file::{self, LockFile};
use crate::verify::Digest;

/// A step of a run that is durable before the next begins.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub(crate) enum Record<'a> {
    /// The run is about to begin; nothing of the disk has changed.
    Begun {
        journal: &'a str,
        /// What the image is, as its room says it.
        image: &'a serde_json::Value,
        /// What the disk is, as the guard says it.
        target: &'a serde_json::Value,
        chunk_bytes: u64,
        target_bytes: u64,
        gpt: &'a serde_json::Value,
    },
    /// The disk's head is about to say that a rebuild is unfinished.
    Invalidated,
    /// Everything but both ends reads back right; the root stands for all chunks.
    Verified { root: Digest },
    /// The new seed is in its place.
    Seeded,
    /// The disk is complete.
    Finished,
}

/// Why a journal could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// The folder cannot be made or used.
    #[error("the state folder {folder:?} cannot be used")]
    Folder {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Another run has the disk.
    #[error("another run holds the journal {path:?} of this disk")]
    Held { path: PathBuf },
    /// A record could not be made durable.
    #[error("a record could not be written to {path:?}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl JournalError {
    /// The file or folder that it is about.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Folder { folder: path, .. } | Self::Held { path } | Self::Write { path, .. } => path,
        }
    }
}

/// An open journal, locked for this run.
#[derive(Debug)]
pub(crate) struct Journal {
    id: String,
    path: PathBuf,
    lock: LockFile,
}

impl Journal {
    /// Opens the journal of the disk that `key` names, and locks it; what an earlier run left is cut off.
    ///
    /// # Errors
    ///
    /// When the folder cannot be used, or another run holds the journal.
    pub(crate) fn begin(state_dir: &Path, key: &serde_json::Value) -> Result<Self, JournalError> {
        let folder = state_dir.join("journals");
        let unusable = |source| JournalError::Folder { folder: folder.clone(), source };
        durable::make_folder(&folder).map_err(unusable)?;
        let name = format!("{}.journal", &Digest::of(key.to_string().as_bytes()).to_string()[..32]);
        let path = folder.join(&name);
        let lock = lock_file::acquire(&folder, &name).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => JournalError::Held { path: path.clone() },
            _ => unusable(error),
        })?;
        lock.file().set_len(0).map_err(unusable)?;
        durable::sync_folder(&folder).map_err(unusable)?;
        Ok(Self { id: uuid::Uuid::new_v4().to_string(), path, lock })
    }

    /// The run's name, which the disk's head carries while the run is unfinished.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Adds a record; it is durable when this returns.
    ///
    /// # Errors
    ///
    /// When it is not: then the step that it announces must not begin.
    pub(crate) fn record(&mut self, record: &Record<'_>) -> Result<(), JournalError> {
        let failed = |source| JournalError::Write { path: self.path.clone(), source };
        let text = serde_json::to_string(record).map_err(|error| failed(error.into()))?;
        let checksum = Digest::of(text.as_bytes()).to_string();
        let line = format!("{} {text}\n", &checksum[..16]);
        let written = self.lock.file().write_all(line.as_bytes()).and_then(|()| self.lock.file().sync_all());
        written.map_err(failed)
    }

    /// The run has ended well: the journal is of no more use.
    ///
    /// # Errors
    ///
    /// When it could not be removed.
    pub(crate) fn finish(mut self) -> Result<(), JournalError> {
        self.record(&Record::Finished)?;
        let path = self.path.clone();
        self.lock.remove().map_err(|source| JournalError::Write { path, source })
    }

    /// Nothing of the disk changed: the journal says nothing and goes.
    pub(crate) fn discard(self) {
        // A journal that stays is cut off by the next run.
        let _ = self.lock.remove();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_second_run_on_the_same_disk_is_kept_out_until_the_first_ends() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        let key = serde_json::json!({"inode": 7});
        let first = Journal::begin(&state, &key).unwrap();
        assert!(matches!(Journal::begin(&state, &key), Err(JournalError::Held { .. })));
        Journal::begin(&state, &serde_json::json!({"inode": 8})).expect("another disk is free");
        first.finish().unwrap();
        Journal::begin(&state, &key).expect("the disk is free again");
    }

    #[test]
    fn every_line_carries_the_checksum_of_its_record() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(folder.path(), &serde_json::json!(1)).unwrap();
        journal.record(&Record::Invalidated).unwrap();
        journal.record(&Record::Verified { root: Digest::of(b"") }).unwrap();
        let text = fs::read_to_string(&journal.path).unwrap();
        assert_eq!(text.lines().count(), 2);
        for line in text.lines() {
            let (checksum, record) = line.split_once(' ').unwrap();
            assert_eq!(checksum, &Digest::of(record.as_bytes()).to_string()[..16]);
        }
    }
}
