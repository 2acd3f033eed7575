//! `Error`: what went wrong, where, what to do, and what the target is now.
//!
//! Rooms have small enums that carry evidence; each is converted here once, at the room's edge.
//! `Display` is one clause without its cause; `source()` is the cause.

use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use crate::range::ByteRange;

/// What kind of failure it is; each kind has one exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// A fault of this program (exit 1).
    Internal,
    /// The request contradicts itself or is not understood (exit 2).
    Usage,
    /// The instance is not stopped (exit 10).
    NotStopped,
    /// The target is in use (exit 10).
    InUse,
    /// The target is another disk than it should be, or an alias of something that must survive (exit 11).
    Identity,
    /// Size, room or sector size does not fit (exit 12).
    DoesNotFit,
    /// Credentials or the seed request are refused (exit 13).
    Credentials,
    /// The target cannot be opened, or is of the wrong kind (exit 14).
    TargetUnusable,
    /// The image is missing, unreadable, unsupported, unsafe, or being written (exit 20).
    Image,
    /// The image's digest or signature does not match (exit 21).
    ImageDigest,
    /// Writing or syncing the target failed, or somebody took hold of it during the run (exit 30).
    TargetIo,
    /// What was read back differs from what was written, or from the image (exit 31).
    Mismatch,
    /// The image could not be read during the copy (exit 32).
    ImageFault,
    /// A data disk changed during the run, by somebody else's hand (exit 33).
    DataDiskChanged,
    /// The seed could not be put in place (exit 40).
    Seed,
    /// The run was cancelled (exit 129, 130 or 143 in the binary).
    Cancelled,
}

impl ErrorKind {
    /// The exit code of the binary; a cancelled run counts as SIGINT.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::NotStopped | Self::InUse => 10,
            Self::Identity => 11,
            Self::DoesNotFit => 12,
            Self::Credentials => 13,
            Self::TargetUnusable => 14,
            Self::Image => 20,
            Self::ImageDigest => 21,
            Self::TargetIo => 30,
            Self::Mismatch => 31,
            Self::ImageFault => 32,
            Self::DataDiskChanged => 33,
            Self::Seed => 40,
            Self::Cancelled => 130,
        }
    }

    /// Which refusal gives the exit code when there are several: the smallest rank.
    fn rank(self) -> u8 {
        match self {
            Self::Usage => 0,
            Self::Credentials => 1,
            Self::NotStopped => 2,
            Self::Image => 3,
            Self::ImageDigest => 4,
            Self::TargetUnusable => 5,
            Self::Identity => 6,
            Self::InUse => 7,
            Self::DoesNotFit => 8,
            _ => 9,
        }
    }

    fn clause(self) -> &'static str {
        match self {
            Self::Internal => "internal error",
            Self::Usage => "the request cannot be carried out as it stands",
            Self::NotStopped => "the instance is not stopped",
            Self::InUse => "the target is in use",
            Self::Identity => "this would write what must survive, or a disk that was not meant",
            Self::DoesNotFit => "the image does not fit the target",
            Self::Credentials => "the credentials or the seed request are refused",
            Self::TargetUnusable => "the target cannot be used",
            Self::Image => "the image cannot be used",
            Self::ImageDigest => "the image is not the one that was expected",
            Self::TargetIo => "the target could not be written",
            Self::Mismatch => "the target does not hold what it should",
            Self::ImageFault => "the image could not be read during the copy",
            Self::DataDiskChanged => "a data disk changed during the run",
            Self::Seed => "the seed could not be put in place",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What the target holds when an error is returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TargetState {
    /// Not one byte of it changed.
    #[default]
    Untouched,
    /// Its head says that a rebuild is unfinished; the rest may still be old.
    Invalidated,
    /// Some of the image has been written; its head says that it is unfinished.
    Partial,
    /// All of the image but both ends has been written; its head says that it is unfinished.
    Written,
    /// The whole image is there and was read back.
    Verified,
}

impl fmt::Display for TargetState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untouched => "untouched",
            Self::Invalidated => "invalidated",
            Self::Partial => "partial",
            Self::Written => "written",
            Self::Verified => "verified",
        })
    }
}

