//! The two ends of the disk: poisoned first, written last, the first 4 KiB in one write at the very end.

use crate::copy::CopyError;
use crate::layout::{self, Patch, marker};
use crate::plan::Ends;
use crate::range::ByteRange;
use crate::sys::aligned::AlignedBuffer;
use crate::target::Target;
use crate::verify::{Expected, VerifiedChunk, holds};

/// The part of the head that makes a disk bootable, and is therefore written last.
const FIRST_BLOCK: u64 = 4096;
/// How often what does not read back right is written again.
pub(super) const MOST_REWRITES: u32 = 2;

/// Makes the disk say that it is unfinished, and removes what firmware, kernel and udev look for.
pub(super) fn poison(target: &dyn Target, ends: Ends, journal: &str) -> Result<(), CopyError> {
    if ends.head.is_empty() {
        return Ok(target.take_size()?);
    }
    mark(target, ends, journal)?;
    target.take_size()?;
    let first = first_block(ends);
    for range in [ByteRange::between(first.end(), ends.head.end()), ends.tail] {
        if !range.is_empty() {
            target.write_zeroes(range)?;
        }
    }
    target.sync()?;
    Ok(target.forget_partitions()?)
}

/// Writes the marker, alone and synced: from here on the disk says what it is, whatever happens to the rest.
fn mark(target: &dyn Target, ends: Ends, journal: &str) -> Result<(), CopyError> {
    let marker = marker::write(&marker::Marker { journal: journal.to_owned(), image: None });
    let first = first_block(ends);
    target.write(&chunk_of(first, &marker[..to_index(first.len())])?)?;
    Ok(target.sync()?)
}

fn first_block(ends: Ends) -> ByteRange {
    ByteRange::new(0, FIRST_BLOCK.min(ends.head.len()))
}

/// The bytes of one end: zeroes, then the image's chunks, then what the moved GPT changes.
pub(super) fn assemble(range: ByteRange, chunks: &[VerifiedChunk], patches: &[Patch]) -> Vec<u8> {
    let mut bytes = vec![0; to_index(range.len())];
    for chunk in chunks {
        layout::overlay((chunk.range(), chunk.bytes()), range, &mut bytes);
    }
    layout::apply(patches, range, &mut bytes);
    bytes
}

/// A part of an end that did not read back right until it was written again.
pub(super) struct Rewritten {
    pub(super) range: ByteRange,
    pub(super) first_differing: Option<u64>,
    pub(super) rewrites: u32,
}

/// Why an end could not be completed.
pub(super) enum EndFault {
    /// It could not be written or read.
    Copy(CopyError),
    /// It reads back wrong however often it is written.
    Mismatch(ByteRange),
}

impl<E: Into<CopyError>> From<E> for EndFault {
    fn from(error: E) -> Self {
        Self::Copy(error.into())
    }
}

/// Whether what is written is read back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    ReadBack,
    Trust,
}

/// Writes the tail and the head without its first block, then that block: each synced and read back.
///
/// If the block cannot be made sure of, the marker takes its place again, as far as the disk still obeys.
pub(super) fn complete(
    target: &dyn Target,
    ends: Ends,
    (head, tail): (&[u8], &[u8]),
    (check, journal): (Check, &str),
) -> Result<Vec<Rewritten>, EndFault> {
    let first = first_block(ends);
    let (boots, rest) = head.split_at(to_index(first.len()));
    let rest_range = ByteRange::between(first.end(), ends.head.end());
    let mut rewritten = write_parts(target, &[(ends.tail, tail), (rest_range, rest)], check)?;
    match write_parts(target, &[(first, boots)], check) {
        Ok(more) => rewritten.extend(more),
        Err(fault) => {
            // The fault is what is told; a disk that does not take the marker either says so itself.
            let _ = mark(target, ends, journal);
            return Err(fault);
        }
    }
    Ok(rewritten)
}

fn write_parts(
    target: &dyn Target,
    parts: &[(ByteRange, &[u8])],
    check: Check,
) -> Result<Vec<Rewritten>, EndFault> {
    let parts = parts.iter().filter(|(range, _)| !range.is_empty());
    for (range, bytes) in parts.clone() {
        target.write(&chunk_of(*range, bytes)?)?;
    }
    target.sync()?;
    let mut rewritten = Vec::new();
    for (range, bytes) in parts.filter(|_| check == Check::ReadBack) {
        rewritten.extend(read_back(target, *range, bytes)?);
    }
    Ok(rewritten)
}

fn read_back(target: &dyn Target, range: ByteRange, bytes: &[u8]) -> Result<Option<Rewritten>, EndFault> {
    let chunk = chunk_of(range, bytes)?;
    let expected = chunk.chunk_digest().map_or(Expected::Zeroes, Expected::Digest);
    // Room for whole blocks at both ends.
    let mut buffer = AlignedBuffer::zeroed(bytes.len() + 8192).map_err(CopyError::Memory)?;
    let mut first_differing = None;
    for rewrites in 0..=MOST_REWRITES {
        if holds(target, range, expected, &mut buffer)? {
            return Ok((rewrites > 0).then_some(Rewritten { range, first_differing, rewrites }));
        }
        let differing = bytes.iter().zip(buffer.iter()).position(|(right, found)| right != found);
        first_differing = first_differing.or(differing.map(|at| range.start() + at as u64));
        if rewrites < MOST_REWRITES {
            target.write(&chunk)?;
            target.sync()?;
        }
    }
    Err(EndFault::Mismatch(range))
}

fn chunk_of(range: ByteRange, bytes: &[u8]) -> Result<VerifiedChunk, CopyError> {
    VerifiedChunk::copy_of(range, bytes).map_err(CopyError::Memory)
}

fn to_index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("an end fits in memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_zeroes_then_chunks_then_patches() {
        let chunk = chunk_of(ByteRange::new(96, 8), &[1; 8]).unwrap_or_else(|_| panic!("memory"));
        let patch = Patch { range: ByteRange::new(102, 4), bytes: vec![2; 4] };
        let outside = Patch { range: ByteRange::new(0, 4), bytes: vec![3; 4] };
        let bytes = assemble(ByteRange::new(100, 8), &[chunk], &[outside, patch]);
        assert_eq!(bytes, [1, 1, 2, 2, 2, 2, 0, 0]);
    }

    #[test]
    fn the_first_block_is_as_long_as_the_marker() {
        assert_eq!(FIRST_BLOCK, marker::LEN as u64);
    }
}
