//! The plan of an undo: under the same guard as a rebuild, and with what was kept in the image's place.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::keep::{KeepPlan, Keeps, OldDisks};
use super::{Plan, Storage, TargetKind, Task, container, earlier, examine, noted, overlays, summary, survey};
use super::{check_request_of_disk, check_state_dir, image_error, open_options, take_claim};
use crate::error::{Error, ErrorKind};
use crate::guard::{Access, Claim, DataDisk, Held, Inside, Promise, Sight};
use crate::image::{self, ImageError};
use crate::journal;
use crate::journal::kept::{self, Form, Kept, Place};
use crate::layout::{self, DiskLayout};
use crate::observe::Observer;
use crate::request::{
    EarlierRun, GptPolicy, ImageFormat, ImageOptions, Linking, ManifestSource, NestedFormat, OldDisk, Options,
};
use crate::request::{Placement, Preflight, Request, TargetFormat, VerifyPolicy};
use crate::seed::Credential;
use crate::target::{FormerFault, Target, changed_ns};
use crate::verify::Digest;

/// A file may be large, and an undo by an exchange is done at once.
const NOT_READ: &str = "the content of the file that was kept is not read: it is taken for what it was, because its \
                        length and its times are those of the exchange";

/// What was kept is not what it was, or not of this disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UndoFault {
    #[error("it is another disk than the one of which the rebuild {journal} kept what it was")]
    AnotherDisk { journal: String },
    #[error("the file that was kept is built on {below:?}, which is not there")]
    NothingBelow { below: PathBuf },
    #[error("the rebuild {journal} has left it unfinished since, and nothing is kept of what it was before")]
    SpoiltSince { journal: String },
    #[error("what was kept is damaged: the root of its digests is {found}, and was {kept}")]
    Damaged { found: String, kept: String },
}

/// Whether the content that was kept is whole, and of this disk; the rest is as `keep::find` returns it.
pub(super) fn check(
    kept: &Kept,
    key: &Value,
    (root, target): (Option<Digest>, &Path),
) -> Result<(OldDisks, Option<KeepPlan>, Vec<String>), Error> {
    check_is_of(kept, key, target)?;
    let found = root.map_or_else(|| "unknown".to_owned(), |root| root.to_string());
    match &kept.form {
        Form::Copy { root: Some(root), .. } if *root == found => {}
        form => {
            let root = if let Form::Copy { root, .. } = form { root.clone() } else { None };
            let fault = UndoFault::Damaged { found, kept: root.unwrap_or_else(|| "unknown".to_owned()) };
            return Err(Error::new(ErrorKind::ImageDigest, fault)
                .hint_that("the old disk cannot be brought back: rebuild this one from an image"));
        }
    }
    Ok((OldDisks { entries: Vec::new(), keeps: Keeps::Nothing }, None, Vec::new()))
}

/// Whether a file that was kept is the one that it was, as far as that shows without all of it being read.
fn check_file(kept: &Kept, options: &ImageOptions) -> Result<(), Error> {
    let Form::File { kept_as, changed_ns: noted, is_qcow2, .. } = &kept.form else { return Ok(()) };
    let path = Path::new(kept_as);
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // Whether it is there, and may be opened, is found when it is taken hold of.
    let Ok(file) = std::fs::File::options().read(true).custom_flags(flags).open(path) else { return Ok(()) };
    let Ok(of) = file.metadata() else { return Ok(()) };
    if noted.is_some_and(|noted| noted != changed_ns(&of)) {
        return Err(Error::new(ErrorKind::Identity, FormerFault::Written).at_path(path).hint_that(
            "something has changed it, its owner or its names: see what that was, and put it back by hand if it is right",
        ));
    }
    if !is_qcow2 {
        return Ok(());
    }
    if let Some(below) = overlays::missing_below(path) {
        return Err(Error::new(ErrorKind::TargetUnusable, UndoFault::NothingBelow { below: below.clone() })
            .at_path(below)
            .hint_that("put it back where it was, or rebuild the disk from an image"));
    }
    // The machine used it as it is: its files may lie anywhere.
    let everywhere = [PathBuf::from("/")];
    let options = image::OpenOptions {
        format: image::Format::Qcow2,
        nested: open_options(options).nested,
        backing_folders: &everywhere,
    };
    match image::open_held(file, path, &options).and_then(|held| super::check_tables(held.as_ref())) {
        Err(
            fault @ (ImageError::Io { .. }
            | ImageError::BadHeader { .. }
            | ImageError::BeyondEnd { .. }
            | ImageError::BadEntry { .. }
            | ImageError::Overlap { .. }
            | ImageError::SharedCluster { .. }),
        ) => Err(image_error(ErrorKind::TargetUnusable, fault).hint_that(
            "rebuild the disk from an image, or put the file back by hand if it is right as it is",
        )),
        // What is no damage was so when the file was kept: a machine may do with it what this program does not.
        _ => Ok(()),
    }
}

