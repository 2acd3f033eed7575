//! Why a target cannot be read or written.

use crate::range::ByteRange;

/// Why a target could not be read, written or synced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[error("{doing} failed")]
pub struct TargetError {
    /// What was tried.
    pub doing: &'static str,
    /// The bytes it was about, where it was about some.
    pub range: Option<ByteRange>,
    /// What the system said.
    pub source: std::io::Error,
}
