//! The two ends of the disk: poisoned first, written last; the first sector is the first to go and the last to come.

use super::labels;
use crate::copy::CopyError;
use crate::layout::{self, Patch, marker};
use crate::plan::Ends;
use crate::range::ByteRange;
use crate::sys::aligned::AlignedBuffer;
use crate::target::{Disk, Target};
use crate::verify::{Pattern, VerifiedChunk, classify};

/// The part of the head that makes a disk bootable, and is therefore written last.
const FIRST_BLOCK: u64 = 4096;
/// What is stored under a file writes sectors of at least this size.
const LEAST_SECTOR: u64 = 512;
/// How often what does not read back right is written again.
pub(super) const MOST_REWRITES: u32 = 2;

/// Makes the disk say that it is unfinished, and removes what firmware, kernel and udev look for.
pub(super) fn poison(
    target: &dyn Target,
    ends: Ends,
    (check, journal): (Check, &str),
) -> Result<Vec<Rewritten>, EndFault> {
    if ends.head.is_empty() {
        target.take_size()?;
        return Ok(Vec::new());
    }
    let mut rewritten = mark(target, ends, (check, journal))?;
    target.take_size()?;
    let rest = ByteRange::between(first_block(ends).end(), ends.head.end());
    let empty = [rest, ends.tail].map(|range| Part { range, content: Content::Zeroes });
    rewritten.extend(write_parts(target, &empty, check)?);
    Ok(rewritten)
}

/// Writes the marker, alone and synced: from here on the disk says what it is, whatever happens to the rest.
///
/// Its first sector comes first: where it is all that arrives, there is no partition table any more.
fn mark(
    target: &dyn Target,
    ends: Ends,
    (check, journal): (Check, &str),
) -> Result<Vec<Rewritten>, EndFault> {
    let marker = marker::write(&marker::Marker { journal: journal.to_owned(), image: None });
    let mut rewritten = Vec::new();
    for range in sectors_of_first_block(target, ends) {
        let content = Content::Bytes(&marker[to_index(range.start())..to_index(range.end())]);
        rewritten.extend(write_parts(target, &[Part { range, content }], check)?);
    }
    Ok(rewritten)
}

/// Puts the marker over the head of what will not be completed, and takes away what else would show what the disk
/// holds, as far as the disk obeys.
pub(super) fn mark_again(
    target: &dyn Target,
    ends: Ends,
    (head, tail): (&[u8], &[u8]),
    journal: &str,
) -> Result<(), EndFault> {
    let marked = mark(target, ends, (Check::Trust, journal));
    let labels = labels::sectors(ends, (head, tail), sector_of(target));
    let empty: Vec<_> = labels.into_iter().map(|range| Part { range, content: Content::Zeroes }).collect();
    let cleared = if empty.is_empty() { Ok(Vec::new()) } else { write_parts(target, &empty, Check::Trust) };
    marked.and(cleared).map(drop)
}

/// What a disk writes whole or not at all.
fn sector_of(target: &dyn Target) -> u64 {
    u64::from(target.sector_size()).max(LEAST_SECTOR)
}

pub(super) fn first_block(ends: Ends) -> ByteRange {
    ByteRange::new(0, FIRST_BLOCK.min(ends.head.len()))
}

/// The first sector, which a disk writes whole or not at all, and the rest of the first block.
fn sectors_of_first_block(target: &dyn Target, ends: Ends) -> [ByteRange; 2] {
    let first = first_block(ends);
    let sector = sector_of(target).min(first.end());
    [ByteRange::between(0, sector), ByteRange::between(sector, first.end())]
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
    /// The first wrong byte, and what the wrong ones looked like.
    pub(super) differing: Option<(u64, Pattern)>,
    pub(super) rewrites: u32,
}

