//! The record of a run in the state folder: what was begun, and how far it came.
//!
//! One file a disk, named by the disk's identity and never by its path; one line a record, each with its own
//! checksum. While a run lives it holds a lock on its file, which keeps a second run off the same storage. A run
//! on a disk that an earlier one left unfinished writes behind that one's records, which stand until the disk is
//! complete. `read` tells what a journal says, `chunks` has the digests of what is on the disk already, `earlier` says
//! whether a run goes on from there, `holds` remembers which image a disk has, `captures` which unfinished image a
//! capture writes, `kept` knows what was kept of old disks, and `stale` removes what dead runs left.

pub(crate) mod captures;
mod chunks;
mod earlier;
mod holds;
mod images;
pub(crate) mod kept;
mod read;
pub(crate) mod stale;

pub(crate) use earlier::{Bound, Earlier, GoOn, look, of_namesakes};
pub(crate) use holds::{forget, holds, remember};
pub(crate) use images::{WholeImage, known_chunks, known_image, remember_image};
pub(crate) use read::{JournalSummary, Staged, earlier_ptuuid, has_left, list, unfinished_runs};

use std::cell::{Cell, RefCell};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{ErrorKind, TargetState};
use crate::sys::durable;
use crate::sys::lock_file::{self, LockFile};
use crate::verify::Digest;
use chunks::ChunkNotes;

/// Ends the name of a journal.
const SUFFIX: &str = ".journal";
/// Progress is noted at most this often within a phase.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// A line of progress is filled up to this length, so that the next can take its place.
const PROGRESS_LEN: usize = 160;
/// Records of earlier runs that are longer than this are cut off.
const MOST_KEPT: u64 = 256 << 10;

/// A step of a run that is durable before the next begins (but for `Progress`).
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub(crate) enum Record<'a> {
    /// The run is about to begin; nothing of the disk has changed.
    Begun {
        journal: &'a str,
        /// The instance's name, where one is known.
        instance: Option<&'a str>,
        /// Where the disk is, for people and for whoever asks by path; it identifies nothing.
        path: &'a str,
        pid: u32,
        /// Seconds since 1970.
        started_s: u64,
        /// The partition table's id that the disk had before the first run that is unfinished on it.
        ptuuid: Option<&'a str>,
        /// What the image is, as its room says it.
        image: &'a serde_json::Value,
        /// What the disk is, as the guard says it.
        target: &'a serde_json::Value,
        chunk_bytes: u64,
        target_bytes: u64,
        gpt: &'a serde_json::Value,
        /// The run whose old disk this one brings back.
        undoes: Option<&'a str>,
    },
    /// A new file is written beside the disk's, under this name.
    Staged { temporary: &'a str, device: u64, inode: u64 },
    /// The disk's head is about to say that a rebuild is unfinished.
    Invalidated,
    /// How far a phase has come; not synced, and each takes the last one's place.
    Progress { phase: &'a str, bytes_done: u64, bytes_total: u64 },
    /// Everything but both ends reads back right; the root stands for all chunks.
    Verified { root: Digest },
    /// The new seed is in its place.
    Seeded,
    /// The new file is about to take the old one's place.
    Exchanging,
    /// The disk is complete.
    Finished,
    /// The run ended with an error and left the disk so.
    Failed { kind: ErrorKind, target_state: TargetState, message: &'a str },
}

impl Record<'_> {
    /// The record and its checksum; the text is filled up with spaces to `len`.
    fn line(&self, len: usize) -> io::Result<String> {
        let text = serde_json::to_string(self)?;
        let text = format!("{text:<len$}");
        Ok(format!("{} {text}\n", checksum(&text)))
    }
}

/// The name of what the state folder keeps of the disk of that key.
pub(crate) fn name_of(key: &serde_json::Value) -> String {
    Digest::of(key.to_string().as_bytes()).to_string()[..32].to_owned()
}

fn checksum(text: &str) -> String {
    Digest::of(text.as_bytes()).to_string()[..16].to_owned()
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
    /// Where this run's records begin, behind those of an earlier one.
    start: u64,
    /// Whether that left the disk unfinished.
    follows_unfinished: bool,
    /// Where the next record goes.
    end: Cell<u64>,
    progress: Cell<Option<ProgressLine>>,
    /// `None` once they could not be written.
    notes: RefCell<Option<ChunkNotes>>,
}

/// The line of progress that the next one replaces.
#[derive(Clone, Copy, Debug)]
struct ProgressLine {
    at: u64,
    written: Instant,
    phase: &'static str,
}

impl Journal {
    /// Opens the journal of the disk that `key` names, locks it, and says what an earlier run left.
    ///
    /// Its records stay as long as the disk is unfinished, else they are cut off.
    ///
    /// # Errors
    ///
    /// When the folder cannot be used, or another run holds the journal.
    pub(crate) fn begin(
        state_dir: &Path,
        key: &serde_json::Value,
        bound: Bound,
        go_on: GoOn,
    ) -> Result<(Self, Earlier), JournalError> {
        let folder = folder(state_dir);
        let unusable = |source| JournalError::Folder { folder: folder.clone(), source };
        durable::make_folder(&folder).map_err(unusable)?;
        let name = format!("{}{SUFFIX}", name_of(key));
        let path = folder.join(&name);
        let lock = lock_file::acquire(&folder, &name).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => JournalError::Held { path: path.clone() },
            _ => unusable(error),
        })?;
        let left = read::left(lock.file()).map_err(unusable)?;
        let start = if left.len <= MOST_KEPT { left.len } else { 0 };
        // Before the records: where this is cut off, they still say that there is something to go on with.
        let (notes, earlier) = earlier::open(&path, &left, bound, go_on).map_err(unusable)?;
        lock.file().set_len(start).map_err(unusable)?;
        durable::sync_with_parents(&folder).map_err(unusable)?;
        let id = uuid::Uuid::new_v4().to_string();
        let follows_unfinished = left.summary.is_unfinished();
        let (end, progress, notes) = (Cell::new(start), Cell::new(None), RefCell::new(Some(notes)));
        Ok((Self { id, path, lock, start, follows_unfinished, end, progress, notes }, earlier))
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
    pub(crate) fn record(&self, record: &Record<'_>) -> Result<(), JournalError> {
        let written = record.line(0).and_then(|line| {
            self.lock.file().write_all_at(line.as_bytes(), self.end.get())?;
            self.end.set(self.end.get() + line.len() as u64);
            self.progress.set(None);
            self.lock.file().sync_all()
        });
        written.map_err(|source| JournalError::Write { path: self.path.clone(), source })
    }

    /// Notes how far a phase has come, for whoever asks meanwhile; nothing waits for it.
    pub(crate) fn progress(&self, phase: &'static str, bytes_done: u64, bytes_total: u64) {
        let last = self.progress.get();
        let is_recent =
            |line: ProgressLine| line.phase == phase && line.written.elapsed() < PROGRESS_INTERVAL;
        if last.is_some_and(is_recent) {
            return;
        }
        let at = last.map_or(self.end.get(), |line| line.at);
        let Ok(line) = (Record::Progress { phase, bytes_done, bytes_total }).line(PROGRESS_LEN) else {
            return;
        };
        // Where the state folder is full, the disk must be rebuilt nevertheless; half a line is overwritten.
        if self.lock.file().write_all_at(line.as_bytes(), at).is_ok() {
            self.end.set(at + line.len() as u64);
            self.progress.set(Some(ProgressLine { at, written: Instant::now(), phase }));
        }
    }

    /// Notes chunks that a sync has made durable, for a run that goes on from there.
    ///
    /// # Errors
    ///
    /// The first time that they cannot be noted; from then on nothing is, and a later run copies what is missing.
    pub(crate) fn note(&self, chunks: &[(u64, Digest)]) -> Result<(), JournalError> {
        let mut notes = self.notes.borrow_mut();
        let Some(open) = notes.as_mut().filter(|_| !chunks.is_empty()) else { return Ok(()) };
        open.append(chunks).map_err(|source| {
            *notes = None;
            JournalError::Write { path: chunks_beside(&self.path), source }
        })
    }

    /// The run has ended well: the journal is of no more use.
    ///
    /// # Errors
    ///
    /// When it could not be removed.
    pub(crate) fn finish(self) -> Result<(), JournalError> {
        self.record(&Record::Finished)?;
        let path = self.path;
        let removed = chunks::remove(&chunks_beside(&path)).and_then(|()| self.lock.remove());
        removed.map_err(|source| JournalError::Write { path, source })
    }

    /// This run changed nothing of the disk: only what an earlier one left stays.
    pub(crate) fn discard(self) {
        // What stays by a failure is cut off by the next run, and read as a run that changed nothing.
        let _ = match self.follows_unfinished {
            false => chunks::remove(&chunks_beside(&self.path)).and_then(|()| self.lock.remove()),
            true => self.lock.file().set_len(self.start).and_then(|()| self.lock.file().sync_all()),
        };
    }
}

