//! Whether the journal of a dead run still says something that the next rebuild, or a person, needs.

use std::path::Path;

use crate::guard::{StorageIdentity, Topology};
use crate::inspect::{open_disk, read_head};
use crate::journal::JournalSummary;
use crate::layout::marker;
use crate::sys::beside;

/// Why the journal of a dead run may go, or (as the error) why it must stay.
pub(super) fn judge(summary: &JournalSummary, host: &Topology) -> Result<String, String> {
    let begun = summary.last();
    let path = Path::new(&begun.path);
    if summary.finished {
        return Ok(format!("the rebuild of {path:?} is complete"));
    }
    if summary.exchanging && summary.staged.is_none() && has_file_beside(path) {
        return Err(format!(
            "the run ended while a new file took the place of {path:?}, and one of the two lies beside it"
        ));
    }
    if summary.exchanging {
        return Ok(format!(
            "the run ended while a new file took the place of {path:?}, which is one of the two, whole"
        ));
    }
    if !summary.invalidated {
        return Ok(format!("its run ended before it had changed {path:?}"));
    }
    let place = host.place_of(path);
    let Some(((base, offset), lasting_id)) = place else {
        return Err(format!(
            "{path:?} is unfinished by what it says, and is not there or cannot be looked at"
        ));
    };
    let head = open_disk(path).and_then(|disk| read_head(&disk, path));
    let head = head.map_err(|error| format!("{path:?} cannot be read: {error}"))?.unwrap_or([0; marker::LEN]);
    let marker = marker::read(&head).or_else(|| marker::torn(&head));
    if marker.as_ref().is_some_and(|marker| summary.names(&marker.journal)) {
        return Err(format!("{path:?} is unfinished: run the rebuild again"));
    }
    let (then, now) = (&begun.target, serde_json::json!((base, offset)));
    let is_same = match (&then["id"], lasting_id) {
        (serde_json::Value::String(id), Some(lasting_id)) => *id == lasting_id && then["bytes"][1] == now[1],
        _ => then["bytes"] == now,
    };
    match base {
        // A device's numbers and names go to another disk at the next boot.
        StorageIdentity::Device { .. } if !is_same => Err(format!(
            "{path:?} is another disk now, and the unfinished one may have another name: rebuild that, or remove \
             this file"
        )),
        StorageIdentity::File { .. } if !is_same => Ok(format!("{path:?} is another file now")),
        _ if marker.is_some() => Ok(format!("another run has begun to rebuild {path:?} since")),
        _ if marker::is_torn(&head) || summary.may_have_torn_the_head() => Err(format!(
            "the run was interrupted while it wrote the first block of {path:?}: run the rebuild again, or remove this \
             file if the disk has been replaced since"
        )),
        _ => Ok(format!("{path:?} has been written by somebody else since, and is not unfinished any more")),
    }
}

