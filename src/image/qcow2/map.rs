//! From the virtual disk's offsets to runs of the file: the walk through L2 tables.

use std::sync::PoisonError;

use super::Qcow2;
use super::entry::Entry;
use super::placed::Placed;
use super::tables::{Found, Window};
use crate::image::error::ImageError;
use crate::image::file::SourceFile;
use crate::image::run::{Run, RunKind};
use crate::range::ByteRange;

/// How many table entries one run may take, so that no call runs long.
pub(in crate::image) const ENTRIES_MAX: u32 = 65536;

impl Qcow2 {
    /// The first run of a range, which is not empty and within the virtual disk.
    pub(in crate::image) fn run_at(&self, file: &SourceFile, range: ByteRange) -> Result<Run, ImageError> {
        let mut window = self.tables.window.lock().unwrap_or_else(PoisonError::into_inner);
        let mut run = self.piece_at(file, &mut window, range)?.head(range.len());
        for _ in 1..ENTRIES_MAX {
            let at = run.range.end();
            if at >= range.end() || matches!(run.kind, RunKind::Compressed { .. }) {
                break;
            }
            let rest = ByteRange::between(at, range.end());
            let piece = self.piece_at(file, &mut window, rest)?.head(rest.len());
            if !run.append(&piece) {
                break;
            }
        }
        drop(window);
        self.check_place(file, &run)?;
        Ok(run)
    }

    /// What one table entry says from a range's start on; it may reach beyond the range, and the virtual disk's end.
    fn piece_at(&self, file: &SourceFile, window: &mut Window, range: ByteRange) -> Result<Run, ImageError> {
        let (header, at) = (&self.header, range.start());
        let span = 1u64 << header.l2_span_bits();
        let unallocated = |end| Ok(Run { range: ByteRange::between(at, end), kind: RunKind::Unallocated });
        let l1_index = usize::try_from(at / span).expect("an L1 table has at most 4 Mi entries");
        let table_offset = self.tables.l1[l1_index];
        if table_offset == 0 {
            let last =
                usize::try_from((range.end() - 1) / span).expect("an L1 table has at most 4 Mi entries");
            let without = self.tables.l1[l1_index..=last].iter().take_while(|table| **table == 0).count();
            let without = u64::try_from(without).expect("at most 4 Mi");
            return unallocated((at - at % span).saturating_add(span.saturating_mul(without)));
        }
        let table = ByteRange::new(table_offset, header.cluster_size());
        let index = (at % span) >> header.cluster_bits;
        let entry_at = table_offset + (index << header.l2_entry_bits());
        let bytes = match window.bytes_at(file, (table, self.tables.following(l1_index)), entry_at)? {
            Found::Stored(bytes) => bytes,
            Found::Hole { end } => {
                let entries = (end - entry_at) >> header.l2_entry_bits();
                let first = at - at % header.cluster_size();
                return unallocated(first.saturating_add(entries << header.cluster_bits));
            }
        };
        let value = be64(bytes);
        let bitmap = if header.has_extended_l2() { be64(&bytes[8..]) } else { 0 };
        let entry = Entry::decode(header, value, bitmap).map_err(|why| ImageError::BadEntry {
            path: file.path().into(),
            table: "L2",
            range: ByteRange::new(entry_at, 1 << header.l2_entry_bits()),
            value,
            why,
        })?;
        Ok(self.piece(entry, at))
    }

    fn piece(&self, entry: Entry, at: u64) -> Run {
        let cluster_size = self.header.cluster_size();
        let skip = at % cluster_size;
        let rest = ByteRange::new(at, cluster_size - skip);
        let kind = match entry {
            Entry::Unallocated => RunKind::Unallocated,
            Entry::Zero => RunKind::Zero,
            Entry::Data(host_offset) => RunKind::Data { host_offset: host_offset + skip },
            Entry::Compressed { host_offset, host_len } => RunKind::Compressed {
                host_offset,
                host_len,
                skip: u32::try_from(skip).expect("a cluster is at most 2 MiB"),
            },
            Entry::Subclusters { host_offset, data, zero } => {
                let first = u32::try_from(skip >> (self.header.cluster_bits - 5)).expect("less than 32");
                let (data, zero) = (data >> first, zero >> first);
                let (kind, same) = if data & 1 == 1 {
                    (RunKind::Data { host_offset: host_offset + skip }, data.trailing_ones())
                } else if zero & 1 == 1 {
                    (RunKind::Zero, zero.trailing_ones())
                } else {
                    (RunKind::Unallocated, (data | zero).trailing_zeros().min(32 - first))
                };
                let end = u64::from(first + same) << (self.header.cluster_bits - 5);
                return Run { range: ByteRange::new(at, end - skip), kind };
            }
        };
        Run { range: rest, kind }
    }

    /// Bytes of the disk must be in the file and apart from the image's own structures.
    fn check_place(&self, file: &SourceFile, run: &Run) -> Result<(), ImageError> {
        let (range, what) = match run.kind {
            RunKind::Unallocated | RunKind::Zero => return Ok(()),
            // Offsets have 56 bits, lengths 63: the sum does not wrap.
            RunKind::Data { host_offset } => (ByteRange::new(host_offset, run.range.len()), "a data cluster"),
            // How many sectors the compressed bytes take is an upper bound: the last may belong to others, and
            // the file may end in it. Only the first byte must be there.
            RunKind::Compressed { host_offset, .. } => {
                (ByteRange::new(host_offset, 1), "a compressed cluster")
            }
        };
        self.check_stored(file, Placed::alone(what, range))
    }

    /// Fails unless the bytes are in the file and apart from the image's own structures.
    pub(super) fn check_stored(&self, file: &SourceFile, placed: Placed) -> Result<(), ImageError> {
        if placed.range.end() > file.len() {
            return Err(placed.beyond_end(file));
        }
        self.tables.check_apart(file, &self.header, placed)
    }
}

pub(super) fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("8 bytes"))
}
