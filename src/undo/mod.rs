//! The old disk back, where a rebuild kept it; or what was kept given up.
//!
//! A file that was kept under another name takes its own again by an exchange. A copy is written back as a rebuild
//! writes an image: same guard, same journal, same order, read back and compared. Either way the seed of that time
//! comes back before the disk can boot, and what was kept goes when the disk is complete for good.

mod discard;
mod exchange;
mod summary;

use std::path::PathBuf;

use serde::Serialize;

use crate::error::{Error, ErrorKind, TargetState};
use crate::guard::{Access, Promise};
use crate::journal::kept::{self, Form, Kept, Place};
use crate::observe::{CancelToken, Observer};
use crate::plan::{self, KeptForm, Onto, Plan};
use crate::rebuild::{self, DataDiskReport, Report};
use crate::request::{InstanceSpec, Options, Placement, Request, SeedSpec};
use crate::status::{Subject, of_subject};
use crate::target::Target;
use exchange::Exchanging;

pub use discard::{discard_old, what_is_kept};
pub use summary::UndoSummary;

/// An undo that may begin: everything was checked, and the disk is held.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// use reimage::{CancelToken, Options, Subject};
/// let disk = "/dev/vg0/i-0a1b".as_ref();
/// let plan = reimage::plan_undo(Subject::Disk(disk), &Options::default(), &())?;
/// assert!(plan.summary().kept_s > 0, "it tells when the disk was kept");
/// reimage::undo(plan, &(), &CancelToken::new())?;
/// # Ok(())
/// # }
/// ```
pub struct UndoPlan {
    kept: Kept,
    options: Options,
    work: Work,
    summary: UndoSummary,
}

/// How the disk gets back.
enum Work {
    /// The copy is written onto it.
    WriteBack(Box<Plan>),
    /// The file takes its own name again.
    Exchange(Box<Exchanging>),
    /// The run that was to be undone has not changed it.
    StillOld(Box<Exchanging>),
}

/// What an undo did.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// # let plan = reimage::plan_undo(reimage::Subject::Id("i-0a1b"), &reimage::Options::default(), &())?;
/// let report = reimage::undo(plan, &(), &reimage::CancelToken::new())?;
/// assert_eq!(report.target_state, reimage::TargetState::Verified);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct UndoReport {
    /// The system disk.
    #[serde(serialize_with = "crate::error::path_text")]
    pub target: PathBuf,
    /// Its size in bytes.
    pub target_bytes: u64,
    /// What it holds: `verified`.
    pub target_state: TargetState,
    /// The rebuild that was undone, by its journal's name.
    pub journal: String,
    /// In which form the disk was kept.
    pub form: KeptForm,
    /// The seed that was put back.
    pub seed: Option<String>,
    /// The disks that were not written.
    pub data_disks: Vec<DataDiskReport>,
    /// What was written back, where a copy was.
    pub written: Option<Report>,
    /// What was undone, as it was planned.
    pub plan: UndoSummary,
}

/// Why there is nothing to undo.
#[derive(Debug, thiserror::Error)]
enum NothingKept {
    #[error(
        "nothing is kept of it: no rebuild with --keep-old has changed it, or that was undone or given up"
    )]
    Nothing,
    #[error("what the rebuild {journal} kept is not there any more")]
    Gone { journal: String },
    #[error("what is kept of disks cannot be read")]
    Unreadable(#[source] std::io::Error),
    #[error("the disk or what is kept of it is not what was shown")]
    Differs,
}

/// Finds what is kept, checks everything that a rebuild would check, and takes hold of the disk.
///
/// Of the options those count that are about the run, the guard and the state folder.
///
/// # Errors
///
/// With every refusal that was found; no disk has been changed.
pub fn plan_undo(
    subject: Subject<'_>,
    options: &Options,
    observer: &dyn Observer,
) -> Result<UndoPlan, Error> {
    examine(subject, (options, Access::Write), observer)
}

