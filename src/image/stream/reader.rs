//! `Reader`: one decoder that goes forward, and begins again where it must go back.

use std::sync::Arc;

use super::super::decoder::Pulse;
use super::super::error::ImageError;
use super::super::file::SourceFile;
use super::gzip::Gzip;
use super::kept::{PIECE, Recent};
use super::xz::{Index, Xz};
use super::zstd::Zstd;
use super::{Codec, Point};
use crate::range::ByteRange;

/// A packed file, and where decoding of it can begin.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) file: Arc<SourceFile>,
    pub(super) codec: Codec,
    /// Of an xz file only.
    pub(super) index: Option<Arc<Index>>,
    /// In the order of the disk.
    pub(super) points: Vec<Point>,
}

impl Source {
    /// The last place to begin at that is not behind `disk`.
    fn point_before(&self, disk: u64) -> Point {
        let behind = self.points.partition_point(|point| point.disk <= disk);
        behind.checked_sub(1).map_or(Point::default(), |number| self.points[number])
    }

    /// What comes out is longer than the disk may be.
    pub(super) fn too_long(&self, most: u64) -> ImageError {
        let (path, codec) = (self.file.path().into(), self.codec.name());
        ImageError::StreamTooLong { path, codec, most }
    }

    /// From which byte of the disk on it has to be decoded to come to `start`.
    pub(super) fn begins_at(&self, reader: &Reader, start: u64) -> u64 {
        let point = self.point_before(start).disk;
        if reader.goes_on(point, start) { reader.at } else { point }
    }
}

/// The decoder of one of the formats.
enum Unpacker {
    Gzip(Box<Gzip>),
    Xz(Box<Xz>),
    Zstd(Box<Zstd>),
}

impl Unpacker {
    fn from(source: &Source, point: Point) -> Result<Self, ImageError> {
        let file = &source.file;
        Ok(match (source.codec, &source.index) {
            (Codec::Gzip, _) => Self::Gzip(Box::new(Gzip::from(point, file))),
            (Codec::Zstd, _) => Self::Zstd(Box::new(Zstd::from(point, file)?)),
            (Codec::Xz, Some(index)) => Self::Xz(Box::new(Xz::from(point, index, file))),
            (Codec::Xz, None) => unreachable!("the index of an xz file is read before its blocks"),
        })
    }

    fn fill(&mut self, file: &SourceFile, buffer: &mut [u8]) -> Result<usize, ImageError> {
        match self {
            Self::Gzip(gzip) => gzip.fill(file, buffer),
            Self::Xz(xz) => xz.fill(file, buffer),
            Self::Zstd(zstd) => zstd.fill(file, buffer),
        }
    }
}

/// Where the decoding stands, and what came out last.
#[derive(Default)]
pub(super) struct Reader {
    unpacker: Option<Unpacker>,
    at: u64,
    pub(super) recent: Recent,
}

impl Reader {
    /// How much of the disk has come out.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// How far the packed file has been read.
    pub(super) fn host_offset(&self) -> u64 {
        match &self.unpacker {
            Some(Unpacker::Gzip(gzip)) => gzip.host_offset(),
            Some(Unpacker::Xz(xz)) => xz.host_offset(),
            Some(Unpacker::Zstd(zstd)) => zstd.host_offset(),
            None => 0,
        }
    }

    /// The last place that was come by at which decoding can begin; the blocks of xz are known before.
    pub(super) fn point(&self) -> Option<Point> {
        match &self.unpacker {
            Some(Unpacker::Gzip(gzip)) => Some(gzip.point()),
            Some(Unpacker::Zstd(zstd)) => Some(zstd.point()),
            Some(Unpacker::Xz(_)) | None => None,
        }
    }

    /// Decodes on to the end of a piece; returns where that part begins. It is `recent` then, and shorter only where
    /// the stream ends.
    pub(super) fn next(&mut self, source: &Source) -> Result<ByteRange, ImageError> {
        let start = self.at;
        let len = PIECE - start % PIECE;
        let mut buffer = self.recent.make_room();
        buffer.resize(usize::try_from(len).expect("a piece is short"), 0);
        let filled = self.fill(source, &mut buffer)?;
        buffer.truncate(filled);
        let range = ByteRange::between(start, self.at);
        if start.is_multiple_of(PIECE) {
            self.recent.push(start, buffer);
        }
        Ok(range)
    }

    /// Whether to go on is the shorter way to `start` than to begin again at `point`.
    fn goes_on(&self, point: u64, start: u64) -> bool {
        self.unpacker.is_some() && (point..=start).contains(&self.at)
    }

    /// Makes the piece that begins at `start` one of the recent ones; `false` where the stream ends before it.
    pub(super) fn reach(&mut self, source: &Source, start: u64, pulse: &Pulse) -> Result<bool, ImageError> {
        let point = source.point_before(start);
        if !self.goes_on(point.disk, start) {
            // The old decoder's memory is given back before a new one gets any.
            self.unpacker = None;
            self.unpacker = Some(Unpacker::from(source, point)?);
            self.at = point.disk;
        }
        while self.at <= start {
            pulse.check(&source.file)?;
            if self.next(source)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether nothing comes behind what has come out; checks what follows the last byte.
    pub(super) fn is_at_end(&mut self, source: &Source) -> Result<bool, ImageError> {
        Ok(self.fill(source, &mut [0])? == 0)
    }

    fn fill(&mut self, source: &Source, buffer: &mut [u8]) -> Result<usize, ImageError> {
        let unpacker = match &mut self.unpacker {
            Some(unpacker) => unpacker,
            none => none.insert(Unpacker::from(source, source.point_before(self.at))?),
        };
        let filled = unpacker.fill(&source.file, buffer);
        match filled {
            Ok(filled) => self.at += filled as u64,
            // What it would give now is not known.
            Err(_) => self.unpacker = None,
        }
        filled
    }
}
