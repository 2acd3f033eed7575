//! Streams: raw images that are packed whole, with gzip, xz or zstd, and decoded while they are read.
//!
//! From the top: `Packed` is a file whose outline has been read (the index of xz, the frame headers of zstd); `Pass`
//! decodes all of it once, so that everything is checked, its length is known, and what a plan looks at is kept;
//! `Glance` looks at a few places; `StreamImage` is the disk, whose `Length` may be known only when it is read. One decoder goes forward through the stream, whichever thread asks, and begins again at
//! the nearest place before what is asked for when that lies behind it. What an image may ask for is bounded: a
//! window of 64 MiB, 12 pieces of 1 MiB that were decoded last, 8 MiB that are kept, and the disk's end.

mod codec;
mod glance;
mod gzip;
mod input;
mod kept;
mod length;
mod line;
mod pass;
mod reader;
mod xz;
mod zstd;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::content;
use super::decoder::Decoder;
use super::error::ImageError;
use super::file::{FileIdentity, SourceFile};
use super::layered::file_digest;
use super::{DigestAlgorithm, Extent, ExtentKind, Image, ImageInfo, LayerInfo, Nested, TableReport};
use crate::range::ByteRange;
pub(super) use codec::Codec;
use codec::{MOST_BYTES, MOST_PADDING, MOST_POINTS, MOST_WINDOW, POINTS_APART, Point, only_zeroes_follow};

pub(crate) use glance::{Glance, Told};
use kept::{Blocks, PIECE};
use length::Length;
use line::Line;
pub(crate) use pass::Step;
use reader::{Reader, Source};

/// What is known of a disk that is not decoded whole, or not yet.
pub(crate) trait PartlyKnown {
    /// Its size, where that is told.
    fn size(&self) -> Option<u64>;

    /// What is known of a range; zeroes in place of what is not.
    fn known(&self, range: ByteRange, buffer: &mut [u8]);
}

/// A packed image of which nothing has been decoded yet.
#[derive(Clone)]
pub(crate) struct Packed {
    source: Source,
    /// The disk's size, where the file tells it.
    size: Option<u64>,
    /// Whether every byte is covered by a checksum.
    is_checked: bool,
    nested: Nested,
}

impl Packed {
    /// Reads the outline of a packed file.
    ///
    /// # Errors
    ///
    /// When it is damaged, asks for too much memory, or is no regular file.
    pub(super) fn open(file: SourceFile, codec: Codec, nested: Nested) -> Result<Self, ImageError> {
        if file.identity().block_device.is_some() {
            return Err(ImageError::StreamOnDevice { path: file.path().into(), codec: codec.name() });
        }
        let (mut index, mut points) = (None, Vec::new());
        let (size, is_checked) = match codec {
            Codec::Gzip => (None, true),
            Codec::Xz => {
                let read = Arc::new(xz::Index::read(&file)?);
                points = read.points();
                let told = (Some(read.size()), read.is_checked());
                index = Some(read);
                told
            }
            Codec::Zstd => {
                let frames = zstd::Frames::walk(&file)?;
                points = frames.points;
                (frames.size, frames.is_checked)
            }
        };
        let source = Source { file: Arc::new(file), codec, index, points };
        Ok(Self { source, size, is_checked, nested })
    }

    /// How many bytes the file has.
    pub(crate) fn packed_bytes(&self) -> u64 {
        self.source.file.len()
    }

    /// The disk's size, where the file tells it; it is compared with what comes out.
    pub(crate) fn told_size(&self) -> Option<u64> {
        self.size
    }

    /// The most bytes that can come out of so many.
    fn most_bytes(&self) -> u64 {
        self.packed_bytes().saturating_mul(self.source.codec.most_for_one())
    }
}

/// The disk that comes out of a packed file.
struct StreamImage {
    source: Source,
    length: Length,
    nested: Nested,
    kept: Blocks,
    /// Whole pieces that are known to be zero: in order, and no two of them touch.
    zeroes: Vec<ByteRange>,
    report: TableReport,
    is_checked: bool,
    /// Whether all of it has been decoded once.
    is_decoded: bool,
    /// Whether a reading has come to the stream's end, and found nothing behind it.
    has_ended: AtomicBool,
    reader: Line<Reader>,
}

