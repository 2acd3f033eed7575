//! Removes what dead runs left: lock files, journals that tell nothing any more, unfinished new files and images.
//!
//! What a living run holds stays, what is kept of old disks, and what the next rebuild needs to go on with an
//! unfinished disk. A journal is judged as it lies, then taken by its lock, and removed only if it still says the same:
//! no run is kept waiting while a disk is looked at.

mod captures;
mod judge;
mod kept;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, ErrorKind};
use crate::guard::{self, Topology};
use crate::journal::kept::Kept;
use crate::journal::stale::{self, Content, Found};
use crate::journal::{self, JournalSummary};
use crate::sys::beside::{self, Leftover};
use crate::sys::lock_file;
use judge::judge;

pub(crate) use kept::remove_orphans;

/// More lock files than this are not looked at.
const MOST_LOCKS: usize = 4096;
const HELD: &str = "a living run holds it";

/// What was removed of what dead runs left, and what stayed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PruneReport {
    /// What is gone.
    pub removed: Vec<PruneEntry>,
    /// What is still there.
    pub kept: Vec<PruneEntry>,
}

/// A file, and why it was removed or kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PruneEntry {
    /// The file.
    #[serde(serialize_with = "crate::error::path_text")]
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// Removes from a state folder, and beside the files that its journals name, what dead runs left.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let report = reimage::prune(folder.path())?;
/// assert!(report.removed.is_empty() && report.kept.is_empty());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// When the state folder cannot be read. What cannot be removed is no error; the report says why it stays.
pub fn prune(state_dir: &Path) -> Result<PruneReport, Error> {
    let unreadable = |error| {
        Error::new(ErrorKind::Usage, error)
            .at_path(state_dir)
            .hint_that("name the folder with --state-dir, or ask as the user who ran the rebuild")
    };
    let mut report = PruneReport::default();
    prune_journals(state_dir, &mut report).map_err(unreadable)?;
    captures::prune(state_dir, &mut report).map_err(unreadable)?;
    kept::prune_kept(state_dir, &mut report).map_err(unreadable)?;
    prune_locks(&guard::lock_folder(state_dir), &mut report).map_err(unreadable)?;
    Ok(report)
}

/// Removes what runs left that were killed while a new file took the place of the file `path`, which a later run has
/// completed: their journals name a file that is gone, so that no run comes back to them.
///
/// # Errors
///
/// When the state folder cannot be read. What cannot be removed stays for `prune`.
pub(crate) fn after_exchange(state_dir: &Path, path: &Path) -> io::Result<()> {
    let mut report = PruneReport::default();
    for stem in stale::stems(state_dir)? {
        let Ok(found) = stale::look(state_dir, &stem) else { continue };
        let Content::Says(summary) = &found.content else { continue };
        let begun = summary.last();
        if Path::new(&begun.path) != path || summary.staged.is_none() || summary.invalidated {
            continue;
        }
        let removed = prune_journal(&found, &Topology::of_this_host(Vec::new()), &mut report);
        let lock = guard::lock_name_of(&begun.target["bytes"]).filter(|_| removed.is_ok());
        if let Some(name) = lock {
            prune_lock(&guard::lock_folder(state_dir), &name, &mut report);
        }
    }
    Ok(())
}

/// Removes what dead runs left of a disk that is what it was again: the journals of the rebuild that is undone and of
/// an earlier undo, and the new file that the rebuild was writing.
///
/// # Errors
///
/// When a journal cannot be read. What cannot be removed stays for `prune`.
pub(crate) fn after_undo(state_dir: &Path, kept: &Kept) -> io::Result<()> {
    let mut report = PruneReport::default();
    for key in kept.all_keys() {
        let found = stale::look(state_dir, &journal::name_of(key))?;
        let Content::Says(summary) = &found.content else { continue };
        let begun = summary.last();
        let is_of_it = begun.journal == kept.journal || begun.undoes.as_ref() == Some(&kept.journal);
        // What was spoilt in place is not what it was.
        if !is_of_it || (summary.invalidated && summary.staged.is_none()) {
            continue;
        }
        prune_journal(&found, &Topology::of_this_host(Vec::new()), &mut report)?;
        if let Some(name) = guard::lock_name_of(&begun.target["bytes"]) {
            prune_lock(&guard::lock_folder(state_dir), &name, &mut report);
        }
    }
    Ok(())
}

impl PruneReport {
    fn removed(&mut self, path: &Path, reason: impl Into<String>) {
        self.removed.push(PruneEntry { path: path.to_owned(), reason: reason.into() });
    }

    fn kept(&mut self, path: &Path, reason: impl Into<String>) {
        self.kept.push(PruneEntry { path: path.to_owned(), reason: reason.into() });
    }
}

