//! Why a target cannot be read or written.

use std::io;

use crate::range::ByteRange;

/// Why a target could not be read, written or synced.
///
/// ```
/// use reimage::{ByteRange, TargetError};
/// let full = std::io::Error::from_raw_os_error(28);
/// let error = TargetError::new("writing", Some(ByteRange::new(0, 4096)), full);
/// assert_eq!(error.to_string(), "writing bytes 0..4096 failed");
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{doing}{} failed", .range.map_or_else(String::new, |range| format!(" {range}")))]
pub struct TargetError {
    doing: &'static str,
    range: Option<ByteRange>,
    source: io::Error,
}

impl TargetError {
    /// What was tried, on which bytes, and what the system said.
    #[must_use]
    pub fn new(doing: &'static str, range: Option<ByteRange>, source: io::Error) -> Self {
        Self { doing, range, source }
    }

    /// The bytes it was about.
    #[must_use]
    pub fn range(&self) -> Option<ByteRange> {
        self.range
    }

    /// Whether there was nothing to read: a file that has not its size yet.
    pub(crate) fn is_behind_the_end(&self) -> bool {
        self.source.kind() == io::ErrorKind::UnexpectedEof
    }

    /// For `map_err`: the same for every error of one call.
    pub(crate) fn when(doing: &'static str, range: ByteRange) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::new(doing, Some(range), source)
    }

    /// For `map_err`, where no bytes are meant.
    pub(crate) fn during(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::new(doing, None, source)
    }
}
