//! Where the blocks of an xz file lie, and how long each is when it is decoded; read from the file's end.

use flate2::Crc;

use super::super::super::error::ImageError;
use super::super::super::file::SourceFile;
use super::super::{Codec, MOST_BYTES, MOST_PADDING, Point};
use super::Input;
use crate::range::ByteRange;

const HEADER_MAGIC: &[u8] = b"\xfd7zXZ\0";
const FOOTER_MAGIC: &[u8] = b"YZ";
/// A stream's header and its footer are as long.
const HEADER_LEN: u64 = 12;
/// No more streams and blocks are noted: about 5 MiB.
const MOST_STREAMS: usize = 16 << 10;
const MOST_BLOCKS: usize = 128 << 10;

/// A block: where its packed bytes lie, and how many bytes of the disk come out of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) host: u64,
    pub(super) host_end: u64,
    pub(super) disk: u64,
    pub(super) len: u64,
    pub(super) stream: usize,
}

/// All blocks of a file.
#[derive(Debug)]
pub(in super::super) struct Index {
    /// In the order of the disk.
    blocks: Vec<Block>,
    /// Where each stream's header lies.
    headers: Vec<ByteRange>,
    size: u64,
    is_checked: bool,
}

impl Index {
    /// Reads the footers and indexes of all streams, from the last to the first.
    pub(in super::super) fn read(file: &SourceFile) -> Result<Self, ImageError> {
        let (mut end, mut is_checked) = (file.len(), true);
        let (mut streams, mut count): (Vec<StreamParts>, usize) = (Vec::new(), 0);
        while end > 0 {
            end = without_padding(file, end)?;
            let stream = StreamParts::ending_at(file, end, MOST_BLOCKS - count)?;
            (end, is_checked) = (stream.header.start(), is_checked && stream.check != 0);
            count += stream.blocks.len();
            streams.push(stream);
            if streams.len() > MOST_STREAMS {
                return Err(Codec::Xz.too_much(file, end, format!("more than {MOST_STREAMS} streams")));
            }
        }
        let (mut blocks, mut headers, mut size) = (Vec::with_capacity(count), Vec::new(), 0_u64);
        for (number, stream) in streams.into_iter().rev().enumerate() {
            let mut host = stream.header.end();
            for (packed, len) in stream.blocks {
                blocks.push(Block { host, host_end: host + packed, disk: size, len, stream: number });
                host += packed;
                let sum = size.checked_add(len).filter(|size| *size <= MOST_BYTES);
                size = sum.ok_or_else(|| Codec::Xz.bad(file, host, "claims to hold more than 8 EiB"))?;
            }
            headers.push(stream.header);
        }
        Ok(Self { blocks, headers, size, is_checked })
    }