/// The same, but takes hold of nothing.
///
/// # Errors
///
/// The same as those of `plan_undo`.
pub fn preview_undo(
    subject: Subject<'_>,
    options: &Options,
    observer: &dyn Observer,
) -> Result<UndoSummary, Error> {
    examine(subject, (options, Access::Look), observer).map(|plan| plan.summary)
}

/// The same of a target of the caller's own, of which a rebuild kept a copy.
///
/// # Errors
///
/// The same as those of `plan_undo`, but for what the guard would have found.
pub fn plan_undo_onto(
    options: &Options,
    (target, promise): (Box<dyn Target>, Promise),
    observer: &dyn Observer,
) -> Result<UndoPlan, Error> {
    let key = plan::key_of_own(target.as_ref());
    let entries = kept::of_disk(&options.state_dir, &key).map_err(|error| unreadable(error, options))?;
    let (kept, place) = choose(entries, options)?;
    let request = request_for(InstanceSpec::default(), &kept, options);
    plan_of((kept, place), request, Onto::Brought(target, promise), observer)
}

fn examine(
    subject: Subject<'_>,
    (options, access): (&Options, Access),
    observer: &dyn Observer,
) -> Result<UndoPlan, Error> {
    let found = of_subject(subject, &options.state_dir).map_err(|error| unreadable(error, options))?;
    // That it is another disk is found when it is looked at.
    let entries = if found.kept.is_empty() { found.of_namesakes } else { found.kept };
    let about = match subject {
        Subject::Instance(spec) => Some(spec.system_disk.path.clone()),
        Subject::Id(_) => None,
        Subject::Disk(path) => Some(path.to_owned()),
    };
    let (kept, place) = choose(entries, options).map_err(|error| match about {
        Some(path) if error.path().is_none() => error.at_path(path),
        _ => error,
    })?;
    let instance = match subject {
        Subject::Instance(spec) => spec.clone(),
        Subject::Id(_) => of_path(kept.path.clone().into()),
        Subject::Disk(path) => of_path(path.to_owned()),
    };
    let request = request_for(instance, &kept, options);
    plan_of((kept, place), request, Onto::Host(access), observer)
}

fn of_path(path: PathBuf) -> InstanceSpec {
    let mut instance = InstanceSpec::default();
    instance.system_disk.path = path;
    instance
}

/// The seed is that of the time that comes back, whatever the instance says of the next one.
fn request_for(mut instance: InstanceSpec, kept: &Kept, options: &Options) -> Request {
    instance.id = instance.id.or_else(|| kept.instance.clone());
    instance.seed = kept.seed.as_ref().map(|seed| SeedSpec::at(&seed.path));
    Request { instance, options: options.clone() }
}

fn unreadable(error: std::io::Error, options: &Options) -> Error {
    Error::new(ErrorKind::Usage, NothingKept::Unreadable(error))
        .at_path(kept::folder(&options.state_dir))
        .hint_that("name the folder with --state-dir, or ask as the user who ran the rebuild")
}

/// The last one that was kept whole; else what a run was to keep that has not changed the disk.
fn choose(entries: Vec<Kept>, options: &Options) -> Result<(Kept, Place), Error> {
    let refuse = |fault, hint| Err(Error::new(ErrorKind::TargetUnusable, fault).hint_that(hint));
    let mut placed: Vec<_> = entries.into_iter().map(|kept| (kept.place(&options.state_dir), kept)).collect();
    for wanted in [Place::Whole, Place::NotNeeded] {
        if let Some(at) = placed.iter().position(|(place, _)| *place == wanted) {
            let (place, kept) = placed.swap_remove(at);
            return Ok((kept, place));
        }
    }
    match placed.pop() {
        None => {
            refuse(NothingKept::Nothing, "rebuild it from an image, or name the state folder (--state-dir)")
        }
        Some((_, kept)) => refuse(
            NothingKept::Gone { journal: kept.journal },
            "rebuild the disk from an image; reimage undo --discard-old removes the record",
        ),
    }
}