/// Why an end could not be completed.
pub(super) enum EndFault {
    /// It could not be written or read.
    Copy(CopyError),
    /// It reads back wrong however often it is written.
    Mismatch(ByteRange, Option<(u64, Pattern)>),
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

/// Writes the tail and the head without its first block, synced and read back: first all but the sectors by which
/// anybody would know what the disk holds, then these.
pub(super) fn write_rest(
    target: &dyn Target,
    ends: Ends,
    (head, tail): (&[u8], &[u8]),
    check: Check,
) -> Result<Vec<Rewritten>, EndFault> {
    let rest = ByteRange::between(first_block(ends).end(), ends.head.end());
    let labels = labels::sectors(ends, (head, tail), sector_of(target));
    let (mut bare_head, mut bare_tail) = (head.to_vec(), tail.to_vec());
    let mut last = Vec::new();
    for (end, bytes, bare) in [(ends.head, head, &mut bare_head), (ends.tail, tail, &mut bare_tail)] {
        for range in labels.iter().filter_map(|label| label.intersection(end)) {
            let place = to_index(range.start() - end.start())..to_index(range.end() - end.start());
            bare[place.clone()].fill(0);
            last.push(Part { range, content: Content::Bytes(&bytes[place]) });
        }
    }
    let parts = [
        Part { range: ends.tail, content: Content::Bytes(&bare_tail) },
        Part { range: rest, content: Content::Bytes(&bare_head[to_index(rest.start())..]) },
    ];
    let mut rewritten = write_parts(target, &parts, check)?;
    if !last.is_empty() {
        rewritten.extend(write_parts(target, &last, check)?);
    }
    Ok(rewritten)
}

/// Writes the first block, its first sector at the very end: each synced and read back.
///
/// Without its first sector a partition table is none. If the block cannot be made sure of, the marker takes its place
/// again, as far as the disk still obeys.
pub(super) fn write_first(
    target: &dyn Target,
    ends: Ends,
    (head, tail): (&[u8], &[u8]),
    (check, journal): (Check, &str),
) -> Result<Vec<Rewritten>, EndFault> {
    let [first_sector, behind] = sectors_of_first_block(target, ends);
    let mut rewritten = Vec::new();
    for range in [behind, first_sector] {
        let content = Content::Bytes(&head[to_index(range.start())..to_index(range.end())]);
        match write_parts(target, &[Part { range, content }], check) {
            Ok(more) => rewritten.extend(more),
            Err(fault) => {
                // The fault is what is told; a disk that does not take the marker either says so itself.
                let _ = mark_again(target, ends, (head, tail), journal);
                return Err(fault);
            }
        }
    }
    Ok(rewritten)
}

/// Whether the disk's ends hold these bytes already.
pub(super) fn are_complete(
    disk: &dyn Disk,
    ends: Ends,
    (head, tail): (&[u8], &[u8]),
) -> Result<bool, CopyError> {
    for (range, bytes) in [(ends.head, head), (ends.tail, tail)] {
        let mut buffer = room_for(range)?;
        match disk.read(range, &mut buffer) {
            Ok(()) if buffer[..bytes.len()] == *bytes => {}
            Err(fault) if !fault.is_behind_the_end() => return Err(fault.into()),
            Ok(()) | Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// A part of an end, and what it is to hold.
struct Part<'a> {
    range: ByteRange,
    content: Content<'a>,
}

#[derive(Clone, Copy)]
enum Content<'a> {
    Bytes(&'a [u8]),
    /// Written as such: it costs a device little.
    Zeroes,
}

/// Writes the parts, syncs, and reads them back: always where a sync had failed, for it is not believed.
fn write_parts(target: &dyn Target, parts: &[Part<'_>], check: Check) -> Result<Vec<Rewritten>, EndFault> {
    let parts = || parts.iter().filter(|part| !part.range.is_empty());
    let mut check = check;
    for round in 0.. {
        for part in parts() {
            write(target, part)?;
        }
        match target.sync() {
            Ok(()) => break,
            Err(fault) if round == MOST_REWRITES => return Err(fault.into()),
            Err(_) => check = Check::ReadBack,
        }
    }
    let mut rewritten = Vec::new();
    for part in parts().filter(|_| check == Check::ReadBack) {
        rewritten.extend(read_back(target, part)?);
    }
    Ok(rewritten)
}

fn write(target: &dyn Target, part: &Part<'_>) -> Result<(), CopyError> {
    match part.content {
        Content::Bytes(bytes) => target.write(&chunk_of(part.range, bytes)?)?,
        Content::Zeroes => target.write_zeroes(part.range)?,
    }
    Ok(())
}

fn read_back(target: &dyn Target, part: &Part<'_>) -> Result<Option<Rewritten>, EndFault> {
    let range = part.range;
    let zeroes;
    let bytes = match part.content {
        Content::Bytes(bytes) => bytes,
        Content::Zeroes => {
            zeroes = vec![0; to_index(range.len())];
            &zeroes
        }
    };
    let mut buffer = room_for(range)?;
    let mut differing = None;
    for rewrites in 0..=MOST_REWRITES {
        target.read(range, &mut buffer)?;
        let Some((at, pattern)) = classify(bytes, &buffer[..bytes.len()], None) else {
            return Ok((rewrites > 0).then_some(Rewritten { range, differing, rewrites }));
        };
        differing = differing.or(Some((range.start() + at, pattern)));
        if rewrites < MOST_REWRITES {
            write(target, part)?;
            target.sync()?;
        }
    }
    Err(EndFault::Mismatch(range, differing))
}

/// Room for whole blocks at both ends.
fn room_for(range: ByteRange) -> Result<AlignedBuffer, CopyError> {
    AlignedBuffer::zeroed(to_index(range.len()) + 8192).map_err(CopyError::Memory)
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
