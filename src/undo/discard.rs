//! What is kept of a disk, given up.

use std::path::Path;

use super::NothingKept;
use crate::error::{Error, ErrorKind};
use crate::journal;
use crate::journal::kept::{self, Kept};
use crate::observe::{Event, Observer};
use crate::plan::{self, built_on_kept};
use crate::prune;
use crate::request::Options;
use crate::status::{KeptStatus, Subject, of_subject};

/// Why what is kept stays.
#[derive(Debug, thiserror::Error)]
enum DiscardFault {
    #[error("a run is at work on the disk")]
    RunAtWork,
    #[error("what is kept stays: {why}")]
    Stays { why: String },
}

/// Everything that is kept of a disk, the last one first.
///
/// # Errors
///
/// When the state folder cannot be read, or what is kept is of another disk that bore this name.
pub fn what_is_kept(subject: Subject<'_>, state_dir: &Path) -> Result<Vec<KeptStatus>, Error> {
    let kept = entries(subject, state_dir)?;
    Ok(kept.iter().map(|kept| KeptStatus::of(kept, state_dir)).collect())
}

/// Removes what is kept of a disk as it was: no undo brings it back any more. Says what was removed.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let error = reimage::discard_old(reimage::Subject::Id("i-0a1b"), folder.path()).unwrap_err();
/// assert_eq!(error.kind(), reimage::ErrorKind::TargetUnusable);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// When nothing is kept, a run is at work on the disk, another disk is built on what is kept, or something of it cannot
/// be removed.
pub fn discard_old(subject: Subject<'_>, state_dir: &Path) -> Result<Vec<KeptStatus>, Error> {
    let entries = entries(subject, state_dir)?;
    if entries.is_empty() {
        return Err(Error::new(ErrorKind::TargetUnusable, NothingKept::Nothing)
            .hint_that("name the state folder with --state-dir, if it is another"));
    }
    if let Some(refusal) = entries.iter().find_map(built_on_kept) {
        return Err(refusal);
    }
    let mut removed = Vec::new();
    for kept in entries {
        let status = KeptStatus::of(&kept, state_dir);
        remove(&kept, state_dir)?;
        removed.push(status);
    }
    Ok(removed)
}

fn entries(subject: Subject<'_>, state_dir: &Path) -> Result<Vec<Kept>, Error> {
    let found = of_subject(subject, state_dir).map_err(|error| {
        Error::new(ErrorKind::Usage, NothingKept::Unreadable(error))
            .at_path(kept::folder(state_dir))
            .hint_that("name the folder with --state-dir, or ask as the user who ran the rebuild")
    })?;
    match found.of_namesakes.first() {
        Some(kept) => Err(plan::another_disk(kept, Path::new(&kept.path))),
        None => Ok(found.kept),
    }
}

/// Removes one, while no run can begin on its disk.
fn remove(kept: &Kept, state_dir: &Path) -> Result<(), Error> {
    let in_use = |fault: DiscardFault| {
        Error::new(ErrorKind::InUse, fault)
            .at_path(&kept.path)
            .hint_that("wait for it to end, then try again")
    };
    let stays = |why: String| {
        Error::new(ErrorKind::TargetIo, DiscardFault::Stays { why })
            .at_path(&kept.path)
            .hint_that("see to it, then try again")
    };
    let _held = journal::hold_all(state_dir, kept.all_keys()).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => in_use(DiscardFault::RunAtWork),
        _ => stays(error.to_string()),
    })?;
    match kept::remove(state_dir, kept) {
        Ok(None) => Ok(()),
        Ok(Some(why)) => Err(stays(why.to_owned())),
        Err(error) => Err(stays(error.to_string())),
    }
}

/// The disk is back: what was kept of it is of no more use, nor is what was kept before.
pub(super) fn forget(kept: &Kept, options: &Options, observer: &dyn Observer) {
    let state_dir = &options.state_dir;
    let is_earlier = |other: &Kept| {
        other.journal != kept.journal
            && other.kept_ms <= kept.kept_ms
            && kept.keys.iter().any(|key| other.is_of(key))
    };
    let others = kept::list(state_dir).map(|listing| listing.kept).unwrap_or_default();
    for gone in std::iter::once(kept.clone()).chain(others.into_iter().filter(is_earlier)) {
        let why = match kept::remove(state_dir, &gone) {
            Ok(None) => continue,
            Ok(Some(why)) => why.to_owned(),
            Err(error) => error.to_string(),
        };
        let message =
            format!("what was kept before the rebuild {} could not be removed: {why}", gone.journal);
        observer.event(&Event::Warning { code: "kept", message });
    }
    // What stays by a failure is found by `prune`.
    let _ = prune::after_undo(state_dir, kept);
    let _ = prune::remove_orphans(state_dir);
}