    pub(in super::super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether every stream says that its blocks have checks.
    pub(in super::super) fn is_checked(&self) -> bool {
        self.is_checked
    }

    /// Where decoding can begin.
    pub(in super::super) fn points(&self) -> Vec<Point> {
        self.blocks.iter().map(|block| Point { disk: block.disk, host: block.host }).collect()
    }

    pub(super) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub(super) fn block(&self, number: usize) -> Option<Block> {
        self.blocks.get(number).copied()
    }

    pub(super) fn header(&self, stream: usize) -> ByteRange {
        self.headers[stream]
    }
}

/// What lies in front of the padding that ends at `end`: zeroes in groups of four.
fn without_padding(file: &SourceFile, end: u64) -> Result<u64, ImageError> {
    let (mut at, mut word) = (end, [0; 4]);
    while at >= 4 && end - at <= MOST_PADDING {
        file.read_exact_at(&mut word, at - 4)?;
        if word != [0; 4] {
            break;
        }
        at -= 4;
    }
    Ok(at)
}

/// A stream as its index has it.
struct StreamParts {
    header: ByteRange,
    /// The packed length of each block, and the length of what comes out.
    blocks: Vec<(u64, u64)>,
    /// The kind of check behind each block; 0 is none.
    check: u8,
}

impl StreamParts {
    fn ending_at(file: &SourceFile, end: u64, most_blocks: usize) -> Result<Self, ImageError> {
        let bad = |at, why| Codec::Xz.bad(file, at, why);
        let truncated = "has no footer at its end: the file is truncated, or something follows";
        let footer_at = end.checked_sub(HEADER_LEN).ok_or_else(|| bad(0, truncated))?;
        let mut footer = [0; 12];
        file.read_exact_at(&mut footer, footer_at)?;
        let [crc, size, ..] = footer.as_chunks::<4>().0 else { unreachable!("a footer has three words") };
        if !footer.ends_with(FOOTER_MAGIC) || crc32(&footer[4..10]) != u32::from_le_bytes(*crc) {
            return Err(bad(footer_at, truncated));
        }
        let flags = [footer[8], footer[9]];
        let index_len = (u64::from(u32::from_le_bytes(*size)) + 1) * 4;
        let index_at = footer_at.checked_sub(index_len).filter(|at| *at >= HEADER_LEN);
        let index_at = index_at.ok_or_else(|| bad(footer_at, "has an index that is longer than the file"))?;
        let blocks = read_index(file, ByteRange::between(index_at, footer_at), most_blocks)?;
        let packed = blocks.iter().try_fold(0_u64, |sum, (packed, _)| sum.checked_add(*packed));
        let start = packed.and_then(|packed| index_at.checked_sub(packed)?.checked_sub(HEADER_LEN));
        let start = start.ok_or_else(|| bad(index_at, "has blocks that are longer than the file"))?;
        let mut header = [0; 12];
        file.read_exact_at(&mut header, start)?;
        let crc = crc32(&header[6..8]).to_le_bytes();
        if !header.starts_with(HEADER_MAGIC) || header[6..8] != flags || header[8..] != crc {
            return Err(bad(start, "has no header where its index says that it begins"));
        }
        Ok(Self { header: ByteRange::new(start, HEADER_LEN), blocks, check: flags[1] & 0x0f })
    }
}

/// The records of an index.
fn read_index(
    file: &SourceFile,
    range: ByteRange,
    most_blocks: usize,
) -> Result<Vec<(u64, u64)>, ImageError> {
    let damaged = || Codec::Xz.bad(file, range.start(), "has a damaged index");
    let mut bytes = IndexBytes { file, input: Input::at(range.start(), file), crc: Crc::new() };
    bytes.input.extend(range.end());
    if bytes.next()? != Some(0) {
        return Err(damaged());
    }
    let count = bytes.number()?.ok_or_else(damaged)?;
    if count > most_blocks as u64 {
        let what = format!("more than {MOST_BLOCKS} blocks");
        return Err(Codec::Xz.too_much(file, range.start(), what));
    }
    let mut blocks = Vec::new();
    for _ in 0..count {
        let (unpadded, len) = (bytes.number()?, bytes.number()?);
        let packed =
            unpadded.filter(|unpadded| *unpadded > 0).and_then(|len| len.checked_next_multiple_of(4));
        blocks.push(packed.zip(len).ok_or_else(damaged)?);
    }
    while !(bytes.input.offset() - range.start()).is_multiple_of(4) {
        if bytes.next()? != Some(0) {
            return Err(damaged());
        }
    }
    let crc = bytes.crc.sum().to_le_bytes();
    let stored = [bytes.next()?, bytes.next()?, bytes.next()?, bytes.next()?];
    if stored != crc.map(Some) || bytes.input.offset() != range.end() {
        return Err(damaged());
    }
    Ok(blocks)
}

/// The bytes of an index, which count for its checksum as they are taken.
struct IndexBytes<'a> {
    file: &'a SourceFile,
    input: Input,
    crc: Crc,
}

impl IndexBytes<'_> {
    fn next(&mut self) -> Result<Option<u8>, ImageError> {
        let Some(byte) = self.input.bytes(self.file)?.first().copied() else { return Ok(None) };
        self.input.consume(1);
        self.crc.update(&[byte]);
        Ok(Some(byte))
    }

    /// A number of up to nine bytes, seven bits in each; `None` where there is none.
    fn number(&mut self) -> Result<Option<u64>, ImageError> {
        let mut number = 0;
        for place in 0..9 {
            let Some(byte) = self.next()? else { return Ok(None) };
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                // The shortest form counts.
                return Ok((byte != 0 || place == 0).then_some(number));
            }
        }
        Ok(None)
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}
