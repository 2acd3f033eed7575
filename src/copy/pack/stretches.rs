//! Cuts a disk into stretches that hold whole clusters of the new image.

use crate::copy::units::{Unit, Units};
use crate::image::{Extent, Image, ImageError};
use crate::range::ByteRange;
use crate::verify::CHUNK;

/// A chunk with the extents that fill it.
pub(super) type Chunk = (ByteRange, Vec<Extent>);

/// A part of the disk that one thread deals with, or that nobody needs to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stretch {
    /// Zeroes, in whole chunks but for the disk's end.
    Zeroes(ByteRange),
    /// Chunks of the same clusters; what lies between them and around them in those clusters is zero.
    Chunks(Vec<Chunk>),
}

/// The stretches of a disk, in order.
pub(super) struct Stretches<'a> {
    units: Units<'a>,
    /// What a stretch begins at a multiple of, and ends at one or at the disk's end: a chunk or a larger cluster.
    step: u64,
    /// The unit that was looked at and belongs to the next stretch.
    waiting: Option<Unit>,
    /// Zeroes within a stretch that was just given out.
    zeroes: Vec<ByteRange>,
}

impl<'a> Stretches<'a> {
    pub(super) fn of(image: &'a dyn Image, cluster_size: u64) -> Self {
        Self { units: Units::of(image), step: CHUNK.max(cluster_size), waiting: None, zeroes: Vec::new() }
    }

    /// The next stretch; `None` behind the last.
    pub(super) fn next(&mut self) -> Result<Option<Stretch>, ImageError> {
        if let Some(zeroes) = self.zeroes.pop() {
            return Ok(Some(Stretch::Zeroes(zeroes)));
        }
        let mut chunks = match self.unit()? {
            None => return Ok(None),
            Some(Unit::Zeroes(range)) => return Ok(Some(Stretch::Zeroes(range))),
            Some(Unit::Chunks(chunks)) => chunks,
        };
        let mut at = end_of(&chunks);
        while !at.is_multiple_of(self.step) {
            match self.unit()? {
                None => break,
                Some(Unit::Chunks(more)) => {
                    at = end_of(&more);
                    chunks.extend(more);
                }
                Some(Unit::Zeroes(range)) => {
                    let end = at.next_multiple_of(self.step).min(range.end());
                    self.zeroes.push(ByteRange::between(at, end));
                    if end < range.end() {
                        self.waiting = Some(Unit::Zeroes(ByteRange::between(end, range.end())));
                    }
                    at = end;
                }
            }
        }
        Ok(Some(Stretch::Chunks(chunks)))
    }

    fn unit(&mut self) -> Result<Option<Unit>, ImageError> {
        match self.waiting.take() {
            Some(unit) => Ok(Some(unit)),
            None => self.units.next(),
        }
    }
}

fn end_of(chunks: &[Chunk]) -> u64 {
    chunks.last().expect("a unit has a chunk").0.end()
}
