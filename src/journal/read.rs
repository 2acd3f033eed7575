//! What the journals in a state folder say. They are read with bounds, and nothing of them is believed that its
//! checksum does not carry: a torn tail is cut, and a line that is not as it was written ends the reading.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Deserialize;

use super::{checksum, folder};
use crate::error::{ErrorKind, TargetState};
use crate::sys::{lock_file, store};

/// More files than this are not looked at.
const MOST_FILES: usize = 4096;
/// More of one file than this is not read.
const MOST_BYTES: u64 = 1 << 20;
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
    /// The runs that it tells of, the last one last; all of them left the disk unfinished, but for the last.
    runs: Vec<Begun>,
    /// How far the last run had come.
    pub(crate) progress: Option<Progress>,
    /// Whether the disk's head says, or is about to say, that a rebuild is unfinished.
    pub(crate) invalidated: bool,
    /// Whether everything but both ends was read back.
    pub(crate) verified: bool,
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
    #[serde(default)]
    ptuuid: Option<String>,
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
    Invalidated,
    Progress(Progress),
    Verified,
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

    fn take(&mut self, record: Known) {
        match record {
            Known::Begun(begun) => {
                // The disk stays unfinished until a run ends well.
                let unfinished = self.is_unfinished();
                let runs = if unfinished { std::mem::take(&mut self.runs) } else { Vec::new() };
                *self = Self { runs, invalidated: unfinished, ..Self::default() };
                self.runs.push(begun);
            }
            Known::Invalidated => self.invalidated = true,
            Known::Progress(progress) => self.progress = Some(progress),
            Known::Verified => self.verified = true,
            Known::Exchanging => self.exchanging = true,
            Known::Finished => self.finished = true,
            Known::Failed(failed) => self.failed = Some(failed),
            Known::Other => {}
        }
    }

    fn is_unfinished(&self) -> bool {
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
    for (count, name) in names.filter(|name| name.ends_with(".journal")).enumerate() {
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

/// How much of an open journal is to be kept because the disk is unfinished.
pub(super) fn unfinished_len(file: &File) -> io::Result<u64> {
    let (summary, len) = parse(&read_bounded(file, MOST_BYTES)?);
    Ok(if summary.is_unfinished() { len } else { 0 })
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
            let summary = JournalSummary { held: now, ..parse(&bytes).0 };
            return Ok((!summary.runs.is_empty()).then_some(summary));
        }
        held = now;
    }
    unreachable!("the last try returns")
}

