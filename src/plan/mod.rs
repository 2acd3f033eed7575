//! Asks everything and writes nothing: the request, the image, the disk, whether one fits the other.
//!
//! A `Plan` holds the claim, so that nothing changes between the check and the use. Every refusal is
//! collected; the first by the documented order is the error, the others stand behind it.

mod bound;
mod container;
mod duplicates;
mod earlier;
mod fit;
mod further;
mod guest;
mod keep;
mod linked;
mod manifest;
mod open;
mod overlays;
mod packed;
mod settle;
mod summary;
mod survey;
mod undo;
mod view;

use std::os::unix::fs::FileTypeExt as _;

use crate::error::{Error, ErrorKind};
use crate::guard::{self, Access, Claim, DataDisk, Held, Promise, Refusal, Subject};
use crate::image::Image;
use crate::journal;
use crate::journal::kept::Kept;
use crate::observe::{Event, Observer};
use crate::request::{DuplicatePolicy, Placement, PowerState, Request};
use crate::seed::{self, Asked, ComposedSeed, Credential};
use crate::target::Target;
use crate::verify::DigestTable;

pub use container::Qcow2Plan;
pub(crate) use container::{Container, look_inside, open_disk_file};
pub use duplicates::{Duplicate, OtherSeed};
pub(crate) use earlier::{Known, go_on, key_of_file, key_of_own};
pub use earlier::{RunMode, UnfinishedRun};
pub(crate) use fit::{Ends, Fit, relocation};
pub use keep::{KeepPlan, KeptForm};
pub(crate) use keep::{Keeps, OldDisks, form_of};
pub(crate) use linked::LinkedImage;
pub(crate) use manifest::check_manifest_folder;
pub(crate) use manifest::{FETCH_BOTH, KnownManifest, read_manifest};
pub use manifest::{ManifestUse, is_manifest};
pub(crate) use open::{
    Check, CheckedImage, Later, SeenImage, check_tables, image_error, open_checked, open_options,
    other_than_manifest, refuse_nested_disk,
};
pub(crate) use overlays::built_on_kept;
pub(crate) use packed::{ANY_SIZE, is_all_at_hand};
pub(crate) use settle::settle;
pub use summary::{GptPlan, PlanSummary, TargetKind};
pub(crate) use survey::{Seen, storage_of, survey};
pub(crate) use undo::{Onto, SeenDisk, another_disk, claim_for_undo, plan_back};
use view::Glimpse;
pub(crate) use view::{DiskBytes, DiskImage, ImageBytes, ImageDisk, unreadable};

/// A rebuild that may begin: everything was checked, and the disk is held.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// let request = reimage::Request::new("debian-13.qcow2", "/dev/vg0/i-0a1b");
/// let plan = reimage::plan(&request, &reimage::Credential::keep_image(), &())?;
/// assert!(plan.summary().size_after >= plan.summary().image.virtual_size);
/// # Ok(())
/// # }
/// ```
pub struct Plan {
    pub(crate) request: Request,
    pub(crate) image: Box<dyn Image>,
    pub(crate) seen_image: SeenImage,
    pub(crate) manifest: Option<KnownManifest>,
    pub(crate) claim: Claim,
    /// A caller's own target, behind a promised claim.
    pub(crate) brought: Option<Box<dyn Target>>,
    pub(crate) fit: Fit,
    pub(crate) seed: Option<ComposedSeed>,
    pub(crate) data_disks: Vec<DataDisk>,
    pub(crate) known: Known,
    /// What is known of the image, where the disk becomes an overlay on it.
    pub(crate) linked: Option<LinkedImage>,
    pub(crate) old_disks: OldDisks,
    /// What is brought back, where that is what the run is for.
    pub(crate) undoes: Option<Kept>,
    summary: PlanSummary,
}

impl Plan {
    /// What will happen.
    #[must_use]
    pub fn summary(&self) -> &PlanSummary {
        &self.summary
    }
}

/// Checks everything and takes hold of the system disk; `rebuild` is the next step.
///
/// # Errors
///
/// With every refusal that was found; no disk has been changed.
pub fn plan(request: &Request, credential: &Credential, observer: &dyn Observer) -> Result<Plan, Error> {
    examine((request, Task::Rebuild), credential, Storage::Host(Access::Write), observer)
}

/// Checks everything, opens everything read-only, and takes hold of nothing.
///
/// # Errors
///
/// The same as those of `plan`.
pub fn preview(
    request: &Request,
    credential: &Credential,
    observer: &dyn Observer,
) -> Result<PlanSummary, Error> {
    examine((request, Task::Rebuild), credential, Storage::Host(Access::Look), observer)
        .map(|plan| plan.summary)
}