fn prune_journals(state_dir: &Path, report: &mut PruneReport) -> io::Result<()> {
    let stems = stale::stems(state_dir)?;
    if stems.is_empty() {
        return Ok(());
    }
    let host = Topology::of_this_host(Vec::new());
    for stem in stems {
        let found = match stale::look(state_dir, &stem) {
            Ok(found) => found,
            Err(error) => {
                report.kept(&stale::path(state_dir, &stem), format!("it cannot be read: {error}"));
                continue;
            }
        };
        if let Err(error) = prune_journal(&found, &host, report) {
            report.kept(&found.path, format!("it cannot be removed: {error}"));
        }
    }
    Ok(())
}

fn prune_journal(found: &Found, host: &Topology, report: &mut PruneReport) -> io::Result<()> {
    let verdict = match &found.content {
        Content::Held => Err(HELD.to_owned()),
        Content::Unreadable => Err("what it says cannot be read".to_owned()),
        Content::Nothing => Ok("its run ended before it had begun".to_owned()),
        Content::Says(summary) => judge(summary, host),
    };
    let reason = match verdict {
        Ok(reason) => reason,
        Err(reason) => {
            report.kept(&found.path, reason);
            return Ok(());
        }
    };
    let Some(seized) = found.seize()? else {
        report.kept(&found.path, "a run has taken it just now");
        return Ok(());
    };
    if let Content::Says(summary) = &found.content
        && let Some(stays) = remove_staged(summary, report)?
    {
        report.kept(&found.path, stays);
        return Ok(());
    }
    let (had_journal, chunks) = (!found.is_missing(), found.chunks());
    let had_chunks = chunks.symlink_metadata().is_ok();
    seized.remove()?;
    if had_chunks {
        report.removed(&chunks, if had_journal { reason.as_str() } else { "no journal belongs to it" });
    }
    if had_journal {
        report.removed(&found.path, reason);
    }
    Ok(())
}

/// Removes the new file that a dead run was writing; says why it stays.
fn remove_staged(summary: &JournalSummary, report: &mut PruneReport) -> io::Result<Option<String>> {
    let Some(staged) = &summary.staged else { return Ok(None) };
    let path = &staged.temporary;
    match beside::remove_leftover(path, (staged.device, staged.inode))? {
        Leftover::Gone => Ok(None),
        Leftover::Removed => {
            report.removed(path, "the run that was writing it has ended");
            Ok(None)
        }
        // After the exchange the old disk bears the name.
        Leftover::Stays(_) if summary.exchanging => {
            let stays = "it may be the old disk: the run ended while the new one took its place (reimage verify tells \
                         whether that is complete)";
            report.kept(path, stays);
            Ok(Some(format!("it names {path:?}, which stays")))
        }
        Leftover::Stays(reason) => {
            report.kept(path, reason);
            Ok(Some(format!("it names {path:?}, which stays")))
        }
    }
}

fn prune_locks(folder: &Path, report: &mut PruneReport) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".lock")).take(MOST_LOCKS).collect();
    names.sort_unstable();
    for name in names {
        prune_lock(folder, &name, report);
    }
    Ok(())
}