fn plan_of(
    (kept, place): (Kept, Place),
    request: Request,
    onto: Onto,
    observer: &dyn Observer,
) -> Result<UndoPlan, Error> {
    let options = request.options.clone();
    let (work, summary) = match (place, &kept.form) {
        (Place::Whole, Form::Copy { .. }) => {
            let plan = plan::plan_back(&request, &kept, onto, observer)?;
            let summary = UndoSummary::of_plan(&kept, plan.summary(), &options.state_dir);
            (Work::WriteBack(Box::new(plan)), summary)
        }
        (Place::Whole, Form::File { .. }) => {
            let seen = plan::claim_for_undo(&request, &kept, (onto, Placement::Replace))?;
            let summary = UndoSummary::of_exchange(&kept, &seen, &options.state_dir);
            (Work::Exchange(Box::new(Exchanging::prepare(seen, &kept)?)), summary)
        }
        (Place::NotNeeded | Place::Gone, form) => {
            let placement = match form {
                Form::File { .. } => Placement::Replace,
                Form::Copy { .. } => Placement::InPlace,
            };
            let seen = plan::claim_for_undo(&request, &kept, (onto, placement))?;
            let summary = UndoSummary::of_exchange(&kept, &seen, &options.state_dir);
            (Work::StillOld(Box::new(Exchanging::of_unchanged(seen))), summary)
        }
    };
    Ok(UndoPlan { kept, options, work, summary })
}

impl UndoPlan {
    /// What will happen.
    #[must_use]
    pub fn summary(&self) -> &UndoSummary {
        &self.summary
    }

    /// Whether it is what was shown to somebody who said yes to it.
    ///
    /// # Errors
    ///
    /// With kind `Identity` where the disk, or what is kept of it, is another.
    pub fn check_shown(&self, shown: &UndoSummary) -> Result<(), Error> {
        if self.summary.is_as(shown) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Identity, NothingKept::Differs)
            .at_path(&self.summary.target)
            .hint_that("look at it again: it changed since it was shown"))
    }
}

/// Carries an undo out: afterwards the disk holds byte for byte what it held before the rebuild, and nothing is kept of
/// it any more.
///
/// # Errors
///
/// With the state in which the disk is left; what was kept stays until it is complete, so that the undo, or a rebuild,
/// can be run again.
pub fn undo(plan: UndoPlan, observer: &dyn Observer, cancel: &CancelToken) -> Result<UndoReport, Error> {
    let UndoPlan { kept, options, work, summary } = plan;
    let again = |error: Error| match error.target_state() {
        TargetState::Untouched | TargetState::Verified => error,
        _ => error.hint_that(
            "run the undo again, or a rebuild: until one of them is complete, the disk cannot boot",
        ),
    };
    let (written, data_disks, changed) = match work {
        Work::WriteBack(plan) => match rebuild::rebuild(*plan, observer, cancel) {
            Ok(report) => {
                let data_disks = report.data_disks.clone();
                (Some(report), data_disks, None)
            }
            // The disk is complete nevertheless.
            Err(error) if error.kind() == ErrorKind::DataDiskChanged => (None, Vec::new(), Some(error)),
            Err(error) => return Err(again(error)),
        },
        Work::Exchange(exchanging) => {
            let (data_disks, changed) = exchanging.carry_out((&kept, &options), observer, cancel)?;
            (None, data_disks, changed)
        }
        Work::StillOld(exchanging) => {
            let (data_disks, changed) = exchanging.put_seed_back((&kept, &options), observer)?;
            (None, data_disks, changed)
        }
    };
    discard::forget(&kept, &options, observer);
    if let Some(error) = changed {
        return Err(error);
    }
    Ok(UndoReport {
        target: summary.target.clone(),
        target_bytes: kept.size,
        target_state: TargetState::Verified,
        journal: kept.journal,
        form: summary.form,
        seed: summary.seed.clone(),
        data_disks,
        written,
        plan: summary,
    })
}