impl StreamImage {
    fn read_range(&self, range: ByteRange, buffer: &mut [u8], decoder: &Decoder) -> Result<(), ImageError> {
        if self.kept.copy(range, buffer) {
            return Ok(());
        }
        let mut reader = self.reader.enter();
        for part in range.cut(PIECE) {
            let place = |offset: u64| usize::try_from(offset - range.start()).expect("it is in memory");
            let buffer = &mut buffer[place(part.start())..place(part.end())];
            if self.copy_recent(&reader, part, buffer) {
                continue;
            }
            self.decode(&mut reader, part.start() / PIECE * PIECE, decoder)?;
            let is_there = self.copy_recent(&reader, part, buffer);
            assert!(is_there, "the piece that was decoded last is there");
        }
        Ok(())
    }

    /// Copies a part of a piece if that was decoded lately; what lies behind the disk's end is there, and zero.
    fn copy_recent(&self, reader: &Reader, part: ByteRange, buffer: &mut [u8]) -> bool {
        let within = part.intersection(ByteRange::new(0, self.length.most()));
        let len = usize::try_from(within.map_or(0, ByteRange::len)).expect("it is in memory");
        let (of_disk, behind) = buffer.split_at_mut(len);
        behind.fill(0);
        within.is_none_or(|within| reader.recent.copy(within, of_disk))
    }

