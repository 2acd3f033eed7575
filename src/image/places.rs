//! What an error is about: which file, which of its bytes, and which entry says so.

use std::path::Path;

use super::error::ImageError;
use crate::range::ByteRange;

impl ImageError {
    /// The file that it is about.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        let (Self::Io { path, .. }
        | Self::Missing { path }
        | Self::WrongKind { path, .. }
        | Self::BeingWritten { path }
        | Self::Changed { path }
        | Self::NameDisagrees { path, .. }
        | Self::NestedFormat { path, .. }
        | Self::NestedDisk { path, .. }
        | Self::NotQcow2 { path, .. }
        | Self::NoHeader { path, .. }
        | Self::Unsupported { path, .. }
        | Self::MarkedCorrupt { path, .. }
        | Self::BadHeader { path, .. }
        | Self::BeyondEnd { path, .. }
        | Self::BadEntry { path, .. }
        | Self::Overlap { path, .. }
        | Self::SharedCluster { path, .. }
        | Self::RefcountTooLow { path, .. }
        | Self::SaidAlone { path, .. }
        | Self::CheckIncomplete { path }
        | Self::TooScattered { path }
        | Self::TooMuchMetadata { path, .. }
        | Self::BackingRefused { path, .. }
        | Self::ChainLoops { path, .. }
        | Self::ChainTooDeep { path, .. }
        | Self::BadCompression { path, .. }
        | Self::PackedUnsaid { path, .. }
        | Self::PackedFormat { path, .. }
        | Self::StreamOnDevice { path, .. }
        | Self::BadStream { path, .. }
        | Self::StreamNeeds { path, .. }
        | Self::StreamTooLong { path, .. }) = self;
        Some(path)
    }

    /// The bytes of that file that it is about.
    #[must_use]
    pub fn range(&self) -> Option<ByteRange> {
        match self {
            Self::Io { range, .. } => *range,
            Self::NameDisagrees { range, .. }
            | Self::NestedFormat { range, .. }
            | Self::NestedDisk { range, .. }
            | Self::NotQcow2 { range, .. }
            | Self::NoHeader { range, .. }
            | Self::PackedUnsaid { range, .. }
            | Self::Unsupported { range, .. }
            | Self::MarkedCorrupt { range, .. }
            | Self::BackingRefused { range, .. }
            | Self::ChainLoops { range, .. }
            | Self::ChainTooDeep { range, .. }
            | Self::BadHeader { range, .. }
            | Self::BeyondEnd { range, .. }
            | Self::BadEntry { range, .. }
            | Self::Overlap { range, .. }
            | Self::SharedCluster { range, .. }
            | Self::RefcountTooLow { range, .. }
            | Self::SaidAlone { range, .. }
            | Self::BadCompression { range, .. }
            | Self::BadStream { range, .. }
            | Self::StreamNeeds { range, .. } => Some(*range),
            _ => None,
        }
    }

    /// Where in that file the table entry is that says so, where one does.
    #[must_use]
    pub fn entry(&self) -> Option<ByteRange> {
        match self {
            Self::BeyondEnd { entry, .. }
            | Self::Overlap { entry, .. }
            | Self::RefcountTooLow { entry, .. } => *entry,
            Self::BadEntry { range, .. } => Some(*range),
            Self::SharedCluster { entry, .. } | Self::SaidAlone { entry, .. } => Some(*entry),
            _ => None,
        }
    }

    /// The bytes of the file's disk that it is about, where it says them.
    pub(crate) fn guest(&self) -> Option<ByteRange> {
        match self {
            Self::NestedDisk { guest, .. } | Self::PackedFormat { guest, .. } => Some(*guest),
            _ => None,
        }
    }
}
