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
    /// Chunks with the extents that fill each: one, or two that share a compressed cluster.
    ///
    /// Such a cluster is decoded once, when one thread has both.
    Chunks(Vec<(ByteRange, Vec<Extent>)>),
}

/// The units of an image, in order and without gaps.
pub(crate) struct Units<'a> {
    image: &'a dyn Image,
    /// What has been mapped and not been given out; it begins at `at`.
    mapped: VecDeque<Extent>,
    at: u64,
    longest_zeroes: u64,
}

impl<'a> Units<'a> {
    /// All units of the disk.
    pub(crate) fn of(image: &'a dyn Image) -> Self {
        Self { image, mapped: VecDeque::new(), at: 0, longest_zeroes: LONGEST_ZEROES }
    }

    /// The same for who does nothing with zeroes: they come in runs of any length, for a disk may be all zeroes and
    /// have 2^63 bytes.
    pub(crate) fn with_long_zeroes(image: &'a dyn Image) -> Self {
        Self { longest_zeroes: u64::MAX, ..Self::of(image) }
    }

    /// The next unit; `None` behind the last.
    pub(crate) fn next(&mut self) -> Result<Option<Unit>, ImageError> {
        // It may become less at any time, while the units are worked on.
        let size = self.image.most_bytes();
        if self.at >= size {
            return Ok(None);
        }
        let chunk_end = (self.at / CHUNK + 1).saturating_mul(CHUNK).min(size);
        let first = self.front(size)?;
        if first.kind == ExtentKind::Zero && first.range.end() >= chunk_end {
            let longest = (self.at - self.at % CHUNK).saturating_add(self.longest_zeroes);
            let end = match first.range.end().min(longest) {
                end if end == size => end,
                end => end - end % CHUNK,
            };
            let zeroes = ByteRange::between(self.at, end);
            self.take(end);
            return Ok(Some(Unit::Zeroes(zeroes)));
        }
        let mut chunks = vec![self.chunk(chunk_end, size)?];
        if self.at < size && chunk_goes_on(&chunks[0].1, &self.front(size)?) {
            chunks.push(self.chunk(chunk_end.saturating_add(CHUNK).min(size), size)?);
        }
        let mut extents = chunks.iter().flat_map(|(_, extents)| extents);
        let all_zero = extents.all(|extent| extent.kind == ExtentKind::Zero);
        Ok(Some(if all_zero { Unit::Zeroes(chunks[0].0) } else { Unit::Chunks(chunks) }))
    }

    /// The chunk from `at` to `end`, of a disk of `size` bytes.
    fn chunk(&mut self, end: u64, size: u64) -> Result<(ByteRange, Vec<Extent>), ImageError> {
        let range = ByteRange::between(self.at, end);
        let mut extents = Vec::new();
        while self.at < end {
            let part = self.front(size)?.part(ByteRange::between(self.at, end));
            extents.push(part);
            self.take(part.range.end());
        }
        Ok((range, extents))
    }