/// Whether the disk that is held is the one of which something was kept.
fn check_is_of(kept: &Kept, key: &Value, target: &Path) -> Result<(), Error> {
    if kept.is_of(key) {
        return Ok(());
    }
    Err(another_disk(kept, target))
}

/// The refusal of a disk that has the name of another.
pub(crate) fn another_disk(kept: &Kept, target: &Path) -> Error {
    let fault = UndoFault::AnotherDisk { journal: kept.journal.clone() };
    Error::new(ErrorKind::Identity, fault).at_path(target).hint_that(
        "name the disk that was rebuilt; what was kept of it stays until reimage undo --discard-old",
    )
}

/// Whether no later run has begun to overwrite a disk that its own run left as it was.
fn check_is_still_old(key: &Value, claim: &Claim, state_dir: &Path) -> Result<(), Error> {
    let spoilt_by = claim.facts().and_then(|facts| facts.unfinished.clone());
    let spoilt_by = spoilt_by.into_iter().chain(journal::unfinished_runs(state_dir, key).unwrap_or_default());
    match spoilt_by.into_iter().next() {
        None => Ok(()),
        Some(journal) => Err(Error::new(ErrorKind::TargetUnusable, UndoFault::SpoiltSince { journal })
            .at_path(claim.path())
            .hint_that("run the rebuild again: the old disk cannot be brought back")),
    }
}

/// What an undo writes to.
pub(crate) enum Onto {
    Host(Access),
    Brought(Box<dyn Target>, Promise),
}

impl Onto {
    fn into_storage(self) -> Storage {
        match self {
            Self::Host(access) => Storage::Host(access),
            Self::Brought(target, promise) => Storage::Brought(target, promise),
        }
    }
}

/// Checks all that a rebuild from the kept copy would check, takes hold of the disk, and decodes all of the copy.
///
/// # Errors
///
/// With every refusal that was found, and where the copy is not what was kept; no disk has been changed.
pub(crate) fn plan_back(
    request: &Request,
    kept: &Kept,
    onto: Onto,
    observer: &dyn Observer,
) -> Result<Plan, Error> {
    let state_dir = &request.options.state_dir;
    let mut request = request.clone();
    request.instance.image = Some(kept::content(state_dir, &kept.journal));
    // What it was when it was kept is known, and a guest may have written anything into it since.
    request.instance.system_disk.format = TargetFormat::Raw;
    let options = std::mem::take(&mut request.options);
    request.options = Options {
        image: ImageOptions {
            format: ImageFormat::Qcow2,
            manifest: ManifestSource::None,
            // The disk held what it held.
            nested: NestedFormat::Allow,
            ..ImageOptions::default()
        },
        // It was made here, and is known by the root of its digests.
        policies: Vec::new(),
        preflight: Preflight::Deep,
        size: None,
        placement: Placement::InPlace,
        gpt: GptPolicy::Keep,
        verify: VerifyPolicy::Full,
        old_disk: OldDisk::Discard,
        linking: Linking::Copy,
        earlier_run: EarlierRun::GoOn,
        ..options
    };
    let storage = onto.into_storage();
    examine((&request, Task::Undo(kept)), &Credential::keep_image(), storage, observer)
}

