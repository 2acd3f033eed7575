//! What journal and disk together say became of a run.

use super::{FailureStatus, InstanceState, Seen};
use crate::error::TargetState;
use crate::journal::JournalSummary;

/// What journal and disk together say.
pub(super) struct Verdict {
    pub(super) state: InstanceState,
    pub(super) failure: Option<FailureStatus>,
    pub(super) notice: Option<String>,
    /// What to do.
    pub(super) advice: &'static str,
}

impl Verdict {
    fn stopped(notice: Option<String>) -> Self {
        let advice = "nothing: no rebuild is unfinished";
        Self { state: InstanceState::Stopped, failure: None, notice, advice }
    }

    fn rebuilding(notice: Option<String>) -> Self {
        let advice = "wait for the rebuild to end";
        Self { state: InstanceState::Rebuilding, failure: None, notice, advice }
    }

    /// The disk is the old one, whole, and the new seed is there.
    fn old_with_new_seed(journal: &JournalSummary) -> Self {
        let text = "the disk is the old one, and the new seed is in its place already: a machine that is started now \
                    comes up with the old system and the new credentials";
        let failed = Self::failed(Some(journal), Some(text.to_owned()));
        let failure =
            failed.failure.map(|failure| FailureStatus { target_state: TargetState::Untouched, ..failure });
        Self { failure, advice: "run the rebuild again before the machine is started", ..failed }
    }

    fn failed(journal: Option<&JournalSummary>, notice: Option<String>) -> Self {
        let told = journal.and_then(|journal| journal.failed.as_ref());
        let state = journal.map_or(TargetState::Invalidated, JournalSummary::target_state);
        let untold = match journal {
            Some(_) => "the run was interrupted before it could say why",
            None => "why the run ended is not known here",
        };
        let failure = FailureStatus {
            // The run before this one, or the marker, says at least so much.
            target_state: state.max(TargetState::Invalidated),
            kind: told.map(|failed| failed.kind),
            message: told.map_or_else(|| untold.to_owned(), |failed| failed.message.clone()),
        };
        let is_undo = journal.is_some_and(|journal| journal.last().undoes.is_some());
        let advice = match is_undo {
            true => {
                "run the undo again, or a rebuild: what was kept is there until one of them is complete, and until \
                 then the disk cannot boot"
            }
            false => {
                "run the rebuild again: it goes on where this one stopped, where image and disk are the same, and \
                 until it is complete the disk cannot boot"
            }
        };
        Self { state: InstanceState::Failed, failure: Some(failure), notice, advice }
    }
}

/// Decides; where the two differ, the disk is believed about itself.
pub(super) fn judge(journal: Option<&JournalSummary>, seen: Option<&Seen>) -> Verdict {
    if journal.is_some_and(|journal| journal.held) {
        return Verdict::rebuilding(None);
    }
    match (journal, seen.map(|seen| seen.marker.as_ref())) {
        (_, Some(Some(marker))) => {
            let ours = journal.filter(|journal| journal.names(&marker.journal));
            let elsewhere = format!(
                "the disk's journal {} is not in this state folder: the rebuild ran on another host, or with another \
                 --state-dir",
                marker.journal
            );
            let notice = ours.is_none().then_some(elsewhere);
            match seen.is_some_and(|seen| seen.is_locked) {
                true => Verdict::rebuilding(notice),
                false => Verdict::failed(ours, notice),
            }
        }
        (None, Some(None)) => Verdict::stopped(None),
        (None, None) => Verdict::stopped(None),
        (Some(journal), None) if journal.invalidated && !journal.finished => {
            Verdict::failed(Some(journal), None)
        }
        (Some(journal), _) => without_marker(journal),
    }
}

