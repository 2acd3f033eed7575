//! `Glance`: a few places of a stream that is decoded only while it is copied.

use std::sync::atomic::AtomicBool;

use super::super::Image;
use super::super::decoder::Decoder;
use super::super::error::ImageError;
use super::{
    Blocks, Codec, Length, Line, PIECE, Packed, PartlyKnown, Reader, StreamImage, TableReport, inner_content,
};
use crate::range::ByteRange;

/// No place is looked at behind so much that would have to be decoded for it; and for all of them together.
const MOST_FOR_ONE: u64 = 64 << 20;
const MOST_FOR_ALL: u64 = 256 << 20;

/// A stream of which some places are looked at.
pub(crate) struct Glance {
    packed: Packed,
    length: Length,
    reader: Reader,
    kept: Blocks,
    /// How much more may be decoded.
    left: u64,
}

/// What is known of the length of a disk that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Something says it; it is compared with what comes out later.
    Size(u64),
    /// Nothing does, but it must not be longer than that.
    AtMost(u64),
}

impl Packed {
    /// Begins to look at a disk.
    pub(crate) fn glance(self, told: Told) -> Glance {
        let length = match told {
            Told::Size(size) => Length::known(size),
            Told::AtMost(most) => Length::unknown(most.min(self.most_bytes())),
        };
        let (reader, kept) = (Reader::default(), Blocks::default());
        Glance { packed: self, length, reader, kept, left: MOST_FOR_ALL }
    }
}

impl Glance {
    /// Decodes what is needed to see a range of the disk, if that is not too much; whether something new was seen.
    ///
    /// # Errors
    ///
    /// When the stream is damaged, asks for too much, is too long, or holds another format.
    pub(crate) fn look(&mut self, range: ByteRange, decoder: &Decoder) -> Result<bool, ImageError> {
        let Some(range) = range.intersection(ByteRange::new(0, self.length.most())) else { return Ok(false) };
        let first = range.start() / PIECE * PIECE;
        let cost = range.end() - self.packed.source.begins_at(&self.reader, first);
        if self.kept.holds(range) || cost > MOST_FOR_ONE.min(self.left) {
            return Ok(false);
        }
        self.left -= cost;
        self.kept.want(range, 0);
        let mut any = false;
        for part in ByteRange::between(first, range.end()).cut(PIECE) {
            if self.reader.recent.piece(part.start()).is_none() && !self.reach(part.start(), decoder)? {
                break;
            }
            let bytes = self.reader.recent.piece(part.start()).expect("the piece was just decoded");
            any |= self.kept.take_in(part.start(), bytes);
            let end = part.start() + bytes.len() as u64;
            let size = self.length.if_known().filter(|size| *size == end);
            inner_content(&self.reader, size, &self.packed.source, self.packed.nested)?;
        }
        Ok(any)
    }

    /// Decodes a piece; `false` where nothing is there, because the disk ends before it.
    fn reach(&mut self, start: u64, decoder: &Decoder) -> Result<bool, ImageError> {
        let source = &self.packed.source;
        let goes_so_far = self.reader.reach(source, start, decoder.pulse())?;
        match self.length.if_known() {
            Some(_) if !goes_so_far => {
                let why = "ends before the length that it was found to have";
                return Err(source.codec.bad(&source.file, source.file.len(), why));
            }
            None if self.reader.at() > self.length.most() => {
                return Err(source.too_long(self.length.most()));
            }
            None if self.reader.at() < start + PIECE => self.length.found(self.reader.at()),
            _ => {}
        }
        Ok(goes_so_far)
    }

    /// What is to be said of the disk's length, where nothing tells it.
    pub(crate) fn suppose(&mut self, size: u64) {
        self.length.suppose(size);
    }

    /// What the last bytes of a gzip file say of the length: all of it where that is one member of less than 4 GiB.
    pub(crate) fn last_word(&self) -> Option<u64> {
        let file = &self.packed.source.file;
        let mut last = [0; 4];
        let is_gzip = self.packed.source.codec == Codec::Gzip;
        let at = file.len().checked_sub(4).filter(|_| is_gzip)?;
        file.read_exact_at(&mut last, at).ok()?;
        Some(u32::from_le_bytes(last).into())
    }

    /// The disk, which is decoded while it is read.
    #[must_use]
    pub(crate) fn end(mut self) -> Box<dyn Image> {
        self.kept.close();
        Box::new(self.packed.undecoded(self.length, self.kept))
    }
}

impl PartlyKnown for Glance {
    fn size(&self) -> Option<u64> {
        Some(self.length.size())
    }

    fn known(&self, range: ByteRange, buffer: &mut [u8]) {
        self.kept.copy(range, buffer);
    }
}

impl Packed {
    /// What can be asked of the file alone: its identity, its bytes as they lie; the disk is as long as it is told.
    pub(crate) fn as_file(&self) -> Box<dyn Image> {
        let size = self.told_size().unwrap_or_default();
        Box::new(self.clone().undecoded(Length::known(size), Blocks::default()))
    }

    fn undecoded(self, length: Length, kept: Blocks) -> StreamImage {
        let Packed { source, is_checked, nested, .. } = self;
        let (zeroes, report) = (Vec::new(), TableReport::default());
        let (is_decoded, has_ended) = (false, AtomicBool::new(false));
        let reader = Line::new(Reader::default());
        StreamImage {
            source,
            length,
            nested,
            kept,
            zeroes,
            report,
            is_checked,
            is_decoded,
            has_ended,
            reader,
        }
    }
}