fn has_file_beside(path: &Path) -> bool {
    let beside = path.file_name().map(|name| path.with_file_name(beside::name_beside(name)));
    beside.is_some_and(|beside| beside.symlink_metadata().is_ok())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::HELD;
    use super::super::tests::Room;
    use super::*;
    use crate::error::{ErrorKind, TargetState};
    use crate::journal::{Journal, Record};
    use crate::verify::Digest;

    #[derive(Clone, Copy, Debug)]
    enum Lies {
        Nothing,
        Whole,
        AnotherFile,
        Ours,
        Anothers,
        /// The first sector of the marker of this run.
        Torn,
        /// The last one.
        TornBefore,
    }

    /// What a run recorded, what lies where its disk was, and whether the journal goes, with a part of the reason.
    #[track_caller]
    fn check(records: impl Fn(&Journal), lies: Lies, (goes, why): (bool, &str)) {
        let room = Room::new();
        let journal = room.begin();
        records(&journal);
        let mark =
            |journal: &str| marker::write(&marker::Marker { journal: journal.to_owned(), image: None });
        match lies {
            Lies::Nothing => fs::remove_file(&room.disk).unwrap(),
            Lies::Whole => {}
            Lies::AnotherFile => {
                fs::write(room.disk.with_extension("new"), [7; 8192]).unwrap();
                fs::rename(room.disk.with_extension("new"), &room.disk).unwrap();
            }
            Lies::Ours => fs::write(&room.disk, mark(journal.id())).unwrap(),
            Lies::Anothers => fs::write(&room.disk, mark("another")).unwrap(),
            Lies::Torn => fs::write(&room.disk, [&mark(journal.id())[..512], &[7; 8192]].concat()).unwrap(),
            Lies::TornBefore => {
                fs::write(&room.disk, [&[7; 3584], &mark(journal.id())[3584..], &[7; 4096]].concat())
                    .unwrap();
            }
        }
        let path = room.journal_file();
        let chunks = path.with_extension("chunks");
        fs::write(&chunks, "digests").unwrap();
        let living = room.prune();
        assert_eq!((living.removed.len(), living.kept.len()), (0, 1), "{living:?}");
        assert_eq!(living.kept[0].reason, HELD);
        drop(journal);
        let report = room.prune();
        let entries = if goes { &report.removed } else { &report.kept };
        let entry = entries.iter().find(|entry| entry.path == path);
        assert!(entry.is_some_and(|entry| entry.reason.contains(why)), "{lies:?}, {why}: {report:?}");
        assert_eq!((path.exists(), chunks.exists()), (!goes, !goes), "{report:?}");
        assert_eq!(
            (report.removed.len(), report.kept.len()),
            if goes { (2, 0) } else { (0, 1) },
            "{report:?}"
        );
    }

    #[test]
    fn a_journal_goes_when_its_disk_is_not_unfinished_any_more_and_else_stays() {
        let record = |journal: &Journal, record: Record<'_>| journal.record(&record).unwrap();
        let copying = |journal: &Journal| {
            record(journal, Record::Invalidated);
            journal.progress("copy", 50, 100);
        };
        let failed = |journal: &Journal, target_state| {
            copying(journal);
            record(journal, Record::Failed { kind: ErrorKind::TargetIo, target_state, message: "no room" });
        };
        check(|_| {}, Lies::Whole, (true, "before it had changed"));
        check(copying, Lies::Ours, (false, "run the rebuild again"));
        check(copying, Lies::Anothers, (true, "another run"));
        check(copying, Lies::Whole, (true, "by somebody else"));
        check(copying, Lies::AnotherFile, (true, "another file"));
        check(copying, Lies::Nothing, (false, "is not there"));
        check(copying, Lies::Torn, (false, "run the rebuild again"));
        check(copying, Lies::TornBefore, (false, "first block"));
        let comparing = |journal: &Journal| {
            journal.progress("copy", 50, 100);
            record(journal, Record::Invalidated);
        };
        check(comparing, Lies::Whole, (false, "first block"));
        check(|journal| record(journal, Record::Invalidated), Lies::Whole, (false, "first block"));
        check(|journal| failed(journal, TargetState::Partial), Lies::Whole, (true, "by somebody else"));
        check(|journal| failed(journal, TargetState::Partial), Lies::Ours, (false, "run the rebuild again"));
        check(|journal| failed(journal, TargetState::Written), Lies::Whole, (false, "first block"));
        let finishing = |journal: &Journal| {
            copying(journal);
            record(journal, Record::Verified { root: Digest::of(b"") });
        };
        check(finishing, Lies::Whole, (false, "first block"));
        let copied = |journal: &Journal| {
            record(journal, Record::Invalidated);
            journal.progress("copy", 100, 100);
        };
        check(copied, Lies::Whole, (false, "first block"));
        let finished = |journal: &Journal| {
            finishing(journal);
            record(journal, Record::Finished);
        };
        check(finished, Lies::Whole, (true, "is complete"));
        check(|journal| record(journal, Record::Exchanging), Lies::Whole, (true, "one of the two"));
    }
}
