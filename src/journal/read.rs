//! What the journals in a state folder say. They are read with bounds, and nothing of them is believed that its
//! checksum does not carry: a torn tail is cut, and a line that is not as it was written ends the reading.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{SUFFIX, checksum, folder};
use crate::error::{ErrorKind, TargetState};
use crate::sys::{lock_file, store};

/// More files than this are not looked at.
pub(super) const MOST_FILES: usize = 4096;
/// More of one file than this is not read.
pub(super) const MOST_BYTES: u64 = 1 << 20;
/// More of all files together than this is not read.
const MOST_BYTES_OF_ALL: u64 = 64 << 20;

/// The journals of a state folder.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) journals: Vec<JournalSummary>,
    /// How many files are there that say nothing that could be read.
    pub(crate) unread: usize,
}

/// What the journal of one disk says.
#[derive(Clone, Debug, Default)]
pub(crate) struct JournalSummary {
    /// The name of its file, without the ending.
    pub(crate) stem: String,
    /// The runs that it tells of, the last one last; all of them left the disk unfinished, but for the last.
    runs: Vec<Begun>,
    /// How far the last run had come.
    pub(crate) progress: Option<Progress>,
    /// The new file that is written beside the disk's.
    pub(crate) staged: Option<Staged>,
    /// Whether the disk's head says, or is about to say, that a rebuild is unfinished.
    pub(crate) invalidated: bool,
    /// Whether the run went on after it had said so, so that the marker is whole.
    is_marked: bool,
    /// Whether everything but both ends was read back.
    pub(crate) verified: bool,
    /// Whether the new seed is in its place.
    pub(crate) seeded: bool,
    /// Whether the new file may have taken the old one's place.
    pub(crate) exchanging: bool,
    /// Whether the disk is complete.
    pub(crate) finished: bool,
    /// How the last run ended, where it could still tell.
    pub(crate) failed: Option<Failed>,
    /// Whether a living run holds it.
    pub(crate) held: bool,
}

/// How a run began.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Begun {
    pub(crate) journal: String,
    #[serde(default)]
    pub(crate) instance: Option<String>,
    #[serde(default)]
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) pid: u32,
    #[serde(default)]
    pub(crate) started_s: u64,
    /// What the disk is, as the guard says it.
    #[serde(default)]
    pub(crate) target: serde_json::Value,
    #[serde(default)]
    ptuuid: Option<String>,
    /// The run whose old disk this one brings back.
    #[serde(default)]
    pub(crate) undoes: Option<String>,
}

/// A new file that waits to take the disk's place.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Staged {
    pub(crate) temporary: PathBuf,
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// How far a phase had come, in bytes.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Progress {
    pub(crate) phase: String,
    pub(crate) bytes_done: u64,
    pub(crate) bytes_total: u64,
}

/// How a run failed.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Failed {
    pub(crate) kind: ErrorKind,
    pub(crate) target_state: TargetState,
    pub(crate) message: String,
}

/// A record as it is read; those of a later version are passed over.
#[derive(Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
enum Known {
    Begun(Begun),
    Staged(Staged),
    Invalidated,
    Progress(Progress),
    Verified,
    Seeded,
    Exchanging,
    Finished,
    Failed(Failed),
    #[serde(other)]
    Other,
}

impl JournalSummary {
    /// How the last run began.
    pub(crate) fn last(&self) -> &Begun {
        self.runs.last().expect("a summary is made of at least one run")
    }

    /// How many chunks its run has noted as being on the disk for good.
    pub(crate) fn chunks_noted(&self, state_dir: &Path) -> u64 {
        let journal = folder(state_dir).join(format!("{}{SUFFIX}", self.stem));
        // What cannot be read is nothing to go on with.
        super::chunks::count(&super::chunks_beside(&journal)).unwrap_or(0)
    }

    /// Whether it tells of any run.
    pub(crate) fn has_runs(&self) -> bool {
        !self.runs.is_empty()
    }