fn prune_lock(folder: &Path, name: &str, report: &mut PruneReport) {
    let path = folder.join(name);
    // Who only asks keeps nobody out.
    let removed = match lock_file::is_held(folder, name) {
        Ok(true) => Err(io::ErrorKind::WouldBlock.into()),
        Ok(false) => lock_file::acquire(folder, name).and_then(lock_file::LockFile::remove),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => report.removed(&path, "no run holds it"),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => report.kept(&path, HELD),
        Err(error) => report.kept(&path, format!("it cannot be removed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use serde_json::{Value, json};

    use super::*;
    use crate::journal::{Bound, GoOn, Journal, Record};
    use crate::verify::Digest;

    /// A state folder, and a disk beside it.
    pub(super) struct Room {
        pub(super) folder: tempfile::TempDir,
        pub(super) disk: PathBuf,
    }

    impl Room {
        pub(super) fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let disk = folder.path().join("disk.raw");
            fs::write(&disk, [7; 8192]).unwrap();
            Self { folder, disk }
        }

        fn state(&self) -> PathBuf {
            self.folder.path().join("state")
        }

        /// The journal of a run on the disk, as it lies while that lives.
        pub(super) fn begin(&self) -> Journal {
            let place = Topology::of_this_host(Vec::new()).place_of(&self.disk);
            let key = json!({ "bytes": place.map(|(bytes, _)| bytes), "id": "made 1.0" });
            let (journal, _) = Journal::begin(&self.state(), &key, Bound::of(&1, 1), GoOn::IfItCan).unwrap();
            let begun = Record::Begun {
                journal: journal.id(),
                instance: None,
                path: self.disk.to_str().unwrap(),
                pid: 7,
                started_s: 42,
                ptuuid: None,
                image: &Value::Null,
                target: &key,
                chunk_bytes: 1,
                target_bytes: 1,
                gpt: &Value::Null,
                undoes: None,
            };
            journal.record(&begun).unwrap();
            journal
        }

        pub(super) fn journal_file(&self) -> PathBuf {
            let entries = fs::read_dir(self.state().join("journals")).unwrap();
            let mut paths = entries.map(|entry| entry.unwrap().path());
            paths
                .find(|path| path.extension().is_some_and(|name| name == "journal"))
                .expect("a journal is there")
        }

        /// Adds a record that is not written by this version.
        fn append(&self, record: &Value) {
            let text = record.to_string();
            let mut file = File::options().append(true).open(self.journal_file()).unwrap();
            writeln!(file, "{} {text}", &Digest::of(text.as_bytes()).to_string()[..16]).unwrap();
        }

        pub(super) fn prune(&self) -> PruneReport {
            prune(&self.state()).unwrap()
        }

        fn names(&self, folder: &str) -> Vec<String> {
            let entries = fs::read_dir(self.folder.path().join(folder)).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    /// A run that was writing a new file beside the disk, and what lies under its name now.
    fn staged(name: &str) -> (Room, PathBuf) {
        let room = Room::new();
        let journal = room.begin();
        let temporary = room.folder.path().join(name);
        fs::write(&temporary, "half").unwrap();
        let of = temporary.metadata().unwrap();
        drop(journal);
        room.append(
            &json!({ "record": "staged", "temporary": temporary, "device": of.dev(), "inode": of.ino() }),
        );
        (room, temporary)
    }

    const TEMPORARY: &str = ".disk.raw.reimage-unfinished";

    #[test]
    fn the_new_file_of_a_dead_run_goes_with_its_journal_and_no_other_file_does() {
        let (room, temporary) = staged(TEMPORARY);
        let lock = File::open(&temporary).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let report = room.prune();
        assert!(report.removed.is_empty() && temporary.exists(), "somebody holds it: {report:?}");
        assert_eq!(report.kept.iter().filter(|entry| entry.path == temporary).count(), 1);
        drop(lock);
        let report = room.prune();
        assert_eq!((report.removed.len(), report.kept.len()), (3, 0), "{report:?}");
        assert!(!temporary.exists() && room.disk.exists() && room.names("state/journals").is_empty());

        for name in ["disk.raw", "precious"] {
            let (room, other) = staged(name);
            assert!(room.prune().removed.is_empty() && other.exists(), "{name}");
        }
        let (room, temporary) = staged(TEMPORARY);
        room.append(&json!({ "record": "exchanging" }));
        fs::rename(&room.disk, room.folder.path().join("old")).unwrap();
        fs::rename(&temporary, &room.disk).unwrap();
        fs::rename(room.folder.path().join("old"), &temporary).unwrap();
        let report = room.prune();
        assert!(report.removed.is_empty() && temporary.exists(), "{report:?}");
        assert!(report.kept.iter().any(|entry| entry.reason.contains("old disk")), "{report:?}");
    }

    #[test]
    fn orphans_and_journals_that_say_nothing_go_and_what_cannot_be_read_stays() {
        let room = Room::new();
        let folder = room.state().join("journals");
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in [
            ("a.chunks", "x"),
            ("b.journal", ""),
            ("c.journal", "torn"),
            ("d.journal", "wrong\nwrong\n"),
            ("else", ""),
        ] {
            fs::write(folder.join(name), bytes).unwrap();
        }
        fs::create_dir(folder.join("e.journal")).unwrap();
        std::os::unix::fs::symlink(&room.disk, folder.join("f.journal")).unwrap();
        let report = room.prune();
        assert_eq!((report.removed.len(), report.kept.len()), (3, 3), "{report:?}");
        let mut names = room.names("state/journals");
        names.sort();
        assert_eq!(names, ["d.journal", "e.journal", "else", "f.journal"]);
        assert!(room.disk.exists());
    }

    #[test]
    fn a_journal_that_a_run_has_taken_since_it_was_looked_at_stays() {
        let room = Room::new();
        drop(room.begin());
        let path = room.journal_file();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let before = stale::look(&room.state(), stem).unwrap();
        let living = room.begin();
        assert!(before.seize().unwrap().is_none(), "a run holds it");
        drop(living);
        assert!(before.seize().unwrap().is_none(), "it says something else now");
        assert!(stale::look(&room.state(), stem).unwrap().seize().unwrap().is_some());
    }

    #[test]
    fn lock_files_that_nobody_holds_go() {
        let room = Room::new();
        let folder = guard::lock_folder(&room.state());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("file-1-2-0.lock"), "").unwrap();
        fs::write(folder.join("else"), "").unwrap();
        let held = lock_file::acquire(&folder, "device-7-0-0.lock").unwrap();
        let report = room.prune();
        assert_eq!((report.removed.len(), report.kept.len()), (1, 1), "{report:?}");
        assert_eq!(report.kept[0].reason, HELD);
        drop(held);
        assert_eq!(room.prune().removed.len(), 1);
        assert_eq!(room.names("state/locks"), ["else"]);
    }
}