/// The disk does not say that it is unfinished, and a run did not remove its journal.
fn without_marker(journal: &JournalSummary) -> Verdict {
    let name = &journal.last().journal;
    let stopped = |text: String| Verdict::stopped(Some(text));
    match &journal.failed {
        _ if journal.finished => Verdict::stopped(None),
        Some(failed) if failed.target_state == TargetState::Verified => stopped(format!(
            "the disk is complete, but the run {name} ended with an error: {}",
            failed.message
        )),
        // Then the disk's first block was the last thing written, and the marker perhaps not taken again.
        Some(failed) if failed.target_state == TargetState::Written => {
            let text = "the disk's head no longer says that it is unfinished; if it was replaced by hand, remove the \
                        journal from the state folder";
            Verdict::failed(Some(journal), Some(text.to_owned()))
        }
        Some(failed) if journal.seeded && failed.target_state == TargetState::Untouched => {
            Verdict::old_with_new_seed(journal)
        }
        None if journal.seeded && !journal.invalidated && !journal.exchanging => {
            Verdict::old_with_new_seed(journal)
        }
        _ if journal.exchanging => stopped(format!(
            "the run {name} was interrupted while it put the new file into the old one's place: the disk is one of \
             the two, whole (reimage verify tells which)"
        )),
        _ if journal.invalidated => stopped(format!(
            "the run {name} {}, but the disk does not say that it is unfinished: it was completed at the last moment, \
             or has been written or replaced since (reimage verify compares it with the image)",
            match &journal.failed {
                Some(failed) => format!("failed ({})", failed.message),
                None => "was interrupted".to_owned(),
            }
        )),
        _ => {
            let beside = match journal.staged {
                Some(_) => {
                    ": the same rebuild goes on with the new file beside it (reimage status --prune removes that)"
                }
                None => "",
            };
            let text = format!("the run {name} was interrupted before it had changed anything{beside}");
            let advice = match journal.staged {
                Some(_) => {
                    "nothing must be done, the disk is the old one: run the rebuild again, or reimage status --prune \
                     to give it up"
                }
                None => "nothing: no rebuild is unfinished",
            };
            Verdict { advice, ..stopped(text) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use serde_json::Value;

    use super::super::{Subject, status};
    use super::*;
    use crate::error::ErrorKind;
    use crate::journal::{Bound, GoOn, Journal, Record};
    use crate::layout::marker;
    use crate::observe::Phase;
    use crate::request::InstanceSpec;

    /// What lies where the disk should be.
    #[derive(Clone, Copy, Debug)]
    enum Lies {
        Nothing,
        Whole,
        /// The marker of this run.
        Ours,
        /// The marker of a run that has no journal here.
        Anothers,
    }

    fn begin(state_dir: &Path) -> Journal {
        Journal::begin(state_dir, &Value::Null, Bound::of(&1, 1), GoOn::IfItCan).unwrap().0
    }

    fn begun<'a>(journal: &'a Journal, path: &'a str) -> Record<'a> {
        Record::Begun {
            journal: journal.id(),
            instance: Some("i-1"),
            path,
            pid: 7,
            started_s: 42,
            ptuuid: None,
            image: &Value::Null,
            target: &Value::Null,
            chunk_bytes: 1,
            target_bytes: 1,
            gpt: &Value::Null,
            undoes: None,
        }
    }

    fn failed(target_state: TargetState) -> Record<'static> {
        Record::Failed { kind: ErrorKind::TargetIo, target_state, message: "no room" }
    }

    /// The state, and a part of the notice that comes with it.
    #[track_caller]
    fn check(records: &[Record<'_>], lies: Lies, (state, notice): (InstanceState, &str)) {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk.raw");
        let journal = begin(folder.path());
        let begun = begun(&journal, disk.to_str().unwrap());
        for record in std::iter::once(&begun).chain(records) {
            journal.record(record).unwrap();
        }
        let mark =
            |journal: &str| marker::write(&marker::Marker { journal: journal.to_owned(), image: None });
        match lies {
            Lies::Nothing => {}
            Lies::Whole => fs::write(&disk, [7; 8192]).unwrap(),
            Lies::Ours => fs::write(&disk, mark(journal.id())).unwrap(),
            Lies::Anothers => fs::write(&disk, mark("another")).unwrap(),
        }
        let mut spec = InstanceSpec { id: Some("i-1".to_owned()), ..InstanceSpec::default() };
        spec.system_disk.path.clone_from(&disk);
        let subjects = [Subject::Id("i-1"), Subject::Disk(&disk), Subject::Instance(&spec)];
        let ask = |subject| status(subject, folder.path()).unwrap();
        for subject in subjects {
            let found = ask(subject);
            assert_eq!(found.state, InstanceState::Rebuilding, "{subject:?} while the run lives");
            assert_eq!((found.run.unwrap().pid, found.target.as_ref()), (7, Some(&disk)));
        }
        drop(journal);
        // A program that another test starts just now has the lock until it begins.
        let later = |subject| {
            let mut asked = (0..100).map(|_| (ask(subject), std::thread::sleep(Duration::from_millis(10))).0);
            asked.find(|found| found.state != InstanceState::Rebuilding).unwrap_or_else(|| ask(subject))
        };
        for subject in subjects {
            let found = later(subject);
            assert_eq!(found.state, state, "{subject:?}: {records:?} {lies:?} {found:?}");
            let changed = found.failure.map(|failure| failure.target_state > TargetState::Untouched);
            let is_seeded = records.iter().any(|record| matches!(record, Record::Seeded));
            assert_eq!(changed, (state == InstanceState::Failed).then_some(!is_seeded));
            let notices = found.notices.concat();
            assert!(notices.contains(notice) && notices.is_empty() == notice.is_empty(), "{notices:?}");
        }
    }

    #[test]
    fn journal_and_disk_together_say_what_became_of_a_run() {
        use InstanceState::{Failed, Stopped};
        check(&[], Lies::Whole, (Stopped, "before it had changed anything"));
        check(&[], Lies::Ours, (Failed, ""));
        check(&[], Lies::Anothers, (Failed, "another host"));
        check(&[Record::Seeded], Lies::Whole, (Failed, "the new seed is in its place already"));
        check(
            &[Record::Seeded, Record::Exchanging, failed(TargetState::Untouched)],
            Lies::Whole,
            (Failed, "the new seed is in its place already"),
        );
        check(&[Record::Seeded, Record::Exchanging], Lies::Whole, (Stopped, "one of the two, whole"));
        check(&[Record::Invalidated], Lies::Ours, (Failed, ""));
        check(&[Record::Invalidated], Lies::Anothers, (Failed, "another host"));
        check(&[Record::Invalidated], Lies::Whole, (Stopped, "written or replaced since"));
        check(&[Record::Invalidated], Lies::Nothing, (Failed, "cannot be read"));
        check(&[Record::Exchanging], Lies::Whole, (Stopped, "one of the two"));
        check(&[Record::Invalidated, Record::Finished], Lies::Whole, (Stopped, ""));
        let partial = [Record::Invalidated, failed(TargetState::Partial)];
        check(&partial, Lies::Ours, (Failed, ""));
        check(&partial, Lies::Whole, (Stopped, "written or replaced since"));
        let written = [Record::Invalidated, failed(TargetState::Written)];
        check(&written, Lies::Whole, (Failed, "replaced by hand"));
        check(&[Record::Exchanging, failed(TargetState::Verified)], Lies::Whole, (Stopped, "no room"));
    }

    #[test]
    fn a_failure_is_told_as_the_journal_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let journal = begin(folder.path());
        journal.record(&begun(&journal, "/no/such/disk")).unwrap();
        journal.record(&Record::Invalidated).unwrap();
        journal.progress("copy", 50, 200);
        journal.record(&failed(TargetState::Partial)).unwrap();
        drop(journal);
        let found = status(Subject::Id("i-1"), folder.path()).unwrap();
        let expected = FailureStatus {
            target_state: TargetState::Partial,
            kind: Some(ErrorKind::TargetIo),
            message: "no room".to_owned(),
        };
        assert_eq!(found.failure, Some(expected));
        let run = found.run.unwrap();
        assert_eq!((run.phase, run.percent, run.bytes_done), (Some(Phase::Copy), 25, 50));
        let other = status(Subject::Id("i-2"), folder.path()).unwrap();
        assert_eq!((other.state, other.journal), (InstanceState::Stopped, None));
        assert_eq!(other.notices, ["no rebuild of it is recorded here"]);
        status(Subject::Disk(Path::new("/no/other/disk")), folder.path()).unwrap_err();
    }

    #[test]
    fn a_state_folder_that_cannot_be_read_is_an_error_only_where_no_disk_speaks() {
        let folder = tempfile::tempdir().unwrap();
        let no_folder = folder.path().join("disk.raw");
        fs::write(&no_folder, [7; 8192]).unwrap();
        let error = status(Subject::Id("i-1"), &no_folder).unwrap_err();
        assert_eq!((error.kind(), error.path()), (ErrorKind::Usage, Some(no_folder.as_path())));
        let found = status(Subject::Disk(&no_folder), &no_folder).unwrap();
        assert_eq!(found.state, InstanceState::Stopped);
        assert!(found.notices.concat().contains("cannot be read"), "{found:?}");
    }
}