/// Why something could not be done.
///
/// ```
/// use reimage::{ErrorKind, ImageOptions, Preflight, TargetState};
/// let (path, options) = ("no-such-image.qcow2".as_ref(), ImageOptions::default());
/// let error = reimage::inspect(path, &options, Preflight::Tables, &()).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Image);
/// assert_eq!(error.target_state(), TargetState::Untouched);
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    state: TargetState,
    hint: Option<String>,
    path: Option<PathBuf>,
    range: Option<ByteRange>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    also: Vec<Error>,
    faults_total: Option<u64>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, source: impl StdError + Send + Sync + 'static) -> Self {
        let mut error = Self::bare(kind);
        error.0.source = Some(Box::new(source));
        error
    }

    pub(crate) fn bare(kind: ErrorKind) -> Self {
        Self(Box::new(Inner {
            kind,
            state: TargetState::Untouched,
            hint: None,
            path: None,
            range: None,
            source: None,
            also: Vec::new(),
            faults_total: None,
        }))
    }

    #[must_use]
    pub(crate) fn hint_that(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub(crate) fn at_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.path = Some(path.into());
        self
    }

    #[must_use]
    pub(crate) fn at_range(mut self, range: ByteRange) -> Self {
        self.0.range = Some(range);
        self
    }

    #[must_use]
    pub(crate) fn leaving(mut self, state: TargetState) -> Self {
        self.0.state = state;
        self
    }

    /// One error of several refusals: the first by DESIGN's order, the others behind it.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub(crate) fn first_of(mut refusals: Vec<Error>) -> Self {
        refusals.sort_by_key(|refusal| refusal.kind().rank());
        let mut refusals = refusals.into_iter();
        let mut first = refusals.next().expect("at least one refusal was collected");
        first.0.also.extend(refusals);
        first
    }

    /// The same of any number of refusals; nothing where there is none.
    pub(crate) fn first_if_any(refusals: Vec<Error>) -> Option<Self> {
        (!refusals.is_empty()).then(|| Self::first_of(refusals))
    }

    /// The same error with further ones behind it.
    #[must_use]
    pub(crate) fn and(mut self, more: impl IntoIterator<Item = Error>) -> Self {
        self.0.also.extend(more);
        self
    }

    /// The same error, which is the first of so many faults.
    #[must_use]
    pub(crate) fn counting(mut self, faults_total: u64) -> Self {
        self.0.faults_total = Some(faults_total);
        self
    }

    /// The kind, to branch on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What the target holds now.
    #[must_use]
    pub fn target_state(&self) -> TargetState {
        self.0.state
    }

    /// What to do about it, as a sentence for an operator.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The file or device that it is about.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The bytes of that file or device that it is about.
    #[must_use]
    pub fn range(&self) -> Option<ByteRange> {
        self.0.range
    }

    /// Further refusals that were found in the same run.
    #[must_use]
    pub fn also(&self) -> &[Error] {
        &self.0.also
    }

    /// How many faults an image has, where it is refused for several: the first are here and in `also`.
    ///
    /// `check` tells them all.
    #[must_use]
    pub fn faults_total(&self) -> Option<u64> {
        self.0.faults_total
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.kind.clause())?;
        if let Some(path) = &self.0.path {
            // Debug escapes what a hostile name could do to a terminal.
            write!(f, ": {path:?}")?;
        }
        if let Some(range) = self.0.range {
            write!(f, " at {range}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("target_state", &self.0.state)
            .field("path", &self.0.path)
            .field("range", &self.0.range)
            .field("source", &self.0.source)
            .field("hint", &self.0.hint)
            .field("also", &self.0.also)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// A path in a report: as text, with a replacement for what is none. JSON has no other.
pub(crate) fn path_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_refusal_follows_the_documented_order() {
        use ErrorKind::*;
        let order =
            [Usage, Credentials, NotStopped, Image, ImageDigest, TargetUnusable, Identity, InUse, DoesNotFit];
        for skip in 0..order.len() {
            let refusals = order[skip..].iter().rev().map(|kind| Error::bare(*kind)).collect();
            let error = Error::first_of(refusals);
            assert_eq!(error.kind(), order[skip]);
            assert_eq!(error.also().len(), order.len() - skip - 1);
        }
    }
}
