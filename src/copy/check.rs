//! The way back: read what the disk holds, compare, and write again what differs.

use std::collections::VecDeque;

use super::farm::{Pool, Worker};
use super::{CopyError, Watch};
use crate::image::{Decoder, Extent, Image};
use crate::range::{ByteRange, RangeSet};
use crate::sys::aligned::AlignedBuffer;
use crate::target::{Disk, Target};
use crate::verify::{
    CHUNK, CHUNK_LEN, Digest, DigestTable, Expected, Pattern, VerifiedChunk, classify, holds,
};

/// Walk of a run of zeroes that wait to be read at once.
const MOST_QUEUED: u64 = 256;

/// What of the disk is read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Every byte; holes that the file system proves count as read.
    Everything,
    /// The chunks that hold data.
    Data,
    /// Nothing but what is listed.
    Listed,
}

/// What of the disk needs no reading back, and what does in any case.
#[derive(Clone, Copy)]
pub(crate) struct Exceptions<'a> {
    /// It was read and found right already.
    pub(crate) kept: &'a RangeSet,
    /// It was written again after a failed sync.
    pub(crate) doubtful: &'a [Piece],
}

/// A chunk, or a piece of a run of zeroes, and what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) range: ByteRange,
    pub(crate) expected: Expected,
}

/// What was read back.
#[derive(Debug, Default)]
pub(crate) struct ReadBack {
    /// Bytes that were read and compared.
    pub(crate) bytes_read: u64,
    /// Bytes that the file system proves to be holes.
    pub(crate) bytes_proved: u64,
    /// What differs, in order of the disk.
    pub(crate) mismatches: Vec<Piece>,
}

/// Reads `part` of the disk and compares it with the table; behind the table's end it should be zero.
pub(crate) fn check(
    pool: &Pool,
    disk: &dyn Disk,
    (digests, part): (&DigestTable, ByteRange),
    (scope, exceptions): (Scope, Exceptions<'_>),
    watch: &Watch<'_>,
) -> Result<ReadBack, CopyError> {
    let mut result = ReadBack::default();
    let (kept, waiting) = (exceptions.kept, VecDeque::new());
    let mut pieces = Walk { disk, scope, kept, at: part.start(), waiting, proved: 0 };
    let in_parts = |piece: &Piece| {
        let expected = piece.expected;
        piece.range.cut(CHUNK).map(move |range| Piece { range, expected })
    };
    let mut doubtful = exceptions.doubtful.iter().flat_map(in_parts);
    let of_part = |range: ByteRange| scope != Scope::Listed && part.intersection(range) == Some(range);
    let mut chunks = digests.iter().filter(|(range, _)| of_part(*range)).peekable();
    watch.started();
    let next = || loop {
        if watch.cancel.is_cancelled() {
            return Err(CopyError::Cancelled);
        }
        if let Some(piece) = doubtful.next().or_else(|| pieces.waiting.pop_front()) {
            return Ok(Some(piece));
        }
        let zeroes_end = chunks.peek().map_or(part.end(), |(range, _)| range.start());
        if pieces.at < zeroes_end {
            pieces.zeroes_up_to(zeroes_end)?;
            continue;
        }
        let Some((range, digest)) = chunks.next() else { return Ok(None) };
        pieces.at = range.end();
        if kept.holds(range) {
            continue;
        }
        return Ok(Some(Piece { range, expected: Expected::Digest(digest) }));
    };
    let work = |worker: &mut Worker, piece: Piece| {
        let mut buffer = worker.take_buffer()?;
        let right = holds(disk, piece.range, piece.expected, &mut buffer)?;
        worker.give_back(buffer);
        Ok((piece, right))
    };
    let done = |(piece, right): (Piece, bool)| {
        result.bytes_read += piece.range.len();
        if !right {
            result.mismatches.push(piece);
        }
        watch.progress(result.bytes_read.min(watch.bytes_total));
        Ok(())
    };
    pool.run(next, work, done, watch)?;
    result.bytes_proved = pieces.proved;
    result.mismatches.sort_unstable_by_key(|mismatch| mismatch.range);
    result.mismatches.dedup();
    watch.progress(watch.bytes_total);
    Ok(result)
}

/// Where the walk over the disk stands.
struct Walk<'a> {
    disk: &'a dyn Disk,
    scope: Scope,
    kept: &'a RangeSet,
    at: u64,
    waiting: VecDeque<Piece>,
    proved: u64,
}

