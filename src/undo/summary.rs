//! An undo as a person or another program reads it, before anything is written.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::guard::{DataDiskEvidence, DiskFacts, Sight};
use crate::journal::kept::{Kept, Place};
use crate::layout::DiskLayout;
use crate::plan::{KeptForm, PlanSummary, RunMode, SeenDisk, TargetKind, UnfinishedRun};
use crate::status::KeptStatus;

/// What an undo will do; sizes in bytes.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// # let subject = reimage::Subject::Id("i-0a1b");
/// let summary = reimage::preview_undo(subject, &reimage::Options::default(), &())?;
/// let back_to = summary.kept_s;
/// # let _ = back_to;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct UndoSummary {
    /// The instance's name, where one is known.
    pub instance: Option<String>,
    /// The system disk.
    #[serde(serialize_with = "crate::error::path_text")]
    pub target: PathBuf,
    /// What kind of system disk it is.
    pub target_kind: TargetKind,
    /// What the system disk is known by.
    pub target_disk: Option<DiskFacts>,
    /// Its size now.
    pub target_bytes: u64,
    /// Its size when the undo has ended.
    pub size_after: u64,
    /// The rebuild that is undone, by its journal's name.
    pub journal: String,
    /// When the old disk was kept, in seconds since 1970: what came on the disk since is lost.
    pub kept_s: u64,
    /// In which form.
    pub form: KeptForm,
    /// Where it lies.
    #[serde(serialize_with = "crate::error::path_text")]
    pub kept_in: PathBuf,
    /// How many bytes it takes there.
    pub kept_bytes: u64,
    /// Whether the rebuild ended before it had changed the disk: then only what it left is removed, and the seed put
    /// back.
    pub is_old_still: bool,
    /// The seed that comes back.
    pub seed: Option<String>,
    /// How a copy is written back.
    pub mode: Option<RunMode>,
    /// The run that left the disk unfinished, where one did.
    pub unfinished: Option<UnfinishedRun>,
    /// What the system disk holds now.
    pub before: Option<DiskLayout>,
    /// What it will hold, where that is known.
    pub after: Option<DiskLayout>,
    /// The disks that will not be opened for writing.
    pub data_disks: Vec<DataDiskEvidence>,
    /// How much of the host could be looked at.
    pub sight: Sight,
    /// What a person should know before saying yes.
    pub warnings: Vec<String>,
}

impl UndoSummary {
    /// Of a copy that is written back.
    pub(super) fn of_plan(kept: &Kept, plan: &PlanSummary, state_dir: &Path) -> Self {
        let lies = KeptStatus::of(kept, state_dir);
        Self {
            instance: plan.instance.clone(),
            target: plan.target.clone(),
            target_kind: plan.target_kind,
            target_disk: plan.target_disk.clone(),
            target_bytes: plan.target_bytes,
            size_after: plan.size_after,
            journal: lies.journal,
            kept_s: lies.kept_s,
            form: lies.form,
            kept_in: lies.path,
            kept_bytes: lies.bytes,
            is_old_still: false,
            seed: lies.seed,
            mode: Some(plan.mode),
            unfinished: plan.unfinished.clone(),
            before: plan.before.clone(),
            after: Some(plan.after.clone()),
            data_disks: plan.data_disks.clone(),
            sight: plan.sight.clone(),
            warnings: plan.warnings.clone(),
        }
    }

    /// Of a file that is put back, or of a disk that was not changed.
    pub(super) fn of_exchange(kept: &Kept, seen: &SeenDisk, state_dir: &Path) -> Self {
        let lies = KeptStatus::of(kept, state_dir);
        let is_old_still = kept.place(state_dir) != Place::Whole;
        Self {
            instance: seen.instance.clone(),
            target: seen.claim.path().to_owned(),
            target_kind: seen.kind,
            target_disk: seen.claim.facts().cloned(),
            target_bytes: seen.size,
            size_after: kept.size,
            journal: lies.journal,
            kept_s: lies.kept_s,
            form: lies.form,
            kept_in: lies.path,
            kept_bytes: if is_old_still { 0 } else { lies.bytes },
            is_old_still,
            seed: lies.seed,
            mode: None,
            unfinished: None,
            before: seen.before.clone(),
            after: None,
            data_disks: seen.data_disks.iter().map(|disk| disk.before().clone()).collect(),
            sight: seen.sight.clone(),
            warnings: seen.warnings.clone(),
        }
    }

    /// Whether both are about one disk as it was, and what is kept of it.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        let what = |it: &Self| (it.journal.clone(), it.kept_in.clone(), it.is_old_still, it.seed.clone());
        let disk = |it: &Self| (it.target.clone(), it.target_disk.clone(), it.target_bytes, it.size_after);
        what(self) == what(other) && disk(self) == disk(other)
    }
}