    /// Decodes up to the end of a piece, and looks at the stream's end where that is the disk's.
    fn decode(&self, reader: &mut Reader, start: u64, decoder: &Decoder) -> Result<(), ImageError> {
        let goes_so_far = reader.reach(&self.source, start, decoder.pulse())?;
        let bad = |why| Err(self.source.codec.bad(&self.source.file, self.source.file.len(), why));
        match self.length.if_known() {
            Some(_) if !goes_so_far => return bad("ends before the length that it was found to have"),
            Some(size) if reader.at() != size.min(start + PIECE) => {
                return bad("is not as long as it was found to be");
            }
            Some(_) => {}
            None => self.measure(reader, start + PIECE)?,
        }
        let ends_here = self.length.if_known() == Some(reader.at());
        if start == 0 || ends_here {
            inner_content(reader, self.length.if_known(), &self.source, self.nested)?;
        }
        if ends_here {
            if !reader.is_at_end(&self.source)? {
                return bad("is longer than it was found to be");
            }
            self.has_ended.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Finds out whether the disk ends where the decoding has come to, which is `piece_end` or the stream's end.
    fn measure(&self, reader: &mut Reader, piece_end: u64) -> Result<(), ImageError> {
        let (at, most) = (reader.at(), self.length.most());
        if at > most || at == most && !reader.is_at_end(&self.source)? {
            return Err(self.source.too_long(most));
        }
        if at < piece_end || at == most {
            self.length.found(at);
        }
        Ok(())
    }

    /// The first extent of a range.
    fn extent_at(&self, range: ByteRange) -> Extent {
        let behind = self.zeroes.partition_point(|run| run.end() <= range.start());
        let next = self.zeroes.get(behind).copied().and_then(|run| run.intersection(range));
        match next {
            Some(run) if run.start() == range.start() => Extent { range: run, kind: ExtentKind::Zero },
            next => {
                let end = next.map_or(range.end(), ByteRange::start);
                Extent { range: ByteRange::between(range.start(), end), kind: ExtentKind::Streamed }
            }
        }
    }
}

/// Refuses a disk that begins or ends like an image of another format; as much of it is looked at as is at hand.
fn inner_content(
    reader: &Reader,
    size: Option<u64>,
    source: &Source,
    nested: Nested,
) -> Result<(), ImageError> {
    if nested == Nested::Allow {
        return Ok(());
    }
    let (mut head, mut tail) = ([0; content::HEAD_LEN], [0; 8]);
    let head = &mut head[..usize::try_from(reader.at()).unwrap_or(usize::MAX).min(content::HEAD_LEN)];
    let has_head = reader.recent.copy(ByteRange::new(0, head.len() as u64), head);
    let found = if has_head { content::of_head(head) } else { None };
    let tail_at = size.and_then(|size| size.checked_sub(content::TAIL_LEN));
    let has_tail = tail_at.is_some_and(|at| reader.recent.copy(ByteRange::new(at, 8), &mut tail));
    let found = found.or_else(|| tail_at.filter(|_| has_tail).and_then(|at| content::of_tail(tail, at)));
    match found {
        None => Ok(()),
        Some(seen) => Err(ImageError::PackedFormat {
            path: source.file.path().into(),
            codec: source.codec.name(),
            content: seen.content.name(),
            guest: seen.range,
        }),
    }
}

impl Image for StreamImage {
    fn virtual_size(&self) -> u64 {
        self.length.size()
    }

    fn is_measured(&self) -> bool {
        self.length.if_known().is_some()
    }

    fn most_bytes(&self) -> u64 {
        self.length.most()
    }

    fn see_end(&self) -> Result<(), ImageError> {
        if self.is_decoded || self.has_ended.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut reader = self.reader.enter();
        match self.length.most().checked_sub(1) {
            Some(last) => self.decode(&mut reader, last / PIECE * PIECE, &Decoder::default()),
            None if !reader.is_at_end(&self.source)? => Err(self.source.too_long(0)),
            None => {
                self.length.found(0);
                Ok(())
            }
        }
    }

    fn limit(&mut self, most: u64) {
        self.length.limit(most);
    }

    fn map(&self, range: ByteRange) -> Result<Vec<Extent>, ImageError> {
        /// How many extents one call returns at most.
        const EXTENTS_MAX: usize = 4096;
        assert!(range.end() <= self.length.bound(), "a range to map is within the virtual disk");
        let (mut extents, mut rest) = (Vec::new(), range);
        while !rest.is_empty() && extents.len() < EXTENTS_MAX {
            let extent = self.extent_at(rest);
            rest = ByteRange::between(extent.range.end(), rest.end());
            extents.push(extent);
        }
        Ok(extents)
    }

    fn read(&self, extents: &[Extent], buffer: &mut [u8], decoder: &mut Decoder) -> Result<(), ImageError> {
        let mut rest = buffer;
        for extent in extents {
            let part = super::layered::take(&mut rest, extent.range);
            match extent.kind {
                ExtentKind::Zero => part.fill(0),
                _ => self.read_range(extent.range, part, decoder)?,
            }
        }
        assert!(rest.is_empty(), "the buffer is as long as the extents");
        Ok(())
    }

    fn check_tables(&self) -> Result<TableReport, ImageError> {
        Ok(match self.is_decoded {
            true => self.report,
            false => TableReport { compressed_bytes: self.length.size(), ..TableReport::default() },
        })
    }

    fn info(&self) -> ImageInfo {
        let layer = LayerInfo {
            path: self.source.file.path().into(),
            format: "raw",
            virtual_size: self.length.size(),
            file_size: self.source.file.len(),
            version: None,
            cluster_size: None,
            compression: Some(self.source.codec.name()),
            checksums: Some(self.is_checked),
            extended_l2: None,
            refcount_bits: None,
            snapshots: None,
            dirty: None,
            lazy_refcounts: None,
        };
        let (format, virtual_size, file_size) = (layer.format, layer.virtual_size, layer.file_size);
        ImageInfo { format, virtual_size, file_size, chain: vec![layer] }
    }

    fn check_unchanged(&self) -> Result<(), ImageError> {
        self.source.file.check_unchanged()
    }

    fn is_at_hand(&self, range: ByteRange) -> bool {
        self.is_decoded || self.kept.holds(range)
    }

    fn read_file(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        self.source.file.read_exact_at(buffer, offset)
    }

    fn identities(&self) -> Vec<FileIdentity> {
        vec![self.source.file.identity().clone()]
    }

    fn file_digest(&self, algorithm: DigestAlgorithm) -> Result<[u8; 32], ImageError> {
        file_digest(&self.source.file, algorithm)
    }
}
