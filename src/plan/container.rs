//! The qcow2 file that a system disk is: what is kept of the old one, what is lost, and what it may not be.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{ImageBytes, image_error};
use crate::error::{Error, ErrorKind};
use crate::guard::{Claim, Held, Inside};
use crate::image::{self, DiskFile, Image, ImageError, Version};
use crate::layout::ReadBytes;
use crate::range::ByteRange;
use crate::request::{
    ImageOptions, Linking, Mode, OldSnapshots, Placement, Request, TargetFormat, WholeDigest,
};
use crate::sys::durable;
use crate::target::{Backing, Qcow2Shape};

/// The sectors in which qemu counts a qcow2 disk: a size that is none of them is rounded up.
const SECTOR: u64 = 512;

/// The qcow2 file that the disk will be.
pub(crate) struct Container {
    pub(crate) shape: Qcow2Shape,
    /// The old file, where there is one.
    old: Option<DiskFile>,
}

/// The qcow2 file that a system disk becomes.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// # let request = reimage::Request::new("debian-13.qcow2", "/var/lib/vm/i-0a1b/disk.qcow2");
/// let plan = reimage::preview(&request, &reimage::Credential::keep_image(), &())?;
/// let snapshots_lost = plan.qcow2.map_or(0, |file| file.lost_snapshots);
/// # let _ = snapshots_lost;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Qcow2Plan {
    /// 2 or 3, as the old file has it.
    pub version: u32,
    /// The cluster size in bytes, as the old file has it.
    pub cluster_size: u64,
    /// The image, where the disk becomes an overlay on it.
    pub backing: Option<PathBuf>,
    /// Internal snapshots of the old file, which go with it.
    pub lost_snapshots: u32,
    /// Whether dirty bitmaps of the old file go with it.
    pub lost_bitmaps: bool,
    /// The file on which the old one is an overlay and the new one is not.
    pub lost_backing: Option<PathBuf>,
}

