//! Why a pass over the disk ended early.

use crate::image::{ImageError, NewImageError};
use crate::target::TargetError;

/// Why a pass over the disk ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// The image could not be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There can be no such image as was to be made.
    #[error(transparent)]
    NewImage(#[from] NewImageError),
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
    /// The image gives other bytes than its manifest says.
    #[error(
        "its bytes are not what its manifest says: {} instead of {}", in_words(found.as_ref()), in_words(said.as_ref())
    )]
    OtherThanManifest {
        /// Which bytes of the disk.
        range: crate::range::ByteRange,
        /// The digest in the manifest; `None` for zeroes.
        said: Option<crate::verify::Digest>,
        /// That of the image's bytes.
        found: Option<crate::verify::Digest>,
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

fn in_words(digest: Option<&crate::verify::Digest>) -> String {
    digest.map_or_else(|| "zeroes".to_owned(), |digest| format!("BLAKE3 {digest}"))
}
