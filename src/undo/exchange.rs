//! A file that was kept under another name takes its own again.

use std::path::Path;

use super::NothingKept;
use crate::error::{Error, ErrorKind, TargetState};
use crate::guard::{DataDisk, Hold, StorageIdentity};
use crate::journal::kept::{self, Form, Kept, Numbers};
use crate::journal::{Bound, GoOn, Journal, JournalError, Record};
use crate::observe::{CancelToken, Event, Observer};
use crate::plan::{SeenDisk, TargetKind};
use crate::rebuild::{self, DataDiskReport};
use crate::receipt;
use crate::request::Options;
use crate::seed::former;
use crate::target::{self, Exchange, Former, FormerFault};

/// A disk that is held, and the file that takes its place.
pub(super) struct Exchanging {
    /// `None` where the disk is the old one still.
    exchange: Option<Box<dyn Exchange>>,
    hold: Option<Hold>,
    data_disks: Vec<DataDisk>,
    key: serde_json::Value,
    path: std::path::PathBuf,
    /// The numbers of the present disk, where that is a file.
    present: Option<Numbers>,
}

/// What became of the data disks, and the error that a change of one is.
type Evidence = (Vec<DataDiskReport>, Option<Error>);

impl Exchanging {
    /// Opens the file that was kept; nothing is changed yet.
    pub(super) fn prepare(mut seen: SeenDisk, kept: &Kept) -> Result<Self, Error> {
        let (path, kind, hold) = (seen.claim.path().to_owned(), seen.kind, seen.claim.take_hold());
        let Form::File { place, kept_as, old, len, modified_ns, .. } = &kept.form else {
            unreachable!("a copy is written back");
        };
        let numbers = (old.device, old.inode);
        let present = seen.claim.facts().and_then(|facts| numbers_of(facts.identity));
        let former = Former {
            journal: &kept.journal,
            place: place.as_ref(),
            kept_as: kept_as.as_ref(),
            numbers,
            len: *len,
            modified_ns: *modified_ns,
        };
        let exchange = target::give_back(seen.claim, former);
        let exchange = exchange.map_err(|fault| refusal(fault, kept, (&path, kind)))?;
        Ok(Self { exchange: Some(exchange), hold, data_disks: seen.data_disks, key: seen.key, path, present })
    }

    /// Of a disk that its run has not changed.
    pub(super) fn of_unchanged(mut seen: SeenDisk) -> Self {
        let (path, hold) = (seen.claim.path().to_owned(), seen.claim.take_hold());
        Self { exchange: None, hold, data_disks: seen.data_disks, key: seen.key, path, present: None }
    }

