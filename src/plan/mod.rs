//! Asks everything and writes nothing: the request, the image, the disk, whether one fits the other.
//!
//! A `Plan` holds the claim, so that nothing changes between the check and the use. Every refusal is
//! collected; the first by the documented order is the error, the others stand behind it.

mod fit;
mod summary;
mod view;

use crate::error::{Error, ErrorKind};
use crate::guard::{self, Access, Claim, DataDiskEvidence, Promise, Refusal, StorageIdentity, Subject};
use crate::image::{self, DigestAlgorithm, Image, ImageError, TableReport};
use crate::observe::{Event, Observer};
use crate::request::{
    ExpectedDigest, ImageFormat, ImageOptions, NestedFormat, Os, PowerState, Preflight, Request,
};
use crate::seed::{self, ComposedSeed, Credential};
use crate::target::Target;

pub(crate) use fit::{Ends, Fit, relocation};
pub use summary::{GptPlan, PlanSummary, TargetKind};
pub(crate) use view::{DiskBytes, ImageBytes};

/// A rebuild that may begin: everything was checked, and the disk is held.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// let request = reimage::Request::new("debian-13.qcow2", "/dev/vg0/i-0a1b");
/// let plan = reimage::plan(&request, &reimage::Credential::keep_image(), &())?;
/// println!("{} bytes will be lost", plan.summary().target_bytes);
/// # Ok(())
/// # }
/// ```
pub struct Plan {
    pub(crate) request: Request,
    pub(crate) image: Box<dyn Image>,
    pub(crate) claim: Claim,
    /// A caller's own target, behind a promised claim.
    pub(crate) brought: Option<Box<dyn Target>>,
    pub(crate) fit: Fit,
    pub(crate) seed: Option<ComposedSeed>,
    pub(crate) data_disks: Vec<DataDiskEvidence>,
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
/// With every refusal that was found; nothing has been changed.
pub fn plan(request: &Request, credential: &Credential, observer: &dyn Observer) -> Result<Plan, Error> {
    examine(request, credential, Storage::Host(Access::Write), observer)
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
    examine(request, credential, Storage::Host(Access::Look), observer).map(|plan| plan.summary)
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
    examine(request, credential, Storage::Brought(target, promise), observer)
}

enum Storage {
    Host(Access),
    Brought(Box<dyn Target>, Promise),
}

fn examine(
    request: &Request,
    credential: &Credential,
    storage: Storage,
    observer: &dyn Observer,
) -> Result<Plan, Error> {
    let mut refusals = Vec::new();
    noted(check_request(request, &storage), &mut refusals);
    let seed = noted(compose_seed(request, credential), &mut refusals).flatten();
    let image = noted(open_image(request, observer), &mut refusals);
    let data_disks = noted(look_at_data_disks(request), &mut refusals);
    let image_files = image.as_ref().map(|(image, _)| identities(image.as_ref())).unwrap_or_default();
    let claimed = take_claim(request, storage, &image_files, data_disks.as_deref().unwrap_or_default());
    let (claim, brought) = match claimed {
        Ok((claim, brought)) => (Some(claim), brought),
        Err(errors) => {
            refusals.extend(errors);
            (None, None)
        }
    };
    let (Some((image, tables)), Some(claim)) = (image, claim) else {
        return Err(Error::first_of(refusals));
    };
    let fit = match Fit::find(request, (image.as_ref(), tables), &claim, brought.as_deref()) {
        Ok(fit) if refusals.is_empty() => fit,
        Ok(_) => return Err(Error::first_of(refusals)),
        Err(error) => {
            refusals.push(error);
            return Err(Error::first_of(refusals));
        }
    };
    let data_disks = data_disks.unwrap_or_default();
    let summary = summary::summarise(request, (image.as_ref(), tables), (&claim, &fit), seed.as_ref());
    for warning in &summary.warnings {
        observer.event(&Event::Warning { code: "plan", message: warning.clone() });
    }
    let request = request.clone();
    Ok(Plan { request, image, claim, brought, fit, seed, data_disks, summary })
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
    #[error("a new file with a name that ends in .qcow2 would be a raw disk")]
    NewQcow2Name,
    #[error("the instance is {state:?} as its caller says")]
    NotStopped { state: PowerState },
    #[error("a Windows guest does not read a NoCloud seed")]
    WindowsSeed,
    #[error("no seed is named, so that the machine would come up without new credentials")]
    NoSeed,
    #[error("the digest is {found}, and {expected} was expected")]
    Digest { found: String, expected: String },
    #[error("a digest is to be checked and none is given")]
    NoDigest,
}

fn check_request(request: &Request, storage: &Storage) -> Result<(), Error> {
    let usage = |fault, hint: &str| Err(Error::new(ErrorKind::Usage, fault).hint_that(hint));
    let disk = &request.instance.system_disk;
    let on_host = matches!(storage, Storage::Host(_));
    if on_host && disk.path.as_os_str().is_empty() {
        return usage(RequestFault::NoTarget, "name it: reimage rebuild IMAGE TARGET");
    }
    if request.instance.image.is_none() {
        return usage(RequestFault::NoImage, "name one: reimage rebuild IMAGE TARGET, or --image FILE");
    }
    if request.options.preflight == Preflight::Digest && request.options.image.expect_digest.is_none() {
        return usage(RequestFault::NoDigest, "give --expect-digest sha256:HEX or blake3:HEX");
    }
    let named_qcow2 = disk.path.extension().is_some_and(|name| name.eq_ignore_ascii_case("qcow2"));
    let is_new = on_host && disk.path.symlink_metadata().is_err();
    if is_new && named_qcow2 && disk.format == crate::request::TargetFormat::Auto {
        return usage(RequestFault::NewQcow2Name, "give it another name, or say --target-format raw");
    }
    if request.instance.power_state != PowerState::Stopped {
        let fault = RequestFault::NotStopped { state: request.instance.power_state };
        return Err(Error::new(ErrorKind::NotStopped, fault).hint_that("stop the instance first"));
    }
    Ok(())
}

fn compose_seed(request: &Request, credential: &Credential) -> Result<Option<ComposedSeed>, Error> {
    let refuse = |fault, hint: &str| Err(Error::new(ErrorKind::Credentials, fault).hint_that(hint));
    match &request.instance.seed {
        _ if credential.keeps_image() => Ok(None),
        None => refuse(
            RequestFault::NoSeed,
            "name the seed's file with --seed FILE, or say --keep-image-credentials",
        ),
        Some(_) if request.instance.os == Os::Windows => {
            refuse(RequestFault::WindowsSeed, "seeds for Windows are not written yet")
        }
        Some(spec) => {
            let seed = seed::compose(spec, request.instance.hostname.as_deref(), credential)?;
            seed.check_place()?;
            Ok(Some(seed))
        }
    }
}

/// Opens the image of a request and checks what `--preflight` wants checked before the disk changes.
fn open_image(request: &Request, observer: &dyn Observer) -> Result<(Box<dyn Image>, TableReport), Error> {
    let Some(path) = &request.instance.image else {
        return Err(Error::new(ErrorKind::Usage, RequestFault::NoImage));
    };
    let image = open(path, &request.options.image).map_err(|error| match &request.instance.id {
        Some(id) if error.path() == Some(path) && !path.exists() => error.hint_that(format!(
            "the image that {id} was created from is gone: name another with --image FILE or as IMAGE"
        )),
        _ => error,
    })?;
    let tables = image.check_tables().map_err(|fault| image_error(ErrorKind::Image, fault))?;
    observer.event(&Event::Checked { name: "image", detail: format!("all metadata of {}", path.display()) });
    if let Some(expected) = request.options.image.expect_digest.filter(|_| wants_digest(request)) {
        check_digest(image.as_ref(), expected)?;
        observer
            .event(&Event::Checked { name: "digest", detail: "the image file is the expected one".into() });
    }
    Ok((image, tables))
}

/// The image of a request, checked as far as its options say.
pub(crate) fn open_checked(request: &Request, observer: &dyn Observer) -> Result<Box<dyn Image>, Error> {
    open_image(request, observer).map(|(image, _)| image)
}

fn wants_digest(request: &Request) -> bool {
    request.options.preflight != Preflight::Tables
}

/// Opens an image as its options say.
pub(crate) fn open(path: &std::path::Path, options: &ImageOptions) -> Result<Box<dyn Image>, Error> {
    let options = image::OpenOptions {
        format: match options.format {
            ImageFormat::Auto => image::Format::Auto,
            ImageFormat::Raw => image::Format::Raw,
            ImageFormat::Qcow2 => image::Format::Qcow2,
        },
        nested: match options.nested {
            NestedFormat::Refuse => image::Nested::Refuse,
            NestedFormat::Allow => image::Nested::Allow,
        },
        backing_folders: &options.allow_backing,
    };
    image::open(path, &options).map_err(|fault| image_error(ErrorKind::Image, fault))
}

/// An image's fault as an error of the kind that the moment gives it.
pub(crate) fn image_error(kind: ErrorKind, fault: ImageError) -> Error {
    let (path, range, hint) = (fault.path().map(ToOwned::to_owned), fault.range(), fault.hint());
    let mut error = Error::new(kind, fault);
    if let Some(path) = path {
        error = error.at_path(path);
    }
    if let Some(range) = range {
        error = error.at_range(range);
    }
    match hint {
        Some(hint) => error.hint_that(hint),
        None => error,
    }
}

/// Compares the image file, as it lies, with the digest that was given.
pub(crate) fn check_digest(image: &dyn Image, expected: ExpectedDigest) -> Result<(), Error> {
    let (algorithm, expected) = match expected {
        ExpectedDigest::Sha256(bytes) => (DigestAlgorithm::Sha256, bytes),
        ExpectedDigest::Blake3(bytes) => (DigestAlgorithm::Blake3, bytes),
    };
    let found = image.file_digest(algorithm).map_err(|fault| image_error(ErrorKind::Image, fault))?;
    if found == expected {
        return Ok(());
    }
    let hex = |bytes: [u8; 32]| bytes.map(|byte| format!("{byte:02x}")).concat();
    let fault = RequestFault::Digest { found: hex(found), expected: hex(expected) };
    let error = Error::new(ErrorKind::ImageDigest, fault).hint_that("fetch the image again");
    Err(match image.identities().first() {
        Some(file) => error.at_path(&file.path),
        None => error,
    })
}

fn look_at_data_disks(request: &Request) -> Result<Vec<DataDiskEvidence>, Error> {
    let paths = request.instance.data_disks.iter().map(|disk| disk.path.clone());
    guard::data_disks_now(paths).map_err(|(path, source)| {
        let refusal = Refusal::DataDiskUnknown { path, source };
        refusal.about(&request.instance.system_disk.path)
    })
}

fn identities(image: &dyn Image) -> Vec<(std::path::PathBuf, StorageIdentity)> {
    let of_file = |file: image::FileIdentity| {
        let identity = match file.block_device {
            Some(device) => guard::device_identity(device),
            None => StorageIdentity::File { device: file.device, inode: file.inode },
        };
        (file.path, identity)
    };
    image.identities().into_iter().map(of_file).collect()
}

type Claimed = (Claim, Option<Box<dyn Target>>);

fn take_claim(
    request: &Request,
    storage: Storage,
    image_files: &[(std::path::PathBuf, StorageIdentity)],
    data_disks: &[DataDiskEvidence],
) -> Result<Claimed, Vec<Error>> {
    let access = match storage {
        Storage::Host(access) => access,
        Storage::Brought(target, promise) => {
            return Ok((Claim::promised(promise, target.size()), Some(target)));
        }
    };
    let disk = &request.instance.system_disk;
    if disk.path.as_os_str().is_empty() {
        return Err(Vec::new());
    }
    let subject = Subject {
        path: &disk.path,
        format: disk.format,
        placement: request.options.placement,
        expect: &disk.expect,
        image_files,
        data_disks,
        seed: request.instance.seed.as_ref().map(|seed| seed.path.as_path()),
    };
    let about =
        |refusals: Vec<Refusal>| refusals.into_iter().map(|refusal| refusal.about(&disk.path)).collect();
    guard::claim_host_disk(&subject, access).map(|claim| (claim, None)).map_err(about)
}