    /// Whether a run of that name left its record here.
    pub(crate) fn names(&self, journal: &str) -> bool {
        self.runs.iter().any(|run| run.journal == journal)
    }

    /// What the last run left of the disk, as far as records tell.
    pub(crate) fn target_state(&self) -> TargetState {
        let phase = self.progress.as_ref().map(|progress| progress.phase.as_str());
        match (&self.failed, phase) {
            (Some(failed), _) => failed.target_state,
            _ if !self.invalidated => TargetState::Untouched,
            _ if self.verified => TargetState::Written,
            (None, Some("copy")) => TargetState::Partial,
            (None, Some("read_back")) => TargetState::Written,
            (None, _) => TargetState::Invalidated,
        }
    }

    /// Whether the last run may have written the disk's first block, torn perhaps, when it was cut off: then only the
    /// journal says that the disk is unfinished. So it is as well before the marker's own write.
    pub(crate) fn may_have_torn_the_head(&self) -> bool {
        match (&self.failed, &self.progress) {
            (Some(failed), _) => failed.target_state >= TargetState::Written,
            (None, None) => true,
            (None, Some(_)) if !self.is_marked => true,
            (None, Some(progress)) => {
                self.verified
                    || (progress.phase != "read_back" && progress.bytes_done >= progress.bytes_total)
            }
        }
    }

    fn take(&mut self, record: Known) {
        match record {
            Known::Begun(begun) => {
                // The disk stays unfinished until a run ends well.
                let unfinished = self.is_unfinished();
                let runs = if unfinished { std::mem::take(&mut self.runs) } else { Vec::new() };
                // A new file beside it stays until a run takes it up, or removes it.
                let staged = self.staged.take().filter(|_| !self.finished);
                *self = Self { runs, staged, invalidated: unfinished, ..Self::default() };
                self.runs.push(begun);
            }
            Known::Staged(staged) => self.staged = Some(staged),
            Known::Invalidated => (self.invalidated, self.is_marked) = (true, false),
            Known::Progress(progress) => (self.progress, self.is_marked) = (Some(progress), true),
            Known::Verified => self.verified = true,
            Known::Seeded => self.seeded = true,
            Known::Exchanging => self.exchanging = true,
            Known::Finished => self.finished = true,
            Known::Failed(failed) => self.failed = Some(failed),
            Known::Other => {}
        }
    }

    /// Whether the disk was left in between.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.invalidated && !self.finished
    }
}

/// What all journals of a state folder say; a folder that is not there holds none.
pub(crate) fn list(state_dir: &Path) -> io::Result<Listing> {
    let folder = folder(state_dir);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
        entries => entries?,
    };
    let (mut listing, mut left) = (Listing::default(), MOST_BYTES_OF_ALL);
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for (count, name) in names.filter(|name| name.ends_with(SUFFIX)).enumerate() {
        let read = if count < MOST_FILES { look_at(&folder, &name, &mut left) } else { Ok(None) };
        match read {
            Ok(Some(summary)) => listing.journals.push(summary),
            // Its run has ended since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(None) | Err(_) => listing.unread += 1,
        }
    }
    Ok(listing)
}

/// The id of the partition table that a disk had before the run whose name its marker carries.
pub(crate) fn earlier_ptuuid(state_dir: &Path, journal: &str) -> Option<String> {
    let journals = list(state_dir).ok()?.journals;
    let mut runs = journals.into_iter().flat_map(|summary| summary.runs);
    runs.find(|run| run.journal == journal)?.ptuuid
}

/// The runs that left the disk of that key unfinished, and those that they were to undo; none where it is whole.
pub(crate) fn unfinished_runs(state_dir: &Path, key: &serde_json::Value) -> io::Result<Vec<String>> {
    let path = folder(state_dir).join(format!("{}{SUFFIX}", super::name_of(key)));
    let left = left_at(&path)?.filter(|left| left.summary.is_unfinished());
    let runs = left.map(|left| left.summary.runs).unwrap_or_default();
    Ok(runs.into_iter().flat_map(|run| [Some(run.journal), run.undoes]).flatten().collect())
}

