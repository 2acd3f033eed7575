//! What a rebuild is about when it asks for an operation: told by the operations alone.

use std::ops::Range;

use reimage::{ByteRange, SimAction, SimOperation};

use super::disks::MIB;
use super::probe::FIRST_BLOCK;

/// The parts of a rebuild, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing has changed yet: what is read is compared, or looked at.
    Looking,
    /// The marker and the zeroes at both ends.
    Invalidating,
    /// The image onto what lies between the ends, and comparing with it.
    Copying,
    /// What was copied is compared.
    ReadingBack,
    /// Both ends, the first block last.
    Ending,
    /// The new file into the old one's place, or under a name of its own.
    Exchanging,
}

/// What lies between the ends of a disk, as ARCHITECTURE.md has it: all but the first chunk and the last, where the
/// last has 1 MiB at least.
pub(crate) fn middle(size: usize) -> Range<usize> {
    let head = MIB.min(size);
    head..(size.saturating_sub(MIB) / MIB * MIB).max(head)
}

/// The phase of the last of these operations, which are all from the beginning of the run on.
///
/// The order alone does not tell it: several threads ask at once, and syncs come when there is time for them.
pub(crate) fn phase(log: &[SimOperation], size: usize) -> Phase {
    use SimAction::{Preserve, Publish, Read, Resize, Settle, Sync, Write, Zero};
    let middle = middle(size);
    let is_in_middle = |range: ByteRange| {
        let inside = |place: u64| (middle.start as u64..=middle.end as u64).contains(&place);
        inside(range.start()) && inside(range.end())
    };
    let changed = |operation: &&SimOperation| matches!(operation.action, Write | Zero | Resize);
    let (last, before) = log.split_last().expect("a run has operations");
    let has_changed = log.iter().any(|operation| changed(&operation));
    // Marker and zeroes come first; any other data of the ends is the image's.
    let is_end = |operation: &SimOperation| {
        let behind = |range: ByteRange| range.start() >= FIRST_BLOCK as u64 && !is_in_middle(range);
        operation.action == Write && operation.range.is_some_and(behind)
    };
    match (last.action, last.range) {
        (Publish | Settle | Preserve, _) => Phase::Exchanging,
        (Write | Zero, Some(range)) if is_in_middle(range) => Phase::Copying,
        (Read, Some(range)) if is_in_middle(range) => {
            let is_written = |other: &SimOperation| other.range.and_then(|other| other.intersection(range));
            match before.iter().filter(changed).any(|other| is_written(other).is_some()) {
                true => Phase::ReadingBack,
                false if has_changed => Phase::Copying,
                false => Phase::Looking,
            }
        }
        _ if log.iter().any(is_end) => Phase::Ending,
        (Sync, _) if before.iter().any(|other| other.range.is_some_and(is_in_middle)) => Phase::Copying,
        _ if has_changed => Phase::Invalidating,
        _ => Phase::Looking,
    }
}