fn read_bounded(file: &File, most: u64) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len().min(most);
    let mut bytes = vec![0; usize::try_from(len).expect("a bound fits in memory")];
    let count = store::read_up_to(file, &mut bytes, 0)?;
    bytes.truncate(count);
    Ok(bytes)
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
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use super::super::{Journal, Record};
    use super::*;
    use crate::verify::Digest;

    fn begin(state_dir: &Path) -> Journal {
        Journal::begin(state_dir, &json!("a disk")).unwrap()
    }

    fn record_begun(journal: &Journal, ptuuid: Option<&str>) {
        let begun = Record::Begun {
            journal: journal.id(),
            instance: Some("i-1"),
            path: "/disk.raw",
            pid: 7,
            started_s: 42,
            ptuuid,
            image: &Value::Null,
            target: &Value::Null,
            chunk_bytes: 1,
            target_bytes: 1,
            gpt: &Value::Null,
        };
        journal.record(&begun).unwrap();
    }

    /// The one journal in a state folder.
    #[track_caller]
    fn only(state_dir: &Path) -> JournalSummary {
        let mut listing = list(state_dir).unwrap();
        assert_eq!((listing.journals.len(), listing.unread), (1, 0));
        listing.journals.remove(0)
    }

    fn file_in(state_dir: &Path) -> PathBuf {
        let mut entries = fs::read_dir(folder(state_dir)).unwrap();
        entries.next().expect("a journal is there").unwrap().path()
    }

    fn interrupted(state_dir: &Path, ptuuid: Option<&str>) -> String {
        let journal = begin(state_dir);
        record_begun(&journal, ptuuid);
        journal.record(&Record::Invalidated).unwrap();
        journal.progress("copy", 0, 100);
        journal.id().to_owned()
    }

    #[test]
    fn what_was_recorded_is_read_and_a_living_run_is_told_from_a_dead_one() {
        let state = tempfile::tempdir().unwrap();
        assert!(list(state.path()).unwrap().journals.is_empty(), "a folder that is not there is empty");
        let journal = begin(state.path());
        record_begun(&journal, None);
        journal.record(&Record::Invalidated).unwrap();
        journal.progress("copy", 50, 100);
        journal.record(&Record::Verified { root: Digest::of(b"") }).unwrap();
        let message = "a\nb";
        let (kind, target_state) = (ErrorKind::Mismatch, TargetState::Written);
        journal.record(&Record::Failed { kind, target_state, message }).unwrap();
        let read = only(state.path());
        let last = read.last();
        assert_eq!((last.instance.as_deref(), last.path.as_str()), (Some("i-1"), "/disk.raw"));
        assert_eq!((last.pid, last.started_s), (7, 42));
        assert!(read.names(journal.id()) && read.held && read.invalidated && read.verified);
        assert!(!read.exchanging && !read.finished);
        assert_eq!(read.failed.unwrap().message, message);
        let progress = read.progress.unwrap();
        assert_eq!((progress.phase.as_str(), progress.bytes_done, progress.bytes_total), ("copy", 50, 100));
        drop(journal);
        assert!(!only(state.path()).held);
    }

    #[test]
    fn a_torn_tail_is_cut_at_the_last_whole_line() {
        let state = tempfile::tempdir().unwrap();
        interrupted(state.path(), None);
        let whole = fs::read(file_in(state.path())).unwrap();
        let ends: Vec<_> = (1..=whole.len()).filter(|end| whole[end - 1] == b'\n').collect();
        assert_eq!(ends.len(), 3);
        for len in 0..=whole.len() {
            let (read, kept) = parse(&whole[..len]);
            let lines = ends.iter().filter(|end| **end <= len).count();
            let found = (read.runs.len(), read.invalidated, read.progress.is_some());
            assert_eq!(found, (lines.min(1), lines > 1, lines > 2), "{len} bytes");
            assert_eq!(kept, ends[..lines].last().copied().unwrap_or(0) as u64, "{len} bytes");
        }
    }

    #[test]
    fn a_line_of_which_a_byte_is_flipped_ends_the_reading() {
        let state = tempfile::tempdir().unwrap();
        interrupted(state.path(), None);
        let whole = fs::read(file_in(state.path())).unwrap();
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            let lines = whole[..at].iter().filter(|byte| **byte == b'\n').count();
            let read = parse(&bad).0;
            let found = (read.runs.len(), read.invalidated, read.progress.is_some());
            assert_eq!(found, (lines.min(1), lines > 1, lines > 2), "byte {at}");
        }
    }

    #[test]
    fn records_of_a_later_version_are_passed_over() {
        let line = |text: &str| format!("{} {text}\n", checksum(text));
        let text = [
            line(r#"{"record":"begun","journal":"j","colour":"red"}"#),
            line(r#"{"record":"chunks","digests":[1,2]}"#),
            line(r#"{"record":"failed","kind":"bored","target_state":"partial","message":""}"#),
            line(r#"{"record":"verified","root":"00"}"#),
        ];
        let read = parse(text.concat().as_bytes()).0;
        assert!(read.names("j") && read.verified && read.failed.is_none());
    }

    #[test]
    fn huge_lines_and_other_files_are_passed_over() {
        let state = tempfile::tempdir().unwrap();
        interrupted(state.path(), None);
        let folder = folder(state.path());
        let good = fs::read(file_in(state.path())).unwrap();
        let huge = vec![b'x'; 8 << 20];
        fs::write(folder.join("1.journal"), &huge).unwrap();
        fs::write(folder.join("2.journal"), [&good[..], &huge].concat()).unwrap();
        File::create(folder.join("3.journal")).unwrap().set_len(1 << 40).unwrap();
        std::os::unix::fs::symlink(file_in(state.path()), folder.join("4.journal")).unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, folder.join("5.journal"), mode).unwrap();
        fs::create_dir(folder.join("6.journal")).unwrap();
        fs::write(folder.join("else"), "").unwrap();
        let listing = list(state.path()).unwrap();
        assert_eq!((listing.journals.len(), listing.unread), (2, 5));
        assert!(listing.journals.iter().all(|journal| journal.invalidated));
    }

    #[test]
    fn of_ten_thousand_files_and_of_many_bytes_a_bounded_part_is_read() {
        let state = tempfile::tempdir().unwrap();
        interrupted(state.path(), None);
        let folder = folder(state.path());
        let good = file_in(state.path());
        for number in 1..10_000 {
            fs::hard_link(&good, folder.join(format!("{number}.journal"))).unwrap();
        }
        let listing = list(state.path()).unwrap();
        assert_eq!((listing.journals.len(), listing.unread), (MOST_FILES, 10_000 - MOST_FILES));
        let large = [fs::read(&good).unwrap(), vec![0; 1 << 20]].concat();
        fs::write(&good, large).unwrap();
        let most = usize::try_from(MOST_BYTES_OF_ALL / MOST_BYTES).unwrap();
        assert_eq!(list(state.path()).unwrap().journals.len(), most);
    }

    #[test]
    fn progress_takes_the_place_of_the_last_one_until_a_record_follows() {
        let state = tempfile::tempdir().unwrap();
        let journal = begin(state.path());
        record_begun(&journal, None);
        let len = || fs::metadata(file_in(state.path())).unwrap().len();
        journal.progress("copy", 0, u64::MAX);
        let with_one = len();
        journal.progress("copy", 1, u64::MAX);
        assert_eq!(only(state.path()).progress.unwrap().bytes_done, 0, "it is noted once a second");
        journal.progress("read_back", u64::MAX, u64::MAX);
        assert_eq!(len(), with_one);
        let progress = only(state.path()).progress.unwrap();
        assert_eq!((progress.phase.as_str(), progress.bytes_done), ("read_back", u64::MAX));
        journal.record(&Record::Invalidated).unwrap();
        journal.progress("copy", 3, 4);
        journal.record(&Record::Verified { root: Digest::of(b"") }).unwrap();
        let read = only(state.path());
        assert!(read.invalidated && read.verified && read.progress.unwrap().bytes_done == 3);
    }

    #[test]
    fn what_an_unfinished_run_left_stays_until_the_disk_is_complete() {
        let state = tempfile::tempdir().unwrap();
        let ptuuid = |journal: &str| earlier_ptuuid(state.path(), journal);
        let first = interrupted(state.path(), Some("abc"));
        assert_eq!(ptuuid(&first).as_deref(), Some("abc"));
        assert_eq!(ptuuid("another"), None);
        // A second run that is killed at once, and a third that gives up, change nothing of it.
        drop(begin(state.path()));
        let third = begin(state.path());
        record_begun(&third, ptuuid(&first).as_deref());
        assert_eq!(ptuuid(third.id()).as_deref(), Some("abc"));
        assert!(only(state.path()).names(&first), "the disk still carries the first run's marker");
        third.discard();
        let read = only(state.path());
        assert!(read.invalidated && read.last().journal == first);
        assert_eq!(read.target_state(), TargetState::Partial);
        let fourth = begin(state.path());
        record_begun(&fourth, None);
        assert!(only(state.path()).invalidated, "it has not begun to write, and the disk is unfinished");
        fourth.record(&Record::Finished).unwrap();
        drop(fourth);
        // As after a kill between the last record and the file's end.
        let fifth = begin(state.path());
        record_begun(&fifth, None);
        assert!(!only(state.path()).names(&first));
        fifth.finish().unwrap();
        assert!(list(state.path()).unwrap().journals.is_empty());
    }

    #[test]
    fn a_run_that_touched_nothing_leaves_nothing() {
        let state = tempfile::tempdir().unwrap();
        let journal = begin(state.path());
        record_begun(&journal, None);
        journal.discard();
        assert_eq!(fs::read_dir(folder(state.path())).unwrap().count(), 0);
    }

    #[test]
    fn records_do_not_pile_up_without_end() {
        let state = tempfile::tempdir().unwrap();
        let long = "x".repeat(100 << 10);
        for _ in 0..8 {
            interrupted(state.path(), Some(&long));
        }
        assert!(fs::metadata(file_in(state.path())).unwrap().len() < 512 << 10);
        assert!(only(state.path()).invalidated);
    }
}