/// A disk that is held to get back what it was without being written: by an exchange, or because it is that still.
pub(crate) struct SeenDisk {
    pub(crate) instance: Option<String>,
    pub(crate) kind: TargetKind,
    pub(crate) claim: Claim,
    /// The size in bytes of the disk, and not of a file that describes it.
    pub(crate) size: u64,
    pub(crate) key: Value,
    pub(crate) data_disks: Vec<DataDisk>,
    pub(crate) sight: Sight,
    pub(crate) before: Option<DiskLayout>,
    pub(crate) warnings: Vec<String>,
}

/// Checks what a rebuild would check of its disk, and takes hold of it.
///
/// # Errors
///
/// With every refusal that was found; no disk has been changed.
pub(crate) fn claim_for_undo(
    request: &Request,
    kept: &Kept,
    (onto, placement): (Onto, Placement),
) -> Result<SeenDisk, Error> {
    let mut request = request.clone();
    request.instance.system_disk.format = TargetFormat::Raw;
    request.options.placement = placement;
    let storage = onto.into_storage();
    let mut refusals = Vec::new();
    noted(check_request_of_disk(&request, &storage), &mut refusals);
    noted(check_state_dir(&request.options.state_dir), &mut refusals);
    if !refusals.is_empty() {
        return Err(Error::first_of(refusals));
    }
    let seen = survey::survey(&request, None, &mut refusals);
    let claimed = match take_claim(&request, storage, &seen) {
        Ok(claimed) => Some(claimed),
        Err(errors) => {
            refusals.extend(errors);
            None
        }
    };
    let Some((claim, brought)) = claimed.filter(|_| refusals.is_empty()) else {
        return Err(Error::first_of(refusals));
    };
    let key = earlier::key_of(&claim, brought.as_deref());
    check_is_of(kept, &key, claim.path())?;
    let mut warnings = seen.warnings;
    if kept.place(&request.options.state_dir) == Place::Whole {
        let overlays = overlays::look(&request, &claim);
        refusals.extend(overlays.refusal.map(|refusal| refusal.about(claim.path())));
        refusals.extend(overlays::look_at_kept(&request, kept));
        warnings.extend(overlays.warning);
        noted(check_file(kept, &request.options.image), &mut refusals);
        warnings.push(NOT_READ.to_owned());
    } else {
        noted(check_is_still_old(&key, &claim, &request.options.state_dir), &mut refusals);
    }
    if !refusals.is_empty() {
        return Err(Error::first_of(refusals));
    }
    let inside = inside(kept, &claim, &request.options.image);
    let before = match &inside {
        Some(inside) => inside.bytes.as_deref().and_then(|bytes| layout::describe(bytes).ok()),
        None => claim.look_at(|bytes| layout::describe(bytes).ok()).flatten(),
    };
    Ok(SeenDisk {
        instance: request.instance.id.clone(),
        kind: summary::kind_of(&request, &claim),
        key,
        sight: Sight::of([claim.sight_limits(), &seen.limits].concat()),
        size: inside.map_or(claim.size(), |inside| inside.size),
        before,
        claim,
        data_disks: seen.data_disks,
        warnings,
    })
}

/// The disk in a file that a rebuild made as one of qcow2; a file that does not show it stops no undo.
fn inside(kept: &Kept, claim: &Claim, options: &ImageOptions) -> Option<Inside> {
    match (&kept.form, claim.held()) {
        (Form::File { is_qcow2: true, .. }, Held::File { file, .. }) => {
            container::look_inside(file, claim.path(), options).ok()
        }
        _ => None,
    }
}