/// Plans a rebuild onto a target of the caller's own, which no guard can examine.
///
/// # Errors
///
/// The same as those of `plan`, but for what the guard would have found.
pub fn plan_onto(
    request: &Request,
    credential: &Credential,
    (target, promise): (Box<dyn Target>, Promise),
    observer: &dyn Observer,
) -> Result<Plan, Error> {
    examine((request, Task::Rebuild), credential, Storage::Brought(target, promise), observer)
}

enum Storage {
    Host(Access),
    Brought(Box<dyn Target>, Promise),
}

impl Storage {
    /// A file that is replaced whole keeps its bytes until the new one is right; all others are overwritten.
    fn later(&self, request: &Request) -> Later {
        let is_replaced = match self {
            Self::Host(_) => {
                let there = std::fs::metadata(&request.instance.system_disk.path);
                let is_device = there.is_ok_and(|there| there.file_type().is_block_device());
                !is_device && request.options.placement == Placement::Replace
            }
            Self::Brought(target, _) => target.is_new(),
        };
        match is_replaced {
            true if request.options.duplicates == DuplicatePolicy::Deny => Later::LooksAround,
            true => Later::ReplacesWhole,
            false => Later::Overwrites,
        }
    }
}

/// What a run is for.
#[derive(Clone, Copy)]
enum Task<'a> {
    Rebuild,
    /// The content that was kept comes back, byte for byte.
    Undo(&'a Kept),
}

/// What was found before anything was decided.
struct Looked {
    opened: CheckedImage,
    seed: Option<ComposedSeed>,
    seen: Seen,
    claim: Claim,
    brought: Option<Box<dyn Target>>,
    /// What speaks against the run already: there may be more to tell.
    refusals: Vec<Error>,
}

