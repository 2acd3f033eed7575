//! Where the frames of a zstd file lie, and how long each is when it is decoded; found without decoding one.
//!
//! Frames say their decoded length, or a seek table at the file's end does (zstd's seekable format, 0.1.0); where
//! neither does, only decoding tells.

use super::super::super::error::ImageError;
use super::super::super::file::SourceFile;
use super::super::{Codec, MOST_BYTES, MOST_POINTS, MOST_WINDOW, POINTS_APART, Point};

/// A block holds at most so much (RFC 8878, 3.1.1.2.4).
const BLOCK_MAX: u64 = 128 << 10;
/// An encoder has no reason to write even one; a file of nothing else would take long to walk.
const MOST_EMPTY_BLOCKS: u32 = 64 << 10;
/// How much of the file is read at once: blocks that compress well lie close together.
const STEP: u64 = 4096;
/// A seek table's footer: the number of frames, flags, a magic number.
const FOOTER_LEN: u64 = 9;
const FOOTER_MAGIC: [u8; 4] = 0x8f92_eab1_u32.to_le_bytes();
const SKIPPABLE_HEADER: u64 = 8;

/// What four bytes begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Magic {
    Frame,
    Skippable,
    None,
}

impl Magic {
    pub(in super::super) fn of(bytes: &[u8]) -> Self {
        match bytes.first_chunk() {
            Some([0x28, 0xb5, 0x2f, 0xfd]) => Self::Frame,
            Some([0x50..=0x5f, 0x2a, 0x4d, 0x18]) => Self::Skippable,
            _ => Self::None,
        }
    }
}

/// All frames of a file.
#[derive(Debug)]
pub(in super::super) struct Frames {
    /// The length of everything that comes out, where it is said.
    pub(in super::super) size: Option<u64>,
    pub(in super::super) points: Vec<Point>,
    /// Whether every frame has a checksum.
    pub(in super::super) is_checked: bool,
}

impl Frames {
    /// Walks over the headers of all frames and blocks.
    pub(in super::super) fn walk(file: &SourceFile) -> Result<Self, ImageError> {
        let mut table = SeekTable::find(file)?;
        let mut bytes = Bytes { file, buffer: Vec::new(), start: 0 };
        let mut frames = Self { size: Some(0), points: Vec::new(), is_checked: true };
        let (mut at, mut empty, mut count) = (0, 0, 0);
        while at < file.len() {
            let head = match Magic::of(bytes.get(at, 4)?) {
                Magic::Skippable => {
                    let len = u32::from_le_bytes(bytes.array(at + 4)?);
                    at = bytes.within(at + SKIPPABLE_HEADER + u64::from(len), at)?;
                    continue;
                }
                Magic::None if count == 0 => return Err(Codec::Zstd.bad(file, at, "has no frame")),
                Magic::None => {
                    let why = "is followed by bytes that are no frame of it";
                    return Err(Codec::Zstd.bad(file, at, why));
                }
                Magic::Frame => Header::read(&mut bytes, at)?,
            };
            let end = walk_blocks(&mut bytes, (at, at + head.len), &mut empty)?;
            let end = bytes.within(end + if head.has_checksum { 4 } else { 0 }, at)?;
            let told = table.as_mut().and_then(|table| table.next(count));
            let told = told.filter(|(packed, _)| *packed == end - at).map(|(_, len)| len);
            frames.note(Point { disk: frames.size.unwrap_or_default(), host: at });
            frames.is_checked &= head.has_checksum;
            let len = head.content.or(told);
            let sum = frames.size.zip(len).map(|(size, len)| size.checked_add(len));
            let too_long = || Codec::Zstd.bad(file, at, "claims to hold more than 8 EiB");
            frames.size = match sum {
                Some(sum) => Some(sum.filter(|size| *size <= MOST_BYTES).ok_or_else(too_long)?),
                None => None,
            };
            (at, count) = (end, count + 1);
        }
        if count == 0 {
            return Err(Codec::Zstd.bad(file, 0, "has no frame"));
        }
        if frames.size.is_none() {
            frames.points.truncate(1);
        }
        Ok(frames)
    }

    fn note(&mut self, point: Point) {
        let apart = self.points.last().is_none_or(|last| point.disk - last.disk >= POINTS_APART);
        if self.size.is_some() && apart && self.points.len() < MOST_POINTS {
            self.points.push(point);
        }
    }
}

/// What the header of a frame says.
struct Header {
    len: u64,
    content: Option<u64>,
    has_checksum: bool,
}

