//! The manifest of an image: found, read, and compared with the image's file before anything is changed.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::copy::{self, ByManifest, CopyError, Pool, Standing, Watch};
use crate::error::{Error, ErrorKind};
use crate::guard;
use crate::image::Image;
use crate::request::{ImageOptions, ManifestSource, Options, Policy, TrustKey};
use crate::trust::{self, ManifestBytes};
use crate::verify::{self, Digest, Manifest};

/// What to do where an image and its manifest differ.
pub(crate) const FETCH_BOTH: &str = "fetch the image and its manifest again; --manifest none does without, and says \
                                     nothing of the image's bytes";

/// What a run knows of an image by its manifest.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// # let request = reimage::Request::new("debian-13.qcow2", "/dev/vg0/i-0a1b");
/// let plan = reimage::preview(&request, &reimage::Credential::keep_image(), &())?;
/// let root = plan.manifest.map(|manifest| manifest.root);
/// # let _ = root;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ManifestUse {
    /// The manifest's file.
    #[serde(serialize_with = "crate::error::path_text")]
    pub path: PathBuf,
    /// The root of its chunk digests.
    pub root: Digest,
    /// The BLAKE3 of the image's file, where it was compared before anything was changed; else each chunk is
    /// compared when it is decoded.
    pub image_file: Option<Digest>,
}

/// The manifest of an image that is open.
pub(crate) struct KnownManifest {
    pub(crate) manifest: Manifest,
    pub(crate) used: ManifestUse,
    standing: Standing,
    /// Who has signed it, where anybody had to.
    pub(super) signer: Option<TrustKey>,
}

/// The image is not the manifest's.
#[derive(Debug, thiserror::Error)]
enum Foreign {
    #[error("its disk has {found} bytes, and that of the manifest {manifest:?} has {said}")]
    VirtualSize { found: u64, said: u64, manifest: PathBuf },
    #[error("it has {found} bytes, and the manifest {manifest:?} says {said}")]
    FileSize { found: u64, said: u64, manifest: PathBuf },
    #[error("its BLAKE3 is {found}, and the manifest {manifest:?} says {said}")]
    File { found: Digest, said: Digest, manifest: PathBuf },
}

impl KnownManifest {
    /// The manifest of an image: where it is named it must be there, and where it is there it must be right.
    pub(super) fn find(
        path: &Path,
        options: &ImageOptions,
        policies: &[Policy],
    ) -> Result<Option<Self>, Error> {
        // Where somebody wants a signature, an image without a manifest is refused.
        let none = || trust::check_manifest((path, options), policies, None).map(|_| None);
        let place = match &options.manifest {
            ManifestSource::None => return none(),
            ManifestSource::File(place) => place.clone(),
            ManifestSource::Beside => {
                let place = verify::beside(path);
                let absent = |error: &io::Error| {
                    let no_such_name =
                        matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ENAMETOOLONG));
                    error.kind() == io::ErrorKind::NotFound || no_such_name
                };
                if place.symlink_metadata().is_err_and(|error| absent(&error)) {
                    return none();
                }
                place
            }
        };
        let hint = "fetch the manifest again, name another with --manifest FILE, or --manifest none";
        let (manifest, signer) = read(&place, (path, options, policies), hint)?;
        let used = ManifestUse { root: manifest.root(), path: place, image_file: None };
        Ok(Some(Self { manifest, used, standing: Standing::Claimed, signer }))
    }

    /// Whether the image's disk has the size that the manifest says.
    pub(super) fn check_size(&self, image: &dyn Image, path: &Path) -> Result<(), Error> {
        let (found, said) = (image.virtual_size(), self.manifest.virtual_size());
        let manifest = self.used.path.clone();
        if found == said {
            Ok(())
        } else {
            Err(foreign(Foreign::VirtualSize { found, said, manifest }, path))
        }
    }

    /// Whether the image's file is the one that the manifest was made with: its size, then its BLAKE3.
    pub(super) fn check_file(
        &mut self,
        (image, path): (&dyn Image, &Path),
        (pool, watch): (&Pool, &Watch<'_>),
    ) -> Result<(), CheckFault> {
        let (file, manifest) = (self.manifest.image_file(), self.used.path.clone());
        if watch.bytes_total != file.bytes {
            let fault = Foreign::FileSize { found: watch.bytes_total, said: file.bytes, manifest };
            return Err(CheckFault::Refused(foreign(fault, path)));
        }
        let found = copy::digest_file(pool, image, watch).map_err(CheckFault::Copy)?;
        if found != file.blake3 {
            let fault = Foreign::File { found, said: file.blake3, manifest };
            return Err(CheckFault::Refused(foreign(fault, path)));
        }
        self.used.image_file = Some(found);
        // Of a backing file the manifest's digest of the image's file says nothing.
        if image.identities().len() == 1 {
            self.standing = Standing::Proved;
        }
        Ok(())
    }

    /// Whether the image's file is the very one that the manifest was made with, so that it says all of the disk.
    pub(super) fn is_proved(&self) -> bool {
        self.standing == Standing::Proved
    }

    /// What the image's chunks are compared with.
    pub(crate) fn chunks(&self) -> ByManifest<'_> {
        ByManifest { digests: self.manifest.digests(), standing: self.standing }
    }
}

/// Reads a manifest that stands for an image, signed as the options want it.
pub(crate) fn read_manifest(place: &Path, options: &Options) -> Result<Manifest, Error> {
    let (options, policies) = (&options.image, &options.policies);
    if let Some(refusal) = Error::first_if_any(trust::check_request(place, options, policies)) {
        return Err(refusal);
    }
    trust::check_without_image(place, options)?;
    let hint = "make the manifest again with `reimage manifest IMAGE`, or fetch it again";
    read(place, (place, options, policies), hint).map(|(manifest, _)| manifest)
}

/// A manifest, and who has signed it.
fn read(
    place: &Path,
    (image, options, policies): (&Path, &ImageOptions, &[Policy]),
    hint: &str,
) -> Result<(Manifest, Option<TrustKey>), Error> {
    let refused = |fault| Error::new(ErrorKind::ImageDigest, fault).at_path(place).hint_that(hint);
    // The signature is of these very bytes, and is checked before anything is made of them.
    let bytes = verify::read_manifest(place).map_err(refused)?;
    let signer = trust::check_manifest(
        (image, options),
        policies,
        Some(ManifestBytes { path: place, bytes: &bytes }),
    )?;
    Ok((Manifest::from_json(&bytes).map_err(refused)?, signer))
}

/// Whether a file stands for a manifest, however broken, and no image: whether its name ends in `.json`.
///
/// The content is not asked: a guest may write a manifest into its own disk.
#[must_use]
pub fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "json")
}

/// A manifest is made in no folder of the kernel's.
pub(crate) fn check_manifest_folder(path: &Path) -> Result<(), Error> {
    guard::check_folder(path)
        .map_or(Ok(()), |refusal| Err(refusal.about(path).hint_that("name a file in another folder")))
}

/// Why an image's file was not found to be the manifest's.
pub(super) enum CheckFault {
    Refused(Error),
    Copy(CopyError),
}

fn foreign(fault: Foreign, path: &Path) -> Error {
    Error::new(ErrorKind::ImageDigest, fault).at_path(path).hint_that(FETCH_BOTH)
}
