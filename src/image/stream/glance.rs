//! `Glance`: a few places of a stream that is decoded only while it is copied.

use super::super::Image;
use super::super::decoder::Decoder;
use super::super::error::ImageError;
use super::{Blocks, Line, PIECE, Packed, PartlyKnown, Reader, StreamImage, TableReport, inner_content};
use crate::range::ByteRange;

/// No place is looked at behind so much that would have to be decoded for it; and for all of them together.
const MOST_FOR_ONE: u64 = 64 << 20;
const MOST_FOR_ALL: u64 = 256 << 20;

/// A stream of which some places are looked at.
pub(crate) struct Glance {
    packed: Packed,
    size: u64,
    reader: Reader,
    kept: Blocks,
    /// How much more may be decoded.
    left: u64,
}

impl Packed {
    /// Begins to look at a disk that is said to have this size; it is compared with what comes out later.
    pub(crate) fn glance(self, size: u64) -> Glance {
        Glance { packed: self, size, reader: Reader::default(), kept: Blocks::default(), left: MOST_FOR_ALL }
    }
}

impl Glance {
    /// Decodes what is needed to see a range of the disk, if that is not too much; whether something new was seen.
    ///
    /// # Errors
    ///
    /// When the stream is damaged, asks for too much, or holds another format.
    pub(crate) fn look(&mut self, range: ByteRange, decoder: &Decoder) -> Result<bool, ImageError> {
        let Some(range) = range.intersection(ByteRange::new(0, self.size)) else { return Ok(false) };
        let source = &self.packed.source;
        let first = range.start() / PIECE * PIECE;
        let cost = range.end() - source.begins_at(&self.reader, first);
        if self.kept.holds(range) || cost > MOST_FOR_ONE.min(self.left) {
            return Ok(false);
        }
        self.left -= cost;
        self.kept.want(range, 0);
        let mut any = false;
        for part in ByteRange::between(first, range.end()).cut(PIECE) {
            if self.reader.recent.piece(part.start()).is_none() {
                self.reader.reach(source, part.start(), decoder.pulse())?;
            }
            let bytes = self.reader.recent.piece(part.start()).expect("the piece was just decoded");
            any |= self.kept.take_in(part.start(), bytes);
            let is_end = part.start() + bytes.len() as u64 == self.size;
            let size = is_end.then_some(self.size);
            inner_content(&self.reader, size, source, self.packed.nested)?;
        }
        Ok(any)
    }

    /// The disk, which is decoded while it is read.
    #[must_use]
    pub(crate) fn end(mut self) -> Box<dyn Image> {
        self.kept.close();
        Box::new(self.packed.undecoded(self.size, self.kept))
    }
}

impl PartlyKnown for Glance {
    fn size(&self) -> Option<u64> {
        Some(self.size)
    }

    fn known(&self, range: ByteRange, buffer: &mut [u8]) {
        self.kept.copy(range, buffer);
    }
}

impl Packed {
    /// What can be asked of the file alone: its identity, its bytes as they lie; the disk is as long as it is told.
    pub(crate) fn as_file(&self) -> Box<dyn Image> {
        let size = self.told_size().unwrap_or_default();
        Box::new(self.clone().undecoded(size, Blocks::default()))
    }

    fn undecoded(self, size: u64, kept: Blocks) -> StreamImage {
        let Packed { source, is_checked, nested, .. } = self;
        let report = TableReport { compressed_bytes: size, ..TableReport::default() };
        let (zeroes, reader) = (Vec::new(), Line::new(Reader::default()));
        StreamImage { source, size, nested, kept, zeroes, report, is_checked, is_decoded: false, reader }
    }
}
