//! Why a pass over the disk ended early.

use crate::image::ImageError;
use crate::target::TargetError;

/// Why a pass over the disk ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// The image could not be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The target could not be written or read.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// No memory for a buffer.
    #[error("a buffer could not be allocated")]
    Memory(#[source] std::io::Error),
    /// The image gave other bytes than the first time.
    #[error("the image's bytes are no longer those that were copied")]
    ImageChanged {
        /// Which bytes of the disk.
        range: crate::range::ByteRange,
    },
    /// Whoever keeps the books of the run could not go on.
    #[error(transparent)]
    Books(Box<crate::error::Error>),
    /// The disk has done nothing for longer than the caller wants to wait.
    #[error("the disk has done nothing for {seconds} s")]
    Stalled {
        /// For how long.
        seconds: u64,
    },
    /// The caller asked for it.
    #[error("the run was cancelled")]
    Cancelled,
}