/// Whether the run `journal` was cut off before its end, on the disk that had or has those keys.
pub(crate) fn has_left<'a>(
    state_dir: &Path,
    keys: impl Iterator<Item = &'a serde_json::Value>,
    journal: &str,
) -> io::Result<bool> {
    for key in keys {
        let left = left_at(&folder(state_dir).join(format!("{}{SUFFIX}", super::name_of(key))))?;
        if left.is_some_and(|left| left.summary.names(journal) && !left.summary.finished) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What an earlier run left in a journal.
pub(super) struct Left {
    pub(super) summary: JournalSummary,
    /// How much of the file is to be kept because the disk, or a new file beside it, is unfinished.
    pub(super) len: u64,
    /// Whether a record is not as it was written, although others follow.
    pub(super) is_damaged: bool,
}

/// Reads what an earlier run left.
pub(super) fn left(file: &File) -> io::Result<Left> {
    let bytes = read_bounded(file, MOST_BYTES)?;
    let (summary, len) = parse(&bytes);
    let rest = &bytes[usize::try_from(len).expect("it is in memory")..];
    let is_damaged = rest.split_inclusive(|byte| *byte == b'\n').any(|line| text_of(line).is_some());
    let is_pending = summary.staged.is_some() && !summary.finished;
    let len = if summary.is_unfinished() || is_pending { len } else { 0 };
    Ok(Left { summary, len, is_damaged })
}

/// The same of a journal that nobody is going to continue now.
pub(super) fn left_at(path: &Path) -> io::Result<Option<Left>> {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    match File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) if file.metadata()?.is_file() => left(&file).map(Some),
        Ok(_) => Err(io::ErrorKind::InvalidInput.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// One journal, and whether a run holds it: asked before and after, so that both belong together.
fn look_at(folder: &Path, name: &str, left: &mut u64) -> io::Result<Option<JournalSummary>> {
    const MOST_TRIES: u32 = 3;
    let mut held = lock_file::is_held(folder, name)?;
    for tries in 1.. {
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags).open(folder.join(name))?;
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let bytes = read_bounded(&file, MOST_BYTES.min(*left))?;
        *left -= bytes.len() as u64;
        let now = lock_file::is_held(folder, name)?;
        if now == held || tries == MOST_TRIES {
            let stem = name.strip_suffix(SUFFIX).unwrap_or(name).to_owned();
            let summary = JournalSummary { stem, held: now, ..parse(&bytes).0 };
            return Ok((!summary.runs.is_empty()).then_some(summary));
        }
        held = now;
    }
    unreachable!("the last try returns")
}

pub(super) fn read_bounded(file: &File, most: u64) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len().min(most);
    let mut bytes = vec![0; usize::try_from(len).expect("a bound fits in memory")];
    let count = store::read_up_to(file, &mut bytes, 0)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// What a journal's bytes say; `None` where they tell of no run.
pub(super) fn summary(bytes: &[u8]) -> Option<JournalSummary> {
    Some(parse(bytes).0).filter(|summary| !summary.runs.is_empty())
}

/// What the lines say, and where the first that is torn or wrong begins.
fn parse(bytes: &[u8]) -> (JournalSummary, u64) {
    let (mut summary, mut len) = (JournalSummary::default(), 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(text) = text_of(line) else { break };
        len += line.len() as u64;
        if let Ok(record) = serde_json::from_str(text) {
            summary.take(record);
        }
    }
    (summary, len)
}

fn text_of(line: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (sum, text) = line.split_once(' ')?;
    (sum == checksum(text)).then_some(text)
}

#[cfg(test)]
mod tests;
