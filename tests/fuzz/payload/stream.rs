//! A compressed form of a cluster, or what only looks like one, and what is right to make of it.

use std::sync::Arc;

/// What a cluster holds.
pub(super) type Bytes = Arc<[u8]>;

/// What to make of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    Read,
    Refused,
    /// Refused, though qemu reads it.
    ReadByQemu,
    /// Read, though qemu refuses it.
    RefusedByQemu,
}

impl Right {
    pub(super) fn is_read(self) -> bool {
        matches!(self, Self::Read | Self::RefusedByQemu)
    }

    pub(super) fn is_read_by_qemu(self) -> bool {
        matches!(self, Self::Read | Self::ReadByQemu)
    }
}

#[derive(Clone)]
pub(super) struct Stream {
    pub(super) what: String,
    pub(super) bytes: Vec<u8>,
    /// What the cluster holds where it is read.
    pub(super) content: Bytes,
    pub(super) right: Right,
    /// Where one of its parts ends and the next begins.
    pub(super) borders: Vec<usize>,
}

impl Stream {
    pub(super) fn of(
        what: impl Into<String>,
        bytes: Vec<u8>,
        content: &Bytes,
        right: Right,
        borders: Vec<usize>,
    ) -> Self {
        Self { what: what.into(), bytes, content: content.clone(), right, borders }
    }

    /// Where to cut it off: before the last 16 bytes, and at every border and beside it.
    pub(super) fn cuts(&self) -> Vec<usize> {
        let len = self.bytes.len();
        // Of many parts that are alike the first will do.
        let around = self.borders.iter().take(24).flat_map(|at| [at.saturating_sub(1), *at, at + 1]);
        let mut cuts: Vec<_> = around.chain(len.saturating_sub(16)..len).filter(|at| *at < len).collect();
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    }

    /// One whose parts nobody looks at.
    pub(super) fn new(what: &str, bytes: Vec<u8>, content: &Bytes, right: Right) -> Self {
        Self::of(what, bytes, content, right, Vec::new())
    }
}

/// What is compressed.
pub(super) struct Content;

impl Content {
    /// Lines that are alike.
    pub(super) fn text(len: usize) -> Bytes {
        let lines =
            (1..).flat_map(|number: u32| format!("{number} bottles of beer on the wall\n").into_bytes());
        lines.take(len).collect::<Vec<_>>().into()
    }

    /// One letter.
    pub(super) fn run(len: usize) -> Bytes {
        vec![b'x'; len].into()
    }

    /// The same bytes over and over.
    pub(super) fn periodic(period: &[u8], len: usize) -> Bytes {
        period.iter().copied().cycle().take(len).collect::<Vec<_>>().into()
    }
}
