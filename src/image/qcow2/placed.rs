//! What is said of a thing that lies in the wrong place of the file.

use crate::image::error::ImageError;
use crate::image::file::SourceFile;
use crate::range::ByteRange;

/// Something that an image says to lie in its file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) what: &'static str,
    pub(super) range: ByteRange,
    /// Where the table entry is that points there, if one does.
    pub(super) entry: Option<ByteRange>,
}

impl Placed {
    /// What an entry points to.
    pub(super) fn by(entry: ByteRange, what: &'static str, range: ByteRange) -> Self {
        Self { what, range, entry: Some(entry) }
    }

    /// What no entry points to.
    pub(super) fn alone(what: &'static str, range: ByteRange) -> Self {
        Self { what, range, entry: None }
    }

    pub(super) fn beyond_end(self, file: &SourceFile) -> ImageError {
        let Self { what, range, entry } = self;
        ImageError::BeyondEnd { path: file.path().into(), what, range, file_size: file.len(), entry }
    }

    pub(super) fn lies_on(self, file: &SourceFile, other: &'static str) -> ImageError {
        let Self { what, range, entry } = self;
        ImageError::Overlap { path: file.path().into(), what, range, other, entry }
    }
}