    /// The extent that holds `at`.
    fn front(&mut self, size: u64) -> Result<Extent, ImageError> {
        if self.mapped.is_empty() {
            let rest = ByteRange::between(self.at, size);
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

/// Whether the chunk's last extent and the next are parts of one compressed cluster.
fn chunk_goes_on(chunk: &[Extent], next: &Extent) -> bool {
    let cluster = |extent: &Extent| match extent.kind {
        ExtentKind::Compressed { layer, host_offset, .. } => Some((layer, host_offset)),
        _ => None,
    };
    chunk.last().is_some_and(|last| cluster(last).is_some() && cluster(last) == cluster(next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Decoder, DigestAlgorithm, FileIdentity, ImageInfo, TableReport};

    /// An image of which only the map is asked; it gives one extent at a time.
    struct Mapped(Vec<Extent>);

    impl Image for Mapped {
        fn virtual_size(&self) -> u64 {
            self.0.last().map_or(0, |extent| extent.range.end())
        }

        fn map(&self, range: ByteRange) -> Result<Vec<Extent>, ImageError> {
            let extent = self.0.iter().find(|extent| extent.range.contains(range.start()));
            Ok(extent.map(|extent| extent.part(range)).into_iter().collect())
        }

        fn read(&self, _: &[Extent], _: &mut [u8], _: &mut Decoder) -> Result<(), ImageError> {
            unreachable!("only the map is asked")
        }

        fn check_tables(&self) -> Result<TableReport, ImageError> {
            unreachable!("only the map is asked")
        }

        fn info(&self) -> ImageInfo {
            unreachable!("only the map is asked")
        }

        fn check_unchanged(&self) -> Result<(), ImageError> {
            Ok(())
        }

        fn identities(&self) -> Vec<FileIdentity> {
            Vec::new()
        }

        fn read_file(&self, _: u64, _: &mut [u8]) -> Result<(), ImageError> {
            unreachable!("only the map is asked")
        }

        fn file_digest(&self, _: DigestAlgorithm) -> Result<[u8; 32], ImageError> {
            unreachable!("only the map is asked")
        }
    }

    const ZERO: ExtentKind = ExtentKind::Zero;
    const DATA: ExtentKind = ExtentKind::Data { layer: 0, host_offset: 4096 };

    fn packed(host_offset: u64) -> ExtentKind {
        ExtentKind::Compressed { layer: 0, host_offset, host_len: 512, skip: 0 }
    }

    /// The units of neighbouring extents: `0` and the length for zeroes, else the lengths of the chunks.
    #[track_caller]
    fn check(extents: &[(u64, ExtentKind)], expected: &[&[u64]]) {
        let mut at = 0;
        let extent = |(len, kind): &(u64, ExtentKind)| {
            let range = ByteRange::new(at, *len);
            at += len;
            Extent { range, kind: *kind }
        };
        let image = Mapped(extents.iter().map(extent).collect());
        let (mut units, mut found, mut at) = (Units::of(&image), Vec::new(), 0);
        while let Some(unit) = units.next().unwrap() {
            let ranges: Vec<_> = match &unit {
                Unit::Zeroes(range) => vec![*range],
                Unit::Chunks(chunks) => chunks.iter().map(|(range, _)| *range).collect(),
            };
            for range in &ranges {
                assert_eq!(range.start(), at, "units are gapless and in order");
                at = range.end();
            }
            let zeroes = matches!(unit, Unit::Zeroes(_)).then_some(0);
            found.push(zeroes.into_iter().chain(ranges.iter().map(|range| range.len())).collect::<Vec<_>>());
        }
        assert_eq!(found, expected);
        assert_eq!(at, image.virtual_size());
    }

    #[test]
    fn zeroes_are_taken_in_whole_chunks_and_the_rest_goes_with_the_data() {
        check(&[], &[]);
        check(&[(7, ZERO)], &[&[0, 7]]);
        check(&[(5 * CHUNK + 7, ZERO)], &[&[0, 5 * CHUNK + 7]]);
        check(&[(3 * CHUNK + 7, ZERO), (CHUNK, DATA)], &[&[0, 3 * CHUNK], &[CHUNK], &[7]]);
        check(&[(100, DATA), (CHUNK, ZERO), (100, DATA)], &[&[CHUNK], &[200]]);
        check(&[(CHUNK - 1, ZERO), (1, ZERO), (9, DATA)], &[&[0, CHUNK], &[9]]);
        let long = LONGEST_ZEROES + CHUNK;
        check(&[(long, ZERO)], &[&[0, LONGEST_ZEROES], &[0, CHUNK]]);
        let range = ByteRange::new(0, 2 << 60);
        let image = Mapped(vec![Extent { range, kind: ZERO }]);
        let mut units = Units::with_long_zeroes(&image);
        assert_eq!(units.next().unwrap(), Some(Unit::Zeroes(range)));
        assert_eq!(units.next().unwrap(), None);
    }

    #[test]
    fn two_chunks_of_one_compressed_cluster_go_together_and_of_two_clusters_do_not() {
        let whole = 2 * CHUNK;
        check(&[(whole, packed(0)), (whole, packed(512))], &[&[CHUNK, CHUNK], &[CHUNK, CHUNK]]);
        check(&[(CHUNK, packed(0)), (CHUNK, packed(512))], &[&[CHUNK], &[CHUNK]]);
        check(&[(CHUNK + 5, packed(0)), (CHUNK, ZERO)], &[&[CHUNK, CHUNK], &[0, 5]]);
        check(&[(whole, DATA)], &[&[CHUNK], &[CHUNK]]);
    }
}
