//! `Run`: what one layer says about a piece of the virtual disk.

use crate::range::ByteRange;

/// A run of the virtual disk of which one layer says one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) range: ByteRange,
    pub(super) kind: RunKind,
}

/// What a layer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunKind {
    /// Nothing: the layer below shows through.
    Unallocated,
    /// It reads as zeroes.
    Zero,
    /// It lies in the layer's file as it is.
    Data { host_offset: u64 },
    /// It is part of one compressed cluster, `skip` bytes behind the cluster's beginning.
    Compressed { host_offset: u64, host_len: u32, skip: u32 },
}

impl Run {
    /// Its first `len` bytes, or all of it.
    pub(super) fn head(self, len: u64) -> Self {
        Self { range: ByteRange::new(self.range.start(), self.range.len().min(len)), ..self }
    }

    /// What is left of it from `at` on, if anything is.
    pub(super) fn tail(self, at: u64) -> Option<Self> {
        if !self.range.contains(at) {
            return None;
        }
        let passed = at - self.range.start();
        let kind = match self.kind {
            RunKind::Data { host_offset } => RunKind::Data { host_offset: host_offset + passed },
            RunKind::Compressed { host_offset, host_len, skip } => RunKind::Compressed {
                host_offset,
                host_len,
                skip: skip + u32::try_from(passed).expect("a cluster is at most 2 MiB"),
            },
            kind => kind,
        };
        Some(Self { range: ByteRange::between(at, self.range.end()), kind })
    }

    /// Takes in the run right behind this one, if both say the same.
    pub(super) fn append(&mut self, next: &Self) -> bool {
        let same = match (self.kind, next.kind) {
            (RunKind::Unallocated, RunKind::Unallocated) | (RunKind::Zero, RunKind::Zero) => true,
            (RunKind::Data { host_offset }, RunKind::Data { host_offset: next_offset }) => {
                host_offset + self.range.len() == next_offset
            }
            _ => false,
        };
        if same {
            self.range = ByteRange::between(self.range.start(), next.range.end());
        }
        same
    }
}
