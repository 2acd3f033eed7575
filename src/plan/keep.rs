//! What becomes of the disk as it was: whether it is kept, how, whether there is room, and what is kept already.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use super::earlier::Known;
use super::overlays::built_on_kept;
use crate::error::{Error, ErrorKind};
use crate::guard::{Claim, Held};
use crate::journal;
use crate::journal::kept::{Form, Kept, Place};
use crate::request::{OldDisk, Options, Placement};
use crate::target::Target;

/// The tables of a qcow2 take less than this part of what it holds, and a little more.
const TABLES_PART: u64 = 1024;
const LEAST_TABLES: u64 = 2 << 20;

/// In which form a disk as it was is kept.
///
/// ```
/// assert_eq!(serde_json::to_string(&reimage::KeptForm::Copy).unwrap(), r#""copy""#);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KeptForm {
    /// The file itself, under another name beside the one that took its place.
    File,
    /// A compressed copy in the state folder.
    Copy,
}

/// How a rebuild keeps the disk as it was.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// let mut request = reimage::Request::new("debian-13.qcow2", "/dev/vg0/i-0a1b");
/// request.options.old_disk = reimage::OldDisk::Keep;
/// let plan = reimage::preview(&request, &reimage::Credential::keep_image(), &())?;
/// let room_for_it = plan.keep.map_or(0, |keep| keep.bytes_at_most);
/// # let _ = room_for_it;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeepPlan {
    /// In which form.
    pub form: KeptForm,
    /// How many bytes a copy may take; 0 for a file, which is there already.
    pub bytes_at_most: u64,
    /// The run that kept it already, before it left the disk unfinished; then nothing more is kept.
    pub already: Option<String>,
    /// The run whose old disk is given up as soon as this one is kept.
    pub replaces: Option<String>,
}

/// What is kept of a disk, and what is to be.
pub(crate) struct OldDisks {
    /// What earlier runs kept of it or tried to, the last one first.
    pub(crate) entries: Vec<Kept>,
    pub(crate) keeps: Keeps,
}

/// What this run keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeps {
    Nothing,
    /// The file that it replaces.
    File,
    /// A copy of what it overwrites.
    Copy,
}

/// Why the disk as it was cannot be kept.
#[derive(Debug, thiserror::Error)]
enum KeepFault {
    #[error("the disk is unfinished, and what it was before is kept nowhere")]
    Spoilt,
    #[error("a copy of the disk may take {needed} bytes, and the state folder has {free} free")]
    NoRoom { needed: u64, free: u64 },
    #[error("the state folder cannot be asked for its free room")]
    Unknown(#[source] std::io::Error),
    #[error("what is kept of disks cannot be read")]
    Unreadable(#[source] std::io::Error),
}

/// Asks what is kept of the disk, and what is to be; returns what a person should know besides.
pub(super) fn find(
    options: &Options,
    (claim, brought): (&Claim, Option<&dyn Target>),
    known: &Known,
) -> Result<(OldDisks, Option<KeepPlan>, Vec<String>), Error> {
    let state_dir = options.state_dir.as_path();
    let unreadable = |fault| {
        Error::new(ErrorKind::Usage, KeepFault::Unreadable(fault))
            .at_path(journal::kept::folder(state_dir))
            .hint_that("see to the folder, or name another state folder with --state-dir")
    };
    let entries = journal::kept::of_disk(state_dir, &known.key).map_err(unreadable)?;
    let whole = |kept: &&Kept| kept.place(state_dir) == Place::Whole;
    let last = entries.iter().find(whole).map(|kept| kept.journal.clone());
    if options.old_disk == OldDisk::Discard || matches!(claim.held(), Held::NewFile { .. }) {
        let warnings = last.iter().map(|journal| stays(journal)).collect();
        return Ok((OldDisks { entries, keeps: Keeps::Nothing }, None, warnings));
    }
    let mut spoilt_by = journal::unfinished_runs(state_dir, &known.key).map_err(unreadable)?;
    spoilt_by.extend(claim.facts().and_then(|facts| facts.unfinished.clone()));
    let already = entries.iter().filter(whole).find(|kept| {
        let was_cut_off = || journal::has_left(state_dir, kept.all_keys(), &kept.journal).unwrap_or(false);
        spoilt_by.contains(&kept.journal) || (matches!(kept.form, Form::File { .. }) && was_cut_off())
    });
    if let Some(kept) = already {
        let form = form_of(kept);
        let warning = format!(
            "the rebuild {} of this disk was cut off: what it kept stands, and nothing more is kept",
            kept.journal
        );
        let already = Some(kept.journal.clone());
        let plan = KeepPlan { form, bytes_at_most: 0, already, replaces: None };
        return Ok((OldDisks { entries, keeps: Keeps::Nothing }, Some(plan), vec![warning]));
    }
    if !spoilt_by.is_empty() {
        return Err(Error::new(ErrorKind::Usage, KeepFault::Spoilt)
            .at_path(claim.path())
            .hint_that("leave --keep-old out: the rebuild before this one has overwritten the old disk"));
    }
    // What was kept before is given up for what is kept now.
    if let Some(refusal) = entries.iter().find_map(built_on_kept) {
        return Err(refusal);
    }
    let is_file = match claim.held() {
        Held::File { .. } => options.placement == Placement::Replace,
        _ => brought.is_some_and(Target::is_new),
    };
    let (form, keeps) = match is_file {
        true => (KeptForm::File, Keeps::File),
        false => (KeptForm::Copy, Keeps::Copy),
    };
    let bytes_at_most = if is_file { 0 } else { most_bytes(claim) };
    if !is_file {
        check_room(state_dir, bytes_at_most)?;
    }
    let warnings = last.iter().map(|journal| goes(journal)).collect();
    let plan = KeepPlan { form, bytes_at_most, already: None, replaces: last };
    Ok((OldDisks { entries, keeps }, Some(plan), warnings))
}

/// In which form something is kept.
pub(crate) fn form_of(kept: &Kept) -> KeptForm {
    match kept.form {
        Form::File { .. } => KeptForm::File,
        Form::Copy { .. } => KeptForm::Copy,
    }
}

fn stays(journal: &str) -> String {
    format!(
        "what this disk was before the rebuild {journal} stays kept: undo brings that back, and not what is on the \
         disk now (reimage undo --discard-old gives it up)"
    )
}

fn goes(journal: &str) -> String {
    format!(
        "what this disk was before the rebuild {journal} is given up when what is on it now is kept for good: only the \
         last one can be undone"
    )
}

/// What a copy takes that cannot be compressed at all; holes of a file are known, zeroes of a device are not.
fn most_bytes(claim: &Claim) -> u64 {
    let stored = match claim.held() {
        Held::File { file, .. } => file.metadata().ok().map(|of| of.blocks().saturating_mul(512)),
        _ => None,
    };
    let content = stored.map_or(claim.size(), |stored| stored.min(claim.size()));
    content + content / TABLES_PART + claim.size() / (TABLES_PART * TABLES_PART) + LEAST_TABLES
}

fn check_room(state_dir: &Path, needed: u64) -> Result<(), Error> {
    let absolute = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    let there = absolute.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let about = |fault| Error::new(ErrorKind::DoesNotFit, fault).at_path(state_dir);
    let system = rustix::fs::statvfs(there).map_err(|error| about(KeepFault::Unknown(error.into())))?;
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    if needed <= free {
        return Ok(());
    }
    let hint = "free that much, name another state folder with --state-dir, or leave --keep-old out";
    Err(about(KeepFault::NoRoom { needed, free }).hint_that(hint))
}
