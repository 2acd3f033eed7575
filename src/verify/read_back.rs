//! Reads a disk and says whether it holds what it should.

use super::{Digest, is_zero};
use crate::range::ByteRange;
use crate::target::{Disk, TargetError};

/// What bytes of a disk should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// All zero.
    Zeroes,
    /// Bytes of this digest.
    Digest(Digest),
}

/// Whether the disk's bytes at `range` are as expected; they are left at the head of `buffer`.
pub(crate) fn holds(
    disk: &dyn Disk,
    range: ByteRange,
    expected: Expected,
    buffer: &mut [u8],
) -> Result<bool, TargetError> {
    disk.read(range, buffer)?;
    let bytes = &buffer[..usize::try_from(range.len()).expect("a chunk fits in memory")];
    Ok(match expected {
        Expected::Zeroes => is_zero(bytes),
        Expected::Digest(digest) => Digest::of(bytes) == digest,
    })
}
