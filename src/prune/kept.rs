//! What dead runs left of old disks that they were to keep; what is kept stays.

use std::io;
use std::path::{Path, PathBuf};

use super::{HELD, PruneReport};
use crate::journal;
use crate::journal::kept::{self, Form, Kept, Place};

/// Removes copies and seeds without a record, and records of what was not kept after all.
pub(super) fn prune_kept(state_dir: &Path, report: &mut PruneReport) -> io::Result<()> {
    let listing = kept::list(state_dir)?;
    for path in &listing.unread {
        report.kept(path, "what it says cannot be read");
    }
    prune_orphans(state_dir, listing.orphans, report)?;
    for kept in listing.kept {
        prune_entry(state_dir, &kept, report);
    }
    Ok(())
}

/// Removes copies and seeds that no record tells of, as a run leaves them that is killed while it gives up what was kept.
pub(crate) fn remove_orphans(state_dir: &Path) -> io::Result<()> {
    prune_orphans(state_dir, kept::list(state_dir)?.orphans, &mut PruneReport::default())
}

fn prune_orphans(
    state_dir: &Path,
    orphans: Vec<(PathBuf, String)>,
    report: &mut PruneReport,
) -> io::Result<()> {
    if orphans.is_empty() {
        return Ok(());
    }
    let living: Vec<_> =
        journal::list(state_dir)?.journals.into_iter().filter(|journal| journal.held).collect();
    for (path, run) in orphans {
        if living.iter().any(|journal| journal.last().journal == run) {
            report.kept(&path, HELD);
            continue;
        }
        match kept::remove_file(&path) {
            Ok(()) => report.removed(&path, "no record of an old disk belongs to it"),
            Err(error) => report.kept(&path, format!("it cannot be removed: {error}")),
        }
    }
    Ok(())
}

fn prune_entry(state_dir: &Path, kept: &Kept, report: &mut PruneReport) {
    let path = match &kept.form {
        Form::File { kept_as, .. } => kept_as.into(),
        Form::Copy { .. } => kept::content(state_dir, &kept.journal),
    };
    let reason = match kept.place(state_dir) {
        Place::Whole => {
            report.kept(
                &path,
                "it is an old disk that undo brings back (reimage undo --discard-old gives it up)",
            );
            return;
        }
        Place::NotNeeded if kept.seed.is_some() => {
            report.kept(&path, "the old seed is kept with it: run the rebuild again, or reimage undo");
            return;
        }
        Place::NotNeeded => "its run ended before it had changed the disk",
        Place::Gone => "the old disk that it tells of is gone",
    };
    let removed =
        journal::hold_all(state_dir, kept.all_keys()).and_then(|_held| kept::remove(state_dir, kept));
    match removed {
        Ok(None) => report.removed(&path, reason),
        Ok(Some(why)) => report.kept(&path, why),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => report.kept(&path, HELD),
        Err(error) => report.kept(&path, format!("it cannot be removed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::journal::kept::Stage;
    use crate::journal::{Bound, GoOn, Journal};

    fn entry(journal: &str, stage: Stage) -> Kept {
        Kept {
            journal: journal.to_owned(),
            instance: None,
            path: "/disk".to_owned(),
            kept_ms: 1,
            size: 512,
            ptuuid: None,
            keys: vec![json!("disk")],
            old_key: json!("disk"),
            form: Form::Copy { stage, root: None, bytes: 1 },
            seed: None,
        }
    }

    #[test]
    fn what_is_kept_stays_and_what_a_dead_run_was_to_keep_goes_once_no_run_is_at_work() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let runs: Vec<_> =
            (1..5).map(|number| format!("00000000-0000-4000-8000-00000000000{number}")).collect();
        let stages = [Stage::Begun, Stage::Saved, Stage::Saving];
        for (run, stage) in runs.iter().zip(stages) {
            kept::write(state, &entry(run, stage)).unwrap();
        }
        for run in &runs {
            fs::write(kept::content(state, run), "copy").unwrap();
        }
        let prune = || {
            let mut report = PruneReport::default();
            prune_kept(state, &mut report).unwrap();
            report
        };
        let (living, _) = Journal::begin(state, &json!("disk"), Bound::of(&1, 1), GoOn::IfItCan).unwrap();
        let report = prune();
        assert_eq!((report.removed.len(), report.kept.len()), (1, 3), "an orphan alone: {report:?}");
        assert!(!kept::content(state, &runs[3]).exists());
        drop(living);
        let report = prune();
        assert_eq!((report.removed.len(), report.kept.len()), (2, 1), "{report:?}");
        assert!(report.kept[0].reason.contains("--discard-old"), "{report:?}");
        assert_eq!(fs::read_dir(kept::folder(state)).unwrap().count(), 2);
    }
}