/// What speaks against such a file.
#[derive(Debug, thiserror::Error)]
enum ContainerFault {
    #[error("it cannot be opened again")]
    CannotOpen(#[source] io::Error),
    #[error("it holds {} that would be lost", in_words(.snapshots, .bitmaps))]
    Loses { snapshots: u32, bitmaps: bool },
    #[error("clusters of {cluster_size} bytes are too small for a disk of {size} bytes ({most} at most)")]
    TooManyClusters { cluster_size: u64, size: u64, most: u64 },
    #[error("an overlay is a qcow2 file, and the target is {found}")]
    NotLinkable { found: &'static str },
    #[error("{0} does not go with an overlay on the image")]
    NotWithLinked(&'static str),
    #[error("the new file would be a raw disk")]
    NewRawFile,
    #[error("the image is no file that an overlay could be built on")]
    NoBackingFile(#[source] io::Error),
    #[error("an overlay cannot be built on a packed image")]
    PackedBacking,
    #[error("the image's path is too long for the header of a file with clusters of {cluster_size} bytes")]
    NameTooLong { cluster_size: u64 },
}

fn in_words(snapshots: &u32, bitmaps: &bool) -> String {
    match (snapshots, bitmaps) {
        (0, _) => "dirty bitmaps".to_owned(),
        (1, false) => "1 internal snapshot".to_owned(),
        (1, true) => "1 internal snapshot, and dirty bitmaps,".to_owned(),
        (count, false) => format!("{count} internal snapshots"),
        (count, true) => format!("{count} internal snapshots, and dirty bitmaps,"),
    }
}

impl Container {
    /// The file that the disk will be; `None` where a raw disk is written.
    pub(super) fn find(request: &Request, image: &dyn Image, claim: &Claim) -> Result<Option<Self>, Error> {
        let options = &request.options;
        let linked = options.linking == Linking::Linked;
        let about = |fault| Error::new(ErrorKind::TargetUnusable, fault).at_path(claim.path());
        let found = match claim.held() {
            Held::File { file, inside: Some(_), .. } => {
                let old = file.try_clone().map_err(|error| about(ContainerFault::CannotOpen(error)))?;
                let old = DiskFile::read(old, claim.path());
                Ok(Some(old.map_err(|fault| image_error(ErrorKind::TargetUnusable, fault))?))
            }
            Held::NewFile { .. } if request.instance.system_disk.format == TargetFormat::Qcow2 => Ok(None),
            Held::NewFile { .. } if linked => {
                let fault = Error::new(ErrorKind::Usage, ContainerFault::NewRawFile).at_path(claim.path());
                return Err(fault.hint_that("say --target-format qcow2"));
            }
            Held::File { .. } | Held::NewFile { .. } => Err("a raw file"),
            Held::Device { .. } => Err("a device"),
            Held::ReadOnly { .. } | Held::Promised(_) => Err("the caller's own"),
        };
        let old = match found {
            Ok(old) => old,
            Err(found) if linked => {
                let fault = about(ContainerFault::NotLinkable { found });
                return Err(fault.hint_that("leave --linked out"));
            }
            Err(_) => return Ok(None),
        };
        refuse_losses(request, old.as_ref()).map_err(|fault| {
            about(fault).hint_that("--allow-losing-snapshots replaces the file nevertheless")
        })?;
        let mut shape = old.as_ref().map_or_else(Qcow2Shape::default, shape_of);
        if linked {
            shape.version = Version::Three;
            shape.backing = Some(backing(request, image)?);
            if !shape.has_room_for_name() {
                let fault = about(ContainerFault::NameTooLong { cluster_size: shape.cluster() });
                return Err(fault.hint_that("keep the image in a folder with a shorter name"));
            }
        }
        Ok(Some(Self { shape, old }))
    }

    /// The size that the disk gets, where it is to have `size` bytes.
    pub(super) fn size_of(&self, size: u64, path: &Path) -> Result<u64, Error> {
        let most = self.shape.most_bytes();
        let size = size.checked_next_multiple_of(SECTOR).filter(|size| *size <= most).ok_or_else(|| {
            let cluster_size = self.shape.cluster();
            Error::new(ErrorKind::DoesNotFit, ContainerFault::TooManyClusters { cluster_size, size, most })
                .at_path(path)
                .hint_that("remove the old file, so that a new one gets larger clusters")
        })?;
        Ok(size)
    }

    /// The most that its disk can be, of an image that may be so long.
    pub(super) fn most_bytes(&self, image: u64) -> u64 {
        image.checked_next_multiple_of(SECTOR).unwrap_or(image).min(self.shape.most_bytes())
    }

    pub(super) fn summary(&self) -> Qcow2Plan {
        let old = self.old.as_ref();
        Qcow2Plan {
            version: match self.shape.version {
                Version::Two => 2,
                Version::Three => 3,
            },
            cluster_size: self.shape.cluster(),
            backing: self.shape.backing.as_ref().map(|backing| backing.path.clone()),
            lost_snapshots: old.map_or(0, |old| old.snapshots),
            lost_bitmaps: old.is_some_and(|old| old.bitmaps),
            lost_backing: old.and_then(|old| old.backing.clone()).filter(|_| self.shape.backing.is_none()),
        }
    }

    /// What a person should know before saying yes.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(backing) = &self.shape.backing {
            let image = &backing.path;
            warnings.push(format!(
                "the disk will depend on the image {image:?}: whoever changes, moves or removes it breaks the disk"
            ));
            let volatile = image.parent().and_then(|folder| durable::volatile(folder).ok().flatten());
            warnings.extend(volatile.map(|kind| {
                format!("the image lies on {kind}, which may be gone after the host's next start, and the disk with it")
            }));
        }
        let Some(old) = &self.old else { return warnings };
        let summary = self.summary();
        if let Some(backing) = &summary.lost_backing {
            warnings.push(format!(
                "the old disk is an overlay on {backing:?} and becomes a flat disk (--linked makes an overlay on the \
                 image)"
            ));
        }
        if old.snapshots > 0 || old.bitmaps {
            let lost = in_words(&old.snapshots, &old.bitmaps);
            let lost = lost.trim_end_matches(',');
            warnings.push(format!("what the old file holds besides the disk is lost: {lost}"));
        }
        if old.corrupt {
            warnings.push("the old file is marked corrupt; nothing of it is kept".to_owned());
        }
        if old.extended_l2 {
            warnings.push("the old file has subclusters (extended_l2), and the new one has none".to_owned());
        }
        warnings
    }
}

fn shape_of(old: &DiskFile) -> Qcow2Shape {
    let version = if old.version == 2 { Version::Two } else { Version::Three };
    Qcow2Shape { version, cluster_bits: old.cluster_bits, backing: None }
}

fn refuse_losses(request: &Request, old: Option<&DiskFile>) -> Result<(), ContainerFault> {
    match old {
        Some(DiskFile { snapshots, bitmaps, .. })
            if (*snapshots > 0 || *bitmaps) && request.options.old_snapshots == OldSnapshots::Refuse =>
        {
            Err(ContainerFault::Loses { snapshots: *snapshots, bitmaps: *bitmaps })
        }
        _ => Ok(()),
    }
}

/// The image as the file below an overlay: by its whole path, which is the same wherever it is read from.
fn backing(request: &Request, image: &dyn Image) -> Result<Backing, Error> {
    let named = request.instance.image.as_deref().unwrap_or(Path::new(""));
    if let Some(codec) = packed_with(image) {
        let hint = image::unpack_and(named, codec, "name");
        return Err(Error::new(ErrorKind::Image, ContainerFault::PackedBacking)
            .at_path(named)
            .hint_that(hint));
    }
    let about = |error| {
        Error::new(ErrorKind::Image, ContainerFault::NoBackingFile(error))
            .at_path(named)
            .hint_that("leave --linked out")
    };
    let path = named.canonicalize().map_err(about)?;
    if !path.metadata().map_err(about)?.is_file() {
        return Err(about(io::Error::new(io::ErrorKind::InvalidInput, "it is a device")));
    }
    Ok(Backing { path, format: image.info().format })
}

/// What the image's own file is packed with: whoever reads a disk through it knows nothing of that.
fn packed_with(image: &dyn Image) -> Option<&'static str> {
    let info = image.info();
    let first = info.chain.first().filter(|layer| layer.format == "raw")?;
    first.compression
}

/// What contradicts `--linked` in the request itself.
pub(super) fn check_linked(request: &Request) -> Result<(), Error> {
    let options = &request.options;
    let contradiction = match () {
        () if options.linking == Linking::Copy => return Ok(()),
        () if options.placement == Placement::InPlace => "--in-place",
        () if options.mode == Mode::Delta => "--mode delta",
        () if options.whole_digest == WholeDigest::Compute => "--whole-digest, which reads all of the image,",
        () => return Ok(()),
    };
    let fault = ContainerFault::NotWithLinked(contradiction);
    Err(Error::new(ErrorKind::Usage, fault).hint_that("leave one of the two out"))
}

/// Looks into an open qcow2 disk for the guard: its size always, its bytes where every file below it may be read.
pub(crate) fn look_inside(file: &File, path: &Path, options: &ImageOptions) -> io::Result<Inside> {
    let old = DiskFile::read(file.try_clone()?, path).map_err(io::Error::other)?;
    let bytes = open_disk_file(file, path, options).ok();
    let bytes = bytes.map(|disk| Box::new(OwnedBytes(disk)) as Box<dyn ReadBytes + Send + Sync>);
    Ok(Inside { size: old.virtual_size, bytes })
}

/// Opens what is in an open qcow2 file; the files below it are opened where the caller allows that.
pub(crate) fn open_disk_file(
    file: &File,
    path: &Path,
    options: &ImageOptions,
) -> Result<Box<dyn Image>, ImageError> {
    let failed =
        |source| ImageError::Io { doing: "opening the disk's file", path: path.into(), range: None, source };
    let options = super::open::open_options(options);
    let disk = image::open_held(file.try_clone().map_err(failed)?, path, &options)?;
    super::open::check_tables(disk.as_ref())?;
    Ok(disk)
}

struct OwnedBytes(Box<dyn Image>);

impl ReadBytes for OwnedBytes {
    fn size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        ImageBytes(self.0.as_ref()).read_at(range, buffer)
    }
}
