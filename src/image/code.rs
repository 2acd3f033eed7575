//! The words by which programs know what is wrong with an image.

use super::error::{EntryFault, ImageError};

impl ImageError {
    /// What is wrong, as a word that programs know it by.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::Missing { .. } => "missing",
            Self::WrongKind { .. } => "wrong_kind",
            Self::BeingWritten { .. } => "being_written",
            Self::Changed { .. } => "changed",
            Self::NameDisagrees { .. } => "name_disagrees",
            Self::NestedFormat { .. } => "nested_format",
            Self::NestedDisk { .. } => "nested_disk",
            Self::NotQcow2 { .. } | Self::NoHeader { .. } => "not_qcow2",
            Self::Unsupported { .. } => "unsupported",
            Self::MarkedCorrupt { .. } => "marked_corrupt",
            Self::BadHeader { .. } => "bad_header",
            Self::BeyondEnd { .. } => "beyond_end",
            Self::BadEntry { why, .. } => why.code(),
            Self::Overlap { .. } => "overlap",
            Self::SharedCluster { .. } => "shared_cluster",
            Self::RefcountTooLow { .. } => "refcount_too_low",
            Self::SaidAlone { .. } => "said_alone",
            Self::CheckIncomplete { .. } => "check_incomplete",
            Self::TooScattered { .. } => "too_scattered",
            Self::TooMuchMetadata { .. } => "too_much_metadata",
            Self::BackingRefused { .. } => "backing_refused",
            Self::ChainLoops { .. } => "chain_loops",
            Self::ChainTooDeep { .. } => "chain_too_deep",
            Self::BadCompression { .. } => "bad_compression",
            Self::PackedUnsaid { .. } => "packed_unsaid",
            Self::PackedFormat { .. } => "packed_format",
            Self::StreamOnDevice { .. } => "stream_on_device",
            Self::BadStream { .. } => "bad_stream",
            Self::StreamNeeds { .. } => "stream_needs",
            Self::StreamTooLong { .. } => "stream_too_long",
        }
    }
}

impl EntryFault {
    fn code(self) -> &'static str {
        match self {
            Self::ReservedBits => "reserved_bits",
            Self::Misaligned => "misaligned",
            Self::SharedTable { .. } => "shared_table",
            Self::TooLong => "too_long",
            Self::DataAndZero => "data_and_zero",
            Self::DataWithoutCluster => "data_without_cluster",
        }
    }
}