fn examine(
    (request, task): (&Request, Task<'_>),
    credential: &Credential,
    storage: Storage,
    observer: &dyn Observer,
) -> Result<Plan, Error> {
    decide((request, task), look(request, credential, storage, observer)?, observer)
}

/// Looks at the request, the image and the host, and takes hold of the disk.
fn look(
    request: &Request,
    credential: &Credential,
    storage: Storage,
    observer: &dyn Observer,
) -> Result<Looked, Error> {
    let mut refusals = Vec::new();
    noted(check_request(request, &storage), &mut refusals);
    noted(check_state_dir(&request.options.state_dir), &mut refusals);
    let seed = noted(compose_seed(request, credential), &mut refusals).flatten();
    let runs = refusals.iter().any(|refusal| refusal.kind() == ErrorKind::NotStopped);
    let is_device = |path: &std::path::PathBuf| {
        std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
    };
    if runs && request.instance.image.as_ref().is_some_and(is_device) {
        return Err(Error::first_of(refusals));
    }
    let opened = open_image(request, storage.later(request), observer);
    // Before the fault itself: of several, the one with a process is the one to tell.
    refusals.extend(opened.as_ref().err().map(survey::who_writes).unwrap_or_default());
    let opened = noted(opened, &mut refusals);
    if runs {
        // A machine that runs has its disks: no device is opened.
        return Err(Error::first_of(refusals));
    }
    let seen = survey(request, opened.as_ref().map(|opened| opened.image.as_ref()), &mut refusals);
    let claimed = match take_claim(request, storage, &seen) {
        Ok(claimed) => Some(claimed),
        Err(errors) => {
            refusals.extend(errors);
            None
        }
    };
    match (opened, claimed) {
        (Some(opened), Some((claim, brought))) => Ok(Looked { opened, seed, seen, claim, brought, refusals }),
        _ => Err(Error::first_of(refusals)),
    }
}

/// Whether all that was found fits together, and what is to be done then.
fn decide(
    (request, task): (&Request, Task<'_>),
    looked: Looked,
    observer: &dyn Observer,
) -> Result<Plan, Error> {
    let Looked { opened, seed, mut seen, claim, brought, mut refusals } = looked;
    let CheckedImage { mut image, tables, signatures, manifest, decoded } = opened;
    let root = decoded.as_ref().map(DigestTable::root);
    let fit = match task {
        Task::Rebuild => Fit::find(request, (image.as_ref(), tables), &claim, brought.as_deref()),
        Task::Undo(kept) => Fit::back(kept.size, &claim),
    };
    let fit = noted(fit, &mut refusals);
    let overlays = overlays::look(request, &claim);
    refusals.extend(overlays.refusal.map(|refusal| refusal.about(claim.path())));
    let Some(fit) = fit.filter(|_| refusals.is_empty()) else { return Err(Error::first_of(refusals)) };
    image.limit(fit.most_bytes());
    let known = Known::find(&request.options, (image.as_ref(), tables), (&claim, brought.as_deref()), &fit)?;
    let (old_disks, keep, warnings) = match task {
        Task::Rebuild => keep::find(&request.options, (&claim, brought.as_deref()), &known)?,
        Task::Undo(kept) => undo::check(kept, &known.key, (root, claim.path()))?,
    };
    checked(&claim, seen.data_disks.len(), observer);
    let linked = linked::examine(request, (image.as_ref(), decoded, manifest.as_ref()), observer)?;
    seen.warnings.extend(overlays.warning);
    let found = summary::Found {
        task,
        image: image.as_ref(),
        content: tables,
        manifest: manifest.as_ref().map(|manifest| manifest.used.clone()),
        signatures,
        claim: &claim,
        fit: &fit,
        seen: &seen,
        known: &known,
        keep,
        about_old_disks: warnings,
        seed: seed.as_ref(),
    };
    let summary = summary::summarise(request, found)?;
    refuse_summary(request, &summary, &seen)?;
    for warning in &summary.warnings {
        observer.event(&Event::Warning { code: "plan", message: warning.clone() });
    }
    let seen_image = SeenImage::of(image.as_ref(), root);
    let undoes = match task {
        Task::Rebuild => None,
        Task::Undo(kept) => Some(kept.clone()),
    };
    let (request, data_disks) = (request.clone(), seen.data_disks);
    Ok(Plan {
        request,
        image,
        seen_image,
        manifest,
        claim,
        brought,
        fit,
        seed,
        data_disks,
        known,
        linked,
        old_disks,
        undoes,
        summary,
    })
}

/// What only the whole plan shows: that it is another than was agreed to, or would make two disks look like one.
fn refuse_summary(request: &Request, summary: &PlanSummary, seen: &Seen) -> Result<(), Error> {
    let mut refusals = Vec::new();
    if let Some(bound) = &request.options.plan {
        refusals.extend(bound.differences(summary));
    }
    if request.options.duplicates == DuplicatePolicy::Deny {
        refusals.extend(duplicates::refusals(&summary.duplicates));
        refusals.extend(seen.not_looked_into().iter().map(|path| duplicates::unknown(path)));
    }
    if refusals.is_empty() { Ok(()) } else { Err(Error::first_of(refusals)) }
}

/// Tells what the guard found, now that it has found nothing against it.
fn checked(claim: &Claim, data_disks: usize, observer: &dyn Observer) {
    let tell = |name, detail| observer.event(&Event::Checked { name, detail });
    match claim.held() {
        Held::Device { .. } | Held::File { .. } | Held::ReadOnly { .. } => {
            tell("target", format!("nobody else uses {:?}", claim.path()));
        }
        Held::NewFile { .. } => tell("target", format!("{:?} is a new file", claim.path())),
        Held::Promised(_) => {}
    }
    if data_disks > 0 {
        tell("data disks", format!("{data_disks}, none of which shares a byte with the target"));
    }
}

/// What came out, or `None` and one refusal more.
fn noted<T>(result: Result<T, Error>, refusals: &mut Vec<Error>) -> Option<T> {
    result.map_err(|error| refusals.push(error)).ok()
}

/// A contradiction in the request itself.
#[derive(Debug, thiserror::Error)]
enum RequestFault {
    #[error("no system disk is named")]
    NoTarget,
    #[error("no image is named")]
    NoImage,
    #[error("a new file is a raw disk, and its name ends in .qcow2")]
    NewQcow2Name,
    #[error("its power_state is {}", format!("{state:?}").to_lowercase())]
    NotStopped { state: PowerState },
    #[error("no journal can be kept in the state folder")]
    StateDir(#[source] std::io::Error),
    #[error("no seed is named, so that the machine would come up without new credentials")]
    NoSeed,
}

fn check_request(request: &Request, storage: &Storage) -> Result<(), Error> {
    if request.instance.image.is_none() {
        return Err(Error::new(ErrorKind::Usage, RequestFault::NoImage)
            .hint_that("name one: reimage rebuild IMAGE TARGET, or --image FILE"));
    }
    check_request_of_disk(request, storage)
}

/// What must be so of the disk, whatever is to become of it.
fn check_request_of_disk(request: &Request, storage: &Storage) -> Result<(), Error> {
    let usage = |fault, hint: &str| Err(Error::new(ErrorKind::Usage, fault).hint_that(hint));
    let disk = &request.instance.system_disk;
    let on_host = matches!(storage, Storage::Host(_));
    if on_host && disk.path.as_os_str().is_empty() {
        return usage(RequestFault::NoTarget, "name it: reimage rebuild IMAGE TARGET");
    }
    let named_qcow2 = disk.path.extension().is_some_and(|name| name.eq_ignore_ascii_case("qcow2"));
    let is_new = on_host && disk.path.symlink_metadata().is_err();
    if is_new && named_qcow2 && disk.format == crate::request::TargetFormat::Auto {
        return usage(
            RequestFault::NewQcow2Name,
            "say --target-format qcow2 or raw, or give it another name",
        );
    }
    container::check_linked(request)?;
    if request.instance.power_state != PowerState::Stopped {
        let fault = RequestFault::NotStopped { state: request.instance.power_state };
        return Err(Error::new(ErrorKind::NotStopped, fault).hint_that("stop the instance first"));
    }
    Ok(())
}

/// Whether a journal can be begun: the folder, or the first of its parents that is there, can be written.
pub(crate) fn check_state_dir(folder: &std::path::Path) -> Result<(), Error> {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let there = absolute.ancestors().find(|folder| folder.symlink_metadata().is_ok());
    let there = there.unwrap_or(std::path::Path::new("/"));
    let writable = match there.metadata() {
        Ok(metadata) if !metadata.is_dir() => Err(rustix::io::Errno::NOTDIR),
        _ => rustix::fs::access(there, rustix::fs::Access::WRITE_OK),
    };
    writable.map_err(|error| {
        Error::new(ErrorKind::Usage, RequestFault::StateDir(error.into()))
            .at_path(there)
            .hint_that("name a folder that can be written with --state-dir")
    })
}

fn compose_seed(request: &Request, credential: &Credential) -> Result<Option<ComposedSeed>, Error> {
    let refuse = |fault, hint: &str| Err(Error::new(ErrorKind::Credentials, fault).hint_that(hint));
    match &request.instance.seed {
        _ if credential.keeps_image() => Ok(None),
        None => refuse(
            RequestFault::NoSeed,
            "name the seed's file with --seed FILE, or say --keep-image-credentials",
        ),
        Some(spec) => {
            let (instance, state_dir) = (&request.instance, request.options.state_dir.as_path());
            let seed = seed::compose(&Asked { instance, spec, credential, state_dir })?;
            seed.check_place()?;
            Ok(Some(seed))
        }
    }
}

/// The image of a request, opened and checked as the request says.
pub(crate) fn open_image(
    request: &Request,
    later: Later,
    observer: &dyn Observer,
) -> Result<CheckedImage, Error> {
    let Some(path) = &request.instance.image else {
        return Err(Error::new(ErrorKind::Usage, RequestFault::NoImage));
    };
    linked::open(path, request, later, observer).map_err(|error| match &request.instance.id {
        Some(id) if error.path() == Some(path) && !path.exists() => error.hint_that(format!(
            "the image that {id} was created from is gone: name another with --image FILE or as IMAGE"
        )),
        _ => error,
    })
}

type Claimed = (Claim, Option<Box<dyn Target>>);

fn take_claim(request: &Request, storage: Storage, seen: &Seen) -> Result<Claimed, Vec<Error>> {
    let access = match storage {
        Storage::Host(access) => access,
        Storage::Brought(target, promise) => {
            return Ok((Claim::promised(promise, target.size()), Some(target)));
        }
    };
    let (disk, options) = (&request.instance.system_disk, &request.options);
    if disk.path.as_os_str().is_empty() {
        return Err(Vec::new());
    }
    let mut needed = vec![("the state folder", options.state_dir.clone())];
    needed.extend(
        ["locks", "journals", "seeds", "disks", "captures", "receipts", "images", "kept"]
            .map(|name| ("the state folder", options.state_dir.join(name))),
    );
    if let Some(seed) = &request.instance.seed {
        needed.extend(seed.network_config.clone().map(|path| ("the network configuration", path)));
        needed.extend(seed.user_data.clone().map(|path| ("the user-data", path)));
    }
    let bound = options.plan.as_ref().and_then(|plan| plan.file.clone());
    needed.extend(bound.map(|path| ("the plan", path)));
    let subject = Subject {
        path: &disk.path,
        format: disk.format,
        look_inside: &|file, path| look_inside(file, path, &options.image),
        placement: options.placement,
        expect: &disk.expect,
        earlier_ptuuid: &|journal| journal::earlier_ptuuid(&options.state_dir, journal),
        image_files: &seen.image_files,
        data_disks: &seen.data_disks,
        seed: request.instance.seed.as_ref().map(|seed| seed.path.as_path()),
        needed: &needed,
        state_dir: &options.state_dir,
        open_readers: &options.open_readers,
        sight: options.sight,
    };
    let about =
        |refusals: Vec<Refusal>| refusals.into_iter().map(|refusal| refusal.about(&disk.path)).collect();
    guard::claim_host_disk(&seen.topology, &subject, access).map(|claim| (claim, None)).map_err(about)
}
