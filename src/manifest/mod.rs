//! Manifests: made of an image, and compared with a disk.

mod head;
mod verify;

use std::path::Path;

use crate::copy::{self, CopyError, Pool, Sink, Transfer, Watch};
use crate::error::{Error, ErrorKind};
use crate::image::Image;
use crate::observe::{CancelToken, Observer, Phase};
use crate::plan::{self, ANY_SIZE, Check, CheckedImage, ImageBytes, Later, image_error};
use crate::rebuild::copy_error;
use crate::request::{ImageOptions, ManifestSource, Options, Preflight, WholeDigest};
use crate::seed::Replace;
use crate::verify::{
    ImageFileDigests, Made, Manifest, ManifestError, OldManifest, SourceKind, WholeDigester,
};

pub(crate) use head::former_head;
pub use verify::verify_manifest;

/// Makes the manifest of an image: checks all of it, decodes every cluster, and digests its file.
///
/// Of the options, those of the image, of the whole digest, and of threads and time count.
///
/// # Errors
///
/// As a rebuild would refuse the image; with kind `Cancelled` where that was asked for.
pub fn manifest(
    path: &Path,
    options: &Options,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Manifest, Error> {
    // The one that is beside it tells of what it was, and so does its signature.
    let (manifest, trust_keys) = (ManifestSource::None, Vec::new());
    let image = ImageOptions { manifest, trust_keys, ..options.image.clone() };
    let (threads, later) = (options.threads, Later::LosesNothing);
    // What a host may be given matters where it is put on a disk.
    let check = Check { preflight: Preflight::Auto, threads, later, policies: &[], most_bytes: ANY_SIZE };
    let CheckedImage { image, .. } = plan::open_checked(path, &image, check, observer)?;
    let failed = |fault: CopyError| match fault {
        CopyError::Image(fault) => image_error(ErrorKind::Image, fault),
        fault => copy_error(fault, Path::new("")),
    };
    let pool = Pool::start(options.threads).map_err(|error| failed(CopyError::Memory(error)))?;
    let virtual_size = image.virtual_size();
    let whole = match options.whole_digest {
        WholeDigest::Compute => Some(WholeDigester::new(virtual_size)),
        WholeDigest::Skip => None,
    };
    let watch = |bytes_total| {
        let stall_timeout = options.stall_timeout;
        Watch { observer, cancel, phase: Phase::Preflight, bytes_total, stall_timeout }
    };
    let transfer = Transfer { image: image.as_ref(), sink: Sink::Digests, manifest: None, whole };
    let decoded = copy::transfer(&pool, transfer, (&watch(virtual_size), &mut ())).map_err(failed)?;
    let info = image.info();
    let file = digest_file(image.as_ref(), &watch(info.file_size)).map_err(failed)?;
    image.check_unchanged().map_err(|fault| image_error(ErrorKind::Image, fault))?;
    let unreadable = |error| Error::new(ErrorKind::Image, error).at_path(path);
    let head = former_head(&ImageBytes(image.as_ref())).map_err(unreadable)?;
    let made = Made::now(SourceKind::Image, info.format, Vec::new());
    Ok(Manifest::new(decoded.digests, decoded.whole, file, made).with_head(head))
}

/// Both digests of the image's file, in one pass.
pub(crate) fn digest_file(image: &dyn Image, watch: &Watch<'_>) -> Result<ImageFileDigests, CopyError> {
    watch.started();
    ImageFileDigests::of(watch.bytes_total, |piece, buffer| {
        if watch.cancel.is_cancelled() {
            return Err(CopyError::Cancelled);
        }
        image.read_file(piece.start(), buffer)?;
        watch.progress(piece.end());
        Ok(())
    })
}

/// Writes a manifest: the name does not exist, or is whole and durable.
///
/// # Errors
///
/// As [`check_manifest_place`]; with kind `TargetIo` where the file could not be written.
pub fn write_manifest(path: &Path, manifest: &Manifest, replace: Replace) -> Result<(), Error> {
    plan::check_manifest_folder(path)?;
    let written = crate::verify::write_manifest(path, manifest, old_manifest(replace));
    written.map_err(|fault| place_error(fault, path))
}

/// Whether [`write_manifest`] could put a manifest there, asked before an image is decoded for it.
///
/// # Errors
///
/// With kind `Usage` where there is a file of that name that must stay, or, whatever `replace` says, one that is no
/// manifest; with that of a target of the wrong kind in `/dev`, `/proc` and `/sys`.
pub fn check_manifest_place(path: &Path, replace: Replace) -> Result<(), Error> {
    plan::check_manifest_folder(path)?;
    let checked = crate::verify::check_manifest_place(path, old_manifest(replace));
    checked.map_err(|fault| place_error(fault, path))
}

fn old_manifest(replace: Replace) -> OldManifest {
    match replace {
        Replace::Refuse => OldManifest::Refuse,
        Replace::Existing => OldManifest::Replace,
    }
}

fn place_error(fault: ManifestError, path: &Path) -> Error {
    let (kind, hint) = match &fault {
        ManifestError::Exists => (ErrorKind::Usage, "name another file, or say --replace"),
        ManifestError::WrongKind => (ErrorKind::Usage, "name a file"),
        ManifestError::OtherThere => (ErrorKind::Usage, "name another file, or remove this one first"),
        ManifestError::TooManyChunks { .. } => {
            (ErrorKind::Image, "a disk with more data is rebuilt without a manifest")
        }
        _ => (ErrorKind::TargetIo, "check the folder's rights and room"),
    };
    Error::new(kind, fault).at_path(path).hint_that(hint)
}
