//! What a run leaves in the state folder for those who look at the disk later.

use std::io;
use std::path::PathBuf;

use super::labels::Unlabelled;
use super::report::Report;
use super::run::Run;
use crate::layout;
use crate::observe::{Event, Observer};
use crate::plan::TargetKind;
use crate::range::ByteRange;
use crate::receipt::{self, Contents, EndPiece};
use crate::verify::{Digest, DigestTable};

/// What a receipt tells besides the report and the chunks; made while the ends are in memory.
pub(super) struct Rest {
    ends: Vec<EndPiece>,
    key: serde_json::Value,
    state_dir: PathBuf,
    target: PathBuf,
}

impl Rest {
    /// What the disk held before is no longer there, and what it holds is not told.
    pub(super) fn forget(&self) {
        // One that stays is found to differ.
        let _ = receipt::forget(&self.state_dir, &self.target);
    }
}

impl Run<'_> {
    /// What a receipt needs; nothing for a disk that no path leads to.
    pub(super) fn rest_of_receipt(&self) -> Option<Rest> {
        if self.summary.target_kind == TargetKind::CallersOwn {
            return None;
        }
        let ends = self.end_pieces();
        // Bytes in memory are read without a fault.
        let ends = ends.unwrap_or_default();
        let (state_dir, target) = (self.options.state_dir.clone(), self.summary.target.clone());
        Some(Rest { ends, key: self.known.key.clone(), state_dir, target })
    }

    /// The ends in pieces, the partition table apart.
    fn end_pieces(&self) -> io::Result<Vec<EndPiece>> {
        let (head, tail) = self.assembled_ends();
        let ends = self.fit.ends();
        let disk = Unlabelled { size: self.fit.size, ends, head, tail };
        let tables = layout::table_places(&disk)?;
        let mut pieces = Vec::new();
        for (end, bytes) in [(ends.head, &disk.head), (ends.tail, &disk.tail)] {
            for (range, is_table) in split(end, &tables) {
                let place = |at: u64| usize::try_from(at - end.start()).expect("an end fits in memory");
                let digest = Digest::of(&bytes[place(range.start())..place(range.end())]);
                pieces.push(EndPiece { range, digest, is_table });
            }
        }
        Ok(pieces)
    }
}

/// Keeps the receipt; what cannot be kept is said, and the disk is complete nevertheless.
pub(super) fn keep(rest: &Rest, (report, digests): (&Report, &DigestTable), observer: &dyn Observer) {
    let contents = Contents { report, key: &rest.key, digests, ends: &rest.ends };
    if let Err(error) = receipt::keep(&rest.state_dir, &contents) {
        let message = format!("the receipt of this rebuild could not be kept: {error}");
        observer.event(&Event::Warning { code: "receipt", message });
    }
}

/// The parts of an end that are of a table, and those between; `tables` ascend.
fn split(end: ByteRange, tables: &[ByteRange]) -> Vec<(ByteRange, bool)> {
    let (mut parts, mut at) = (Vec::new(), end.start());
    for table in tables.iter().filter_map(|table| table.intersection(end)) {
        parts.push((ByteRange::between(at, table.start().max(at)), false));
        parts.push((ByteRange::between(table.start().max(at), table.end().max(at)), true));
        at = table.end().max(at);
    }
    parts.push((ByteRange::between(at, end.end()), false));
    parts.retain(|(range, _)| !range.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_split_without_a_gap_whatever_tables_lie_in_it() {
        let end = ByteRange::new(100, 50);
        let tables =
            [(0, 10), (90, 20), (105, 10), (120, 5), (140, 100)].map(|(at, len)| ByteRange::new(at, len));
        for count in 0..=tables.len() {
            let parts = split(end, &tables[..count]);
            let mut at = end.start();
            for (range, is_table) in parts {
                assert_eq!(range.start(), at);
                let in_table = |at| tables[..count].iter().any(|table| table.contains(at));
                assert!(
                    (range.start()..range.end()).all(|at| in_table(at) == is_table),
                    "{range} {is_table}"
                );
                at = range.end();
            }
            assert_eq!(at, end.end());
        }
    }
}
