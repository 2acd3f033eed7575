//! The order of a rebuild: prepare, keep, invalidate, copy, settle, read back, seal, seed, finish, report.
//!
//! Each step is one function of `Run`, in this order, and keeps the state that an error will tell.

mod books;
mod container;
mod ends;
mod keep;
mod labels;
mod linked;
mod mend;
mod noted;
mod prepare;
mod receipt;
mod report;
mod run;
mod settle;
mod steps;

pub(crate) use keep::stage_seed;
pub use report::{DataDiskReport, Durations, RepairReport, Report, Verdict};
pub(crate) use report::{changed_data_disks, compare_data_disks, ms};
pub(crate) use run::{copy_error, journal_error};
pub(crate) use steps::refuse_holders;

use std::time::Instant;

use crate::error::Error;
use crate::observe::{CancelToken, Observer};
use crate::plan::Plan;
use run::Run;

/// Carries a plan out: afterwards the disk holds the image, and its first block was written last.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// # let request = reimage::Request::new("debian-13.qcow2", "/dev/vg0/i-0a1b");
/// let plan = reimage::plan(&request, &reimage::Credential::keep_image(), &())?;
/// let report = reimage::rebuild(plan, &(), &reimage::CancelToken::new())?;
/// assert_eq!(report.target_state, reimage::TargetState::Verified);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// With the state in which the disk is left: untouched, as it was; complete, where only a data disk changed or the end
/// could not be noted; else it says that it is unfinished and cannot boot until it is complete.
pub fn rebuild(plan: Plan, observer: &dyn Observer, cancel: &CancelToken) -> Result<Report, Error> {
    let started = Instant::now();
    let mut run = Run::prepare(plan, observer, cancel)?;
    match carry_out(&mut run) {
        Ok(()) => run.report(started),
        Err(error) => {
            let (state, hint) = run.abandon(&error);
            let error = error.leaving(state);
            Err(match hint {
                Some(hint) => error.hint_that(hint),
                None => error,
            })
        }
    }
}

/// From the first changed byte to the last.
fn carry_out(run: &mut Run<'_>) -> Result<(), Error> {
    run.keep()?;
    run.invalidate()?;
    run.copy()?;
    run.settle()?;
    run.read_back()?;
    run.seal()?;
    run.seed()?;
    run.finish()
}