/// Keeps every run off the disks of these keys, as long as what is returned lives.
///
/// # Errors
///
/// When a run is at work on one of them (`WouldBlock`), or the folder cannot be used.
pub(crate) fn hold_all<'a>(
    state_dir: &Path,
    keys: impl Iterator<Item = &'a serde_json::Value>,
) -> io::Result<Vec<HeldJournal>> {
    let folder = folder(state_dir);
    durable::make_folder(&folder)?;
    let mut names: Vec<_> = keys.map(|key| format!("{}{SUFFIX}", name_of(key))).collect();
    names.sort_unstable();
    names.dedup();
    names.iter().map(|name| Ok(HeldJournal(Some(lock_file::acquire(&folder, name)?)))).collect()
}

/// A journal that no run can take meanwhile; one that says nothing is removed at the end.
pub(crate) struct HeldJournal(Option<LockFile>);

impl Drop for HeldJournal {
    fn drop(&mut self) {
        let is_empty = |lock: &LockFile| lock.file().metadata().is_ok_and(|of| of.len() == 0);
        // What stays by a failure is removed by `prune`.
        let _ = self.0.take().filter(is_empty).map(LockFile::remove);
    }
}

/// Where the digests of a disk's chunks are noted.
fn chunks_beside(journal: &Path) -> PathBuf {
    journal.with_extension("chunks")
}

/// Where the journals lie in a state folder.
fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("journals")
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
        let begin = |key: &serde_json::Value| {
            Journal::begin(&state, key, Bound::of(&1, 1), GoOn::IfItCan).map(|(journal, _)| journal)
        };
        let first = begin(&key).unwrap();
        assert!(matches!(begin(&key), Err(JournalError::Held { .. })));
        begin(&serde_json::json!({"inode": 8})).expect("another disk is free");
        first.finish().unwrap();
        begin(&key).expect("the disk is free again");
    }

    #[test]
    fn every_line_carries_the_checksum_of_its_record() {
        let folder = tempfile::tempdir().unwrap();
        let bound = Bound::of(&1, 1);
        let (journal, _) =
            Journal::begin(folder.path(), &serde_json::json!(1), bound, GoOn::IfItCan).unwrap();
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
