//! Cuts an image's extents into units of work: runs of zeroes, and chunks that hold data.

use std::collections::VecDeque;

use crate::image::{Extent, ExtentKind, Image, ImageError};
use crate::range::ByteRange;
use crate::verify::CHUNK;

/// Longer runs of zeroes come in parts, so that what is queued for one is bounded.
const LONGEST_ZEROES: u64 = 16 << 30;

/// A piece of the disk that is dealt with at once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Whole chunks (or the rest of the disk) of zeroes, of any length.
    Zeroes(ByteRange),
    /// One chunk, and the extents that fill it.
    Chunk(ByteRange, Vec<Extent>),
}

/// The units of an image, in order and without gaps.
pub(crate) struct Units<'a> {
    image: &'a dyn Image,
    /// What has been mapped and not been given out; it begins at `at`.
    mapped: VecDeque<Extent>,
    at: u64,
}

impl<'a> Units<'a> {
    /// All units of the disk.
    pub(crate) fn of(image: &'a dyn Image) -> Self {
        Self { image, mapped: VecDeque::new(), at: 0 }
    }

    /// The next unit; `None` behind the last.
    pub(crate) fn next(&mut self) -> Result<Option<Unit>, ImageError> {
        let size = self.image.virtual_size();
        if self.at >= size {
            return Ok(None);
        }
        let chunk_end = (self.at / CHUNK + 1).saturating_mul(CHUNK).min(size);
        let first = self.front()?;
        if first.kind == ExtentKind::Zero && first.range.end() >= chunk_end {
            let longest = (self.at - self.at % CHUNK).saturating_add(LONGEST_ZEROES);
            let end = match first.range.end().min(longest) {
                end if end == size => end,
                end => end - end % CHUNK,
            };
            let zeroes = ByteRange::between(self.at, end);
            self.take(end);
            return Ok(Some(Unit::Zeroes(zeroes)));
        }
        let range = ByteRange::between(self.at, chunk_end);
        let mut extents = Vec::new();
        while self.at < chunk_end {
            let extent = self.front()?;
            let part = extent.part(ByteRange::between(self.at, chunk_end));
            extents.push(part);
            self.take(part.range.end());
        }
        let all_zero = extents.iter().all(|extent| extent.kind == ExtentKind::Zero);
        Ok(Some(if all_zero { Unit::Zeroes(range) } else { Unit::Chunk(range, extents) }))
    }

    /// The extent that holds `at`.
    fn front(&mut self) -> Result<Extent, ImageError> {
        if self.mapped.is_empty() {
            let rest = ByteRange::between(self.at, self.image.virtual_size());
            self.mapped = self.image.map(rest)?.into();
        }
        let extent = *self.mapped.front().expect("a map of bytes holds an extent");
        assert!(extent.range.contains(self.at), "a map is gapless and in order");
        Ok(extent)
    }

    /// Moves on to `end`, which lies in the first extent or at its end.
    fn take(&mut self, end: u64) {
        self.at = end;
        if self.mapped.front().is_some_and(|extent| extent.range.end() <= end) {
            self.mapped.pop_front();
        }
    }
}