impl Walk<'_> {
    /// Goes on through the zeroes that end at `end`, and queues what is not proved to be a hole.
    ///
    /// It stops where enough is queued; the caller comes back for the rest.
    fn zeroes_up_to(&mut self, end: u64) -> Result<(), CopyError> {
        if self.scope != Scope::Everything {
            self.at = end;
            return Ok(());
        }
        let stored = self.disk.next_data(self.at)?;
        let start = stored.map_or(end, |run| run.start().clamp(self.at, end));
        let stop = stored
            .map_or(end, |run| run.end().clamp(start, end))
            .min(start.saturating_add(MOST_QUEUED * CHUNK));
        self.proved += start - self.at;
        let pieces = ByteRange::between(start, stop).cut(CHUNK);
        let unread = pieces.filter(|range| !self.kept.holds(*range));
        self.waiting.extend(unread.map(|range| Piece { range, expected: Expected::Zeroes }));
        self.at = stop;
        Ok(())
    }
}

/// Writes what the image holds at the mismatch again, and returns the first byte that was wrong and what the wrong
/// ones looked like (`None` if all read right by now); the caller syncs and reads back.
pub(crate) fn repair(
    image: &dyn Image,
    target: &dyn Target,
    mismatch: &Piece,
    (digests, old): (&DigestTable, Option<Digest>),
) -> Result<Option<(u64, Pattern)>, CopyError> {
    let mut found = AlignedBuffer::zeroed(CHUNK_LEN).map_err(CopyError::Memory)?;
    target.read(mismatch.range, &mut found)?;
    let compare = |right: &[u8]| {
        let differing = classify(right, &found[..right.len()], old);
        differing.map(|(at, pattern)| (mismatch.range.start() + at, pattern))
    };
    let Expected::Digest(digest) = mismatch.expected else {
        let bytes = usize::try_from(mismatch.range.len()).expect("a chunk fits in memory");
        let differing = compare(&vec![0; bytes]);
        let sector = u64::from(target.sector_size());
        let start = mismatch.range.start().next_multiple_of(sector).min(mismatch.range.end());
        if start > mismatch.range.start() {
            // The zeroes begin within the last sector of the image, which is written with them.
            let last = digests.range(mismatch.range.start() / CHUNK);
            target.write(&read_chunk(image, last)?)?;
        }
        if start < mismatch.range.end() {
            target.write_zeroes(ByteRange::between(start, mismatch.range.end()))?;
        }
        return Ok(differing);
    };
    let chunk = read_chunk(image, mismatch.range)?;
    if chunk.chunk_digest() != Some(digest) || digests.get(mismatch.range.start()) != Some(digest) {
        return Err(CopyError::ImageChanged { range: mismatch.range });
    }
    let differing = compare(chunk.bytes());
    target.write(&chunk)?;
    Ok(differing)
}

/// One chunk of the image, read again.
pub(super) fn read_chunk(image: &dyn Image, range: ByteRange) -> Result<VerifiedChunk, CopyError> {
    let mut buffer = AlignedBuffer::zeroed(CHUNK_LEN).map_err(CopyError::Memory)?;
    let mut at = range.start();
    let mut decoder = Decoder::default();
    while at < range.end() {
        let extents: Vec<Extent> = image.map(ByteRange::between(at, range.end()))?;
        let end = extents.last().expect("a map of bytes holds an extent").range.end();
        let place = |offset: u64| usize::try_from(offset - range.start()).expect("a chunk fits in memory");
        image.read(&extents, &mut buffer[place(at)..place(end)], &mut decoder)?;
        at = end;
    }
    Ok(VerifiedChunk::digest(range, buffer))
}