    /// The seed of that time, then the file, into their places.
    pub(super) fn carry_out(
        mut self,
        (kept, options): (&Kept, &Options),
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Evidence, Error> {
        let seed = rebuild::stage_seed(&options.state_dir, Some(kept))?;
        if cancel.is_cancelled() {
            return Err(
                Error::bare(ErrorKind::Cancelled).hint_that("nothing was changed: run the undo again")
            );
        }
        rebuild::refuse_holders(self.hold.as_ref(), &self.path)?;
        let bound = Bound::of(&"undo", 1);
        let (journal, _) = Journal::begin(&options.state_dir, &self.key, bound, GoOn::Never)
            .map_err(rebuild::journal_error)?;
        let noted = self.note(&journal, kept).map_err(rebuild::journal_error);
        let mut exchange = self.exchange.take().expect("the file was opened");
        let done = noted
            .and_then(|()| self.name_present((kept, options)))
            .and_then(|()| match (seed, &kept.seed) {
                (Some(seed), Some(of)) => seed.publish(&of.path),
                _ => Ok(()),
            })
            .and_then(|()| {
                // Before the exchange, so that a run that is killed after it leaves none of the other disk.
                forget_receipt(&options.state_dir, &self.path, observer);
                exchange.publish().map_err(|fault| self.failed(fault))
            });
        if let Err(error) = done {
            let is_back = exchange.has_its_place();
            if !is_back {
                journal.discard();
            }
            let state = if is_back { TargetState::Verified } else { TargetState::Untouched };
            return Err(error
                .leaving(state)
                .hint_that("run the undo again: nothing of what was kept is lost"));
        }
        exchange.settle().map_err(|fault| self.failed(fault).leaving(TargetState::Verified))?;
        remember_seed((kept, options), observer);
        journal.finish().map_err(|fault| rebuild::journal_error(fault).leaving(TargetState::Verified))?;
        Ok(evidence(&self.data_disks, observer))
    }

    /// From the exchange on the present disk has the kept one's name: whoever comes after a run that is killed then
    /// knows that it is of no use.
    fn name_present(&self, (kept, options): (&Kept, &Options)) -> Result<(), Error> {
        let mut named = kept.clone();
        if let (Form::File { new, .. }, Some(present)) = (&mut named.form, self.present) {
            *new = present;
        }
        kept::write(&options.state_dir, &named).map_err(|error| {
            Error::new(ErrorKind::TargetIo, error)
                .at_path(kept::folder(&options.state_dir))
                .hint_that("make room in the state folder, then run the undo again")
        })
    }

    /// Whoever asks is told that the disk is one of the two, whole.
    fn note(&self, journal: &Journal, kept: &Kept) -> Result<(), JournalError> {
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
        journal.record(&Record::Begun {
            journal: journal.id(),
            instance: kept.instance.as_deref(),
            path: &path.to_string_lossy(),
            pid: std::process::id(),
            started_s: now.unwrap_or_default().as_secs(),
            ptuuid: None,
            image: &serde_json::Value::Null,
            target: &self.key,
            chunk_bytes: 0,
            target_bytes: kept.size,
            gpt: &serde_json::Value::Null,
            undoes: Some(&kept.journal),
        })?;
        journal.record(&Record::Exchanging)
    }

    /// The disk is the old one; its seed may be that of the run that was to be undone.
    pub(super) fn put_seed_back(
        self,
        (kept, options): (&Kept, &Options),
        observer: &dyn Observer,
    ) -> Result<Evidence, Error> {
        if let (Some(seed), Some(of)) = (rebuild::stage_seed(&options.state_dir, Some(kept))?, &kept.seed) {
            seed.publish(&of.path)?;
            remember_seed((kept, options), observer);
        }
        Ok(evidence(&self.data_disks, observer))
    }

    fn failed(&self, fault: target::TargetError) -> Error {
        Error::new(ErrorKind::TargetIo, fault)
            .at_path(&self.path)
            .hint_that("check the file system and the kernel's log, then run the undo again")
    }
}

fn numbers_of(identity: StorageIdentity) -> Option<Numbers> {
    match identity {
        StorageIdentity::File { device, inode } => Some((device, inode).into()),
        StorageIdentity::Device { .. } => None,
    }
}

/// Looks at the data disks again.
fn evidence(disks: &[DataDisk], observer: &dyn Observer) -> Evidence {
    let reports = rebuild::compare_data_disks(disks, observer);
    let changed = rebuild::changed_data_disks(&reports, "the system disk is complete");
    let error = (!changed.is_empty()).then(|| Error::first_of(changed).leaving(TargetState::Verified));
    (reports, error)
}

/// The receipt is of what the rebuild left, and that is about to go.
fn forget_receipt(state_dir: &Path, disk: &Path, observer: &dyn Observer) {
    if let Err(error) = receipt::forget(state_dir, disk) {
        let message = format!("the receipt of the rebuild that is undone could not be removed: {error}");
        observer.event(&Event::Warning { code: "receipt", message });
    }
}

/// What the state folder remembered of the seed that is back.
fn remember_seed((kept, options): (&Kept, &Options), observer: &dyn Observer) {
    let Some(seed) = &kept.seed else { return };
    let whose = (kept.instance.as_deref(), seed.path.as_path());
    if let Err(error) = former::restore(&options.state_dir, whose, &seed.last) {
        let message = format!("which seed this was could not be noted: {error}");
        observer.event(&Event::Warning { code: "seed", message });
    }
}

fn refusal(fault: FormerFault, kept: &Kept, (disk, kind): (&Path, TargetKind)) -> Error {
    let Form::File { kept_as, .. } = &kept.form else { return Error::bare(ErrorKind::Internal) };
    let (kind, hint) = match &fault {
        FormerFault::Gone => {
            let gone = NothingKept::Gone { journal: kept.journal.clone() };
            return Error::new(ErrorKind::TargetUnusable, gone)
                .at_path(kept_as)
                .hint_that("rebuild the disk from an image; reimage undo --discard-old removes the record");
        }
        FormerFault::Elsewhere { place } => {
            let hint = match kind {
                TargetKind::Device if place.exists() => {
                    format!("detach the loop device and name {place:?}")
                }
                TargetKind::Device => format!(
                    "detach the loop device, give its file the name {place:?} back, and name that file"
                ),
                _ => format!("give the disk the name {place:?} back, and name that file"),
            };
            return Error::new(ErrorKind::TargetUnusable, fault).at_path(disk).hint_that(hint);
        }
        FormerFault::Written => (
            ErrorKind::Identity,
            "it is not what was kept: see what wrote it, and put it back by hand if it is right",
        ),
        FormerFault::InUse(_) => (ErrorKind::InUse, "end what has the file open, then run the undo again"),
        FormerFault::Unusable(_) => (ErrorKind::TargetUnusable, "check the file's rights"),
    };
    Error::new(kind, fault).at_path(kept_as).hint_that(hint)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{CWD, RenameFlags, renameat_with};

    use super::*;
    use crate::plan;
    use crate::request::{OldDisk, Request};
    use crate::seed::Credential;
    use crate::status::Subject;
    use crate::undo::{Work, plan_undo, undo};

    #[test]
    fn an_undo_that_is_killed_after_its_exchange_leaves_nothing_once_it_has_run_again() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let disk = at("disk.raw");
        fs::write(&disk, vec![1; 1 << 20]).unwrap();
        fs::write(at("image.raw"), vec![2; 1 << 20]).unwrap();
        let mut request = Request::new(at("image.raw"), &disk);
        request.options.state_dir = at("state");
        for old_disk in [OldDisk::Keep, OldDisk::Discard] {
            request.options.old_disk = old_disk;
            let plan = plan::plan(&request, &Credential::keep_image(), &()).unwrap();
            rebuild::rebuild(plan, &(), &CancelToken::new()).unwrap();
        }
        let again = || plan_undo(Subject::Disk(&disk), &request.options, &()).unwrap();
        let killed = again();
        let Work::Exchange(exchanging) = killed.work else { panic!("a file is put back") };
        let (journal, _) =
            Journal::begin(&at("state"), &exchanging.key, Bound::of(&"undo", 1), GoOn::Never).unwrap();
        exchanging.note(&journal, &killed.kept).unwrap();
        exchanging.name_present((&killed.kept, &killed.options)).unwrap();
        let Form::File { kept_as, .. } = &killed.kept.form else { panic!("a file is kept") };
        renameat_with(CWD, kept_as.as_str(), CWD, &disk, RenameFlags::EXCHANGE).unwrap();
        drop((journal, exchanging));
        let plan = again();
        assert!(plan.summary().is_old_still);
        undo(plan, &(), &CancelToken::new()).unwrap();
        assert_eq!(fs::read(&disk).unwrap(), vec![1; 1 << 20]);
        let names = |folder: &Path| {
            let entries = fs::read_dir(folder).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(folder.path()), ["disk.raw", "image.raw", "state"]);
        assert!(names(&at("state/kept")).is_empty() && names(&at("state/journals")).is_empty());
    }
}