impl Header {
    fn read(bytes: &mut Bytes<'_>, at: u64) -> Result<Self, ImageError> {
        let file = bytes.file;
        let [descriptor] = bytes.array(at + 4)?;
        if descriptor & 0x08 != 0 {
            return Err(Codec::Zstd.bad(file, at, "has a frame with a reserved bit set"));
        }
        let is_single = descriptor & 0x20 != 0;
        let mut next = at + 5;
        let mut window = 0;
        if !is_single {
            let [byte] = bytes.array(next)?;
            let base = 1_u64 << (10 + (byte >> 3));
            window = base + base / 8 * u64::from(byte & 7);
            next += 1;
        }
        let id_len = [0, 1, 2, 4][usize::from(descriptor & 3)];
        if bytes.get(next, id_len)?.iter().any(|byte| *byte != 0) {
            return Err(Codec::Zstd.too_much(file, at, "a dictionary that is not in the file".into()));
        }
        next += id_len as u64;
        let content_len = match (descriptor >> 6, is_single) {
            (0, false) => 0,
            (0, true) => 1,
            (1, _) => 2,
            (2, _) => 4,
            _ => 8,
        };
        let mut content = [0; 8];
        content[..content_len].copy_from_slice(bytes.get(next, content_len)?);
        // Two bytes begin to count where one ends (RFC 8878, 3.1.1.1.4).
        let content = u64::from_le_bytes(content).saturating_add(if content_len == 2 { 256 } else { 0 });
        if is_single {
            window = content;
        }
        if window > MOST_WINDOW {
            return Err(Codec::Zstd.too_much(file, at, format!("a window of {window} bytes")));
        }
        let len = next + content_len as u64 - at;
        let content = (content_len > 0).then_some(content);
        Ok(Self { len, content, has_checksum: descriptor & 0x04 != 0 })
    }
}

/// The end of the last block of a frame.
fn walk_blocks(
    bytes: &mut Bytes<'_>,
    (frame, first): (u64, u64),
    empty: &mut u32,
) -> Result<u64, ImageError> {
    let mut at = first;
    loop {
        let [low, middle, high] = bytes.array(at)?;
        let word = u64::from(low) | u64::from(middle) << 8 | u64::from(high) << 16;
        let (is_last, kind, len) = (word & 1 == 1, word >> 1 & 3, word >> 3);
        if kind == 3 || len > BLOCK_MAX {
            return Err(Codec::Zstd.bad(bytes.file, at, "has a damaged block"));
        }
        *empty += u32::from(len == 0 && !is_last);
        if *empty > MOST_EMPTY_BLOCKS {
            return Err(Codec::Zstd.bad(bytes.file, at, "consists of empty blocks"));
        }
        at = bytes.within(at + 3 + if kind == 1 { 1 } else { len }, frame)?;
        if is_last {
            return Ok(at);
        }
    }
}

/// A few bytes here and there, each stretch of the file read once.
struct Bytes<'a> {
    file: &'a SourceFile,
    buffer: Vec<u8>,
    start: u64,
}

impl Bytes<'_> {
    fn get(&mut self, at: u64, len: usize) -> Result<&[u8], ImageError> {
        let end = at + len as u64;
        if end > self.file.len() {
            return Err(truncated(self.file, at));
        }
        if at < self.start || end > self.start + self.buffer.len() as u64 {
            let step = (self.file.len() - at).min(STEP);
            self.buffer.resize(usize::try_from(step).expect("a step is short"), 0);
            self.start = at;
            self.file.read_exact_at(&mut self.buffer, at)?;
        }
        let place = usize::try_from(at - self.start).expect("it lies in the buffer");
        Ok(&self.buffer[place..place + len])
    }

    fn array<const LEN: usize>(&mut self, at: u64) -> Result<[u8; LEN], ImageError> {
        Ok(*self.get(at, LEN)?.first_chunk().expect("as many were asked for"))
    }

    /// An end that must not lie behind the file's.
    fn within(&self, end: u64, frame: u64) -> Result<u64, ImageError> {
        if end <= self.file.len() { Ok(end) } else { Err(truncated(self.file, frame)) }
    }
}

fn truncated(file: &SourceFile, at: u64) -> ImageError {
    Codec::Zstd.bad(file, at, "ends within a frame: the file is truncated")
}

/// What a table at the file's end says of the frames, one after the other; compared, never trusted.
struct SeekTable<'a> {
    bytes: Bytes<'a>,
    entries: u64,
    entry_len: u64,
    count: u32,
}

impl<'a> SeekTable<'a> {
    fn find(file: &'a SourceFile) -> Result<Option<Self>, ImageError> {
        let mut bytes = Bytes { file, buffer: Vec::new(), start: 0 };
        let Some(footer) = file.len().checked_sub(FOOTER_LEN) else { return Ok(None) };
        let [a, b, c, d, flags, magic @ ..] = bytes.array::<9>(footer)?;
        if magic != FOOTER_MAGIC {
            return Ok(None);
        }
        let count = u32::from_le_bytes([a, b, c, d]);
        let entry_len = if flags & 0x80 == 0 { 8 } else { 12 };
        let entries = footer.checked_sub(u64::from(count) * entry_len);
        let frame = entries.and_then(|entries| entries.checked_sub(SKIPPABLE_HEADER));
        let Some((entries, frame)) = entries.zip(frame) else { return Ok(None) };
        let is_there = Magic::of(bytes.get(frame, 4)?) == Magic::Skippable;
        Ok(is_there.then_some(Self { bytes, entries, entry_len, count }))
    }

    /// The packed and the decoded length of a frame.
    fn next(&mut self, number: u32) -> Option<(u64, u64)> {
        if number >= self.count {
            return None;
        }
        let at = self.entries + u64::from(number) * self.entry_len;
        let packed = self.bytes.array(at).ok().map(u32::from_le_bytes)?;
        let len = self.bytes.array(at + 4).ok().map(u32::from_le_bytes)?;
        Some((packed.into(), len.into()))
    }
}
