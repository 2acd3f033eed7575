//! `Pass`: all of a stream decoded once, before anything relies on it.

use std::sync::atomic::AtomicBool;

use super::super::decoder::Decoder;
use super::super::error::ImageError;
use super::super::{Image, TableReport};
use super::{
    Blocks, Length, Line, MOST_BYTES, MOST_POINTS, PIECE, POINTS_APART, Packed, PartlyKnown, Reader,
    StreamImage, inner_content,
};
use crate::range::ByteRange;

/// As much of the disk's end is kept as a rebuild writes last.
const TAIL: u64 = 2 << 20;
/// No more runs of zeroes are remembered: half a MiB.
const MOST_ZEROES: usize = 32 << 10;

/// A stream that is decoded from its beginning to its end.
pub(crate) struct Pass {
    packed: Packed,
    /// The disk may not be larger.
    most: u64,
    reader: Reader,
    kept: Blocks,
    zeroes: Vec<ByteRange>,
}

/// What a step of a pass came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// There is more to come.
    GoesOn,
    /// The same, and something came that was to be kept.
    Kept,
    /// That was all.
    Over,
}

impl Packed {
    /// Begins a pass that ends where the disk becomes longer than `most` bytes.
    pub(crate) fn pass(self, most: u64) -> Pass {
        let mut kept = Blocks::default();
        kept.want(ByteRange::new(0, PIECE), 0);
        let most = most.min(MOST_BYTES);
        Pass { packed: self, most, reader: Reader::default(), kept, zeroes: Vec::new() }
    }
}

impl Pass {
    /// Decodes a piece.
    ///
    /// # Errors
    ///
    /// When the stream is damaged, truncated, too long, or followed by something; when it holds another format.
    pub(crate) fn step(&mut self, decoder: &Decoder) -> Result<Step, ImageError> {
        let source = &mut self.packed.source;
        decoder.pulse().check(&source.file)?;
        let range = self.reader.next(source)?;
        if range.end() > self.most {
            return Err(source.too_long(self.most));
        }
        if let Some(point) = self.reader.point()
            && source.points.last().is_none_or(|last| point.disk >= last.disk.saturating_add(POINTS_APART))
            && source.points.len() < MOST_POINTS
        {
            source.points.push(point);
        }
        let mut any = false;
        if let Some(bytes) = self.reader.recent.piece(range.start()).filter(|bytes| !bytes.is_empty()) {
            any = self.kept.take_in(range.start(), bytes);
            if is_zero(bytes) {
                note_zeroes(&mut self.zeroes, range);
            }
        }
        let is_over = range.len() < PIECE;
        if range.start() == 0 || is_over {
            let size = is_over.then_some(range.end());
            inner_content(&self.reader, size, source, self.packed.nested)?;
        }
        Ok(match () {
            () if is_over => Step::Over,
            () if any => Step::Kept,
            () => Step::GoesOn,
        })
    }

    /// Keeps these parts of the disk when they come; what has passed already is not kept.
    pub(crate) fn keep(&mut self, parts: &[ByteRange]) {
        for part in parts {
            self.kept.want(*part, self.reader.at());
        }
    }

    /// How many bytes of the file have been decoded.
    pub(crate) fn packed_bytes_done(&self) -> u64 {
        self.reader.host_offset()
    }

    /// The disk, after the last step.
    ///
    /// # Errors
    ///
    /// When it is not as long as the file tells.
    pub(crate) fn end(mut self) -> Result<Box<dyn Image>, ImageError> {
        let size = self.reader.at();
        let Packed { source, size: told, is_checked, nested } = self.packed;
        if told.is_some_and(|told| told != size) {
            let why = format!("holds {size} bytes and says that it holds {}", told.unwrap_or_default());
            return Err(source.codec.bad(&source.file, 0, &why));
        }
        let first = size.saturating_sub(TAIL) / PIECE * PIECE;
        for start in (first..size).step_by(usize::try_from(PIECE).expect("a piece is short")) {
            if let Some(bytes) = self.reader.recent.piece(start) {
                self.kept.add(start, bytes);
            }
        }
        self.kept.close();
        let zero_bytes = self.zeroes.iter().map(|run| run.len()).sum();
        let report =
            TableReport { compressed_bytes: size - zero_bytes, zero_bytes, ..TableReport::default() };
        let (kept, zeroes) = (self.kept, self.zeroes);
        let reader = Line::new(Reader::default());
        Ok(Box::new(StreamImage {
            source,
            length: Length::known(size),
            nested,
            kept,
            zeroes,
            report,
            is_checked,
            is_decoded: true,
            has_ended: AtomicBool::new(true),
            reader,
        }))
    }
}

impl PartlyKnown for Pass {
    fn size(&self) -> Option<u64> {
        self.packed.told_size()
    }

    fn known(&self, range: ByteRange, buffer: &mut [u8]) {
        self.kept.copy(range, buffer);
    }
}

fn note_zeroes(zeroes: &mut Vec<ByteRange>, range: ByteRange) {
    let room = zeroes.len() < MOST_ZEROES;
    match zeroes.last_mut() {
        Some(last) if last.end() == range.start() => *last = ByteRange::between(last.start(), range.end()),
        _ if room => zeroes.push(range),
        _ => {}
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Whole words at a time, which the compiler makes of it.
    bytes.chunks(4096).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}
