//! What speaks against a capture, and what went wrong in it.

use std::path::Path;

use crate::copy::CopyError;
use crate::error::{Error, ErrorKind};
use crate::image::ImageError;
use crate::plan::image_error;
use crate::range::ByteRange;
use crate::request::PowerState;

/// What speaks against a capture, or went wrong in it.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaptureFault {
    #[error("no system disk is named")]
    NoDisk,
    #[error("no file is named that the image will be")]
    NoImage,
    #[error("its name says {named}, and the image will be a qcow2 file")]
    NotNamedQcow2 { named: &'static str },
    #[error("clusters of {bytes} bytes are not made")]
    ClusterSize { bytes: u32 },
    #[error("the manifest cannot have the image's own place, or a folder's")]
    ManifestPlace,
    #[error("its power_state is {}", format!("{state:?}").to_lowercase())]
    NotStopped { state: PowerState },
    #[error("{why}")]
    Format { why: &'static str },
    #[error("its head says that a rebuild of it is unfinished (journal {journal}): half a disk is no image")]
    Unfinished { journal: String },
    #[error("there is a file of that name already")]
    Exists,
    #[error("there is a manifest of that name already, which is not the new image's")]
    ManifestExists,
    #[error("its folder cannot be used")]
    Folder(#[source] std::io::Error),
    #[error("{what} could not be made")]
    New { what: &'static str, source: std::io::Error },
    #[error("{doing} failed")]
    Place { doing: &'static str, source: std::io::Error },
    #[error("another file was put into its place during the run")]
    Usurped,
    #[error("the file system has {free} bytes free, and the image needs {needed}")]
    NoRoom { free: u64, needed: u64 },
    #[error("it cannot be read here either")]
    AlsoBad,
    #[error("the disk is not what it was when the capture began")]
    Changed,
    #[error("the new image reads back otherwise than the disk was read")]
    ReadsBackWrong,
    #[error("the new image cannot be read back")]
    Unreadable(#[source] ImageError),
}

/// The two files that a pass is about.
pub(super) struct Files<'a> {
    pub(super) disk: &'a Path,
    pub(super) image: &'a Path,
}

impl Files<'_> {
    /// A fault while the disk was read and the image written.
    pub(super) fn packing(&self, fault: CopyError) -> Error {
        match fault {
            CopyError::Image(fault) => self.unreadable_disk(fault),
            CopyError::Stalled { .. } => Error::new(ErrorKind::ImageFault, fault)
                .at_path(self.disk)
                .hint_that("check the disk, the image's disk and the kernel's log, then capture again"),
            fault => self.other(fault),
        }
    }

    /// A fault while the image was read back.
    pub(super) fn reading_back(&self, fault: CopyError) -> Error {
        match fault {
            CopyError::Image(fault) => unreadable(fault, self.image),
            fault => self.other(fault),
        }
    }

    /// The disk could not be read, or is no disk image after all.
    pub(super) fn unreadable_disk(&self, fault: ImageError) -> Error {
        let is_read_error = matches!(fault, ImageError::Io { .. });
        let error = image_error(ErrorKind::ImageFault, fault);
        match is_read_error {
            true => error.hint_that(
                "check the disk and the kernel's log; --skip-bad-sectors puts zeroes for what cannot be read",
            ),
            false => error,
        }
    }

    fn other(&self, fault: CopyError) -> Error {
        match fault {
            CopyError::Cancelled => {
                Error::new(ErrorKind::Cancelled, fault).hint_that("nothing is left of it; capture again")
            }
            CopyError::Memory(_) => Error::new(ErrorKind::Internal, fault)
                .hint_that("free memory, or use fewer threads (--threads)"),
            fault => output_error(fault, self.image),
        }
    }
}

/// The new image cannot be written.
pub(super) fn output_error(fault: impl std::error::Error + Send + Sync + 'static, image: &Path) -> Error {
    Error::new(ErrorKind::TargetIo, fault)
        .at_path(image)
        .hint_that("check the room and the disk that the image is written to, then capture again")
}

/// The new image cannot be read, right after it was written.
pub(super) fn unreadable(fault: ImageError, image: &Path) -> Error {
    let range = fault.range();
    let error = Error::new(ErrorKind::Mismatch, CaptureFault::Unreadable(fault)).at_path(image);
    let error = error.hint_that("the disk that the image was written to does not keep it: write to another");
    match range {
        Some(range) => error.at_range(range),
        None => error,
    }
}

/// The new image holds something else than the disk.
pub(super) fn mismatch(range: ByteRange, image: &Path) -> Error {
    Error::new(ErrorKind::Mismatch, CaptureFault::ReadsBackWrong)
        .at_path(image)
        .at_range(range)
        .hint_that("the disk that the image was written to does not keep it: write to another")
}
