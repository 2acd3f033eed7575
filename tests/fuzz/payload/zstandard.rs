//! Zstandard frames, field by field as RFC 8878 has them: such as an encoder writes, and such as none would.

use zstd_safe::CParameter::{ChecksumFlag, CompressionLevel, ContentSizeFlag};
use zstd_safe::{CCtx, CParameter};

use super::stream::{Bytes, Content, Right, Stream};

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The flags of a frame's descriptor.
const SINGLE_SEGMENT: u8 = 1 << 5;
const UNUSED: u8 = 1 << 4;
const RESERVED: u8 = 1 << 3;
const CHECKSUM: u8 = 1 << 2;

/// A window of 2 MiB, as large as a cluster may be.
const WINDOW: u8 = 11 << 3;
/// No block may be larger.
const BLOCK_MOST: usize = 128 << 10;

/// The kinds of blocks.
const RAW: u32 = 0;
const REPEATED: u32 = 1;
const COMPRESSED: u32 = 2;
const NO_KIND: u32 = 3;

fn block(is_last: bool, kind: u32, len: usize, bytes: &[u8]) -> Vec<u8> {
    let head = u32::try_from(len).unwrap() << 3 | kind << 1 | u32::from(is_last);
    [&head.to_le_bytes()[..3], bytes].concat()
}

/// One letter, in blocks of that length.
fn repeated(len: usize, each: usize) -> Vec<Vec<u8>> {
    let starts = (0..len).step_by(each);
    starts.map(|start| block(start + each >= len, REPEATED, each.min(len - start), b"x")).collect()
}

fn raw(content: &[u8], each: usize) -> Vec<Vec<u8>> {
    let last = content.len().div_ceil(each) - 1;
    let parts = content.chunks(each).enumerate();
    parts.map(|(number, part)| block(number == last, RAW, part.len(), part)).collect()
}

/// A frame and where its parts end.
#[derive(Clone)]
struct Frame {
    /// What is behind the magic: descriptor, window, dictionary, content size.
    head: Vec<u8>,
    blocks: Vec<Vec<u8>>,
    checksum: Vec<u8>,
}

impl Frame {
    /// One that says no size, with a window of 2 MiB.
    fn of(blocks: Vec<Vec<u8>>) -> Self {
        Self { head: vec![0, WINDOW], blocks, checksum: Vec::new() }
    }

    /// As an encoder writes it, taken apart.
    fn encoded(content: &[u8], parameters: &[CParameter]) -> Self {
        let bytes = encoded(content, parameters);
        let descriptor = bytes[4];
        let is_single = descriptor & SINGLE_SEGMENT != 0;
        let size_len = [usize::from(is_single), 2, 4, 8][usize::from(descriptor >> 6)];
        let (head, mut rest) = bytes[4..].split_at(1 + usize::from(!is_single) + size_len);
        let mut blocks = Vec::new();
        loop {
            let block = u32::from_le_bytes([rest[0], rest[1], rest[2], 0]);
            let len = if block >> 1 & 3 == REPEATED { 1 } else { usize::try_from(block >> 3).unwrap() };
            let (block, behind) = rest.split_at(3 + len);
            blocks.push(block.to_vec());
            rest = behind;
            if block[0] & 1 == 1 {
                break;
            }
        }
        Self { head: head.to_vec(), blocks, checksum: rest.to_vec() }
    }

    /// The same blocks with a head that says that size in so many bytes; `None` if it cannot be said so.
    fn saying(&self, size: u64, len: usize, is_single: bool) -> Option<Self> {
        let (flag, value) = match len {
            1 if is_single => (0, size),
            2 => (1, size.checked_sub(256)?),
            4 => (2, size),
            8 => (3, size),
            _ => return None,
        };
        if len < 8 && value >> (8 * len) != 0 {
            return None;
        }
        let mut head = vec![flag << 6];
        if is_single {
            head[0] |= SINGLE_SEGMENT
        } else {
            head.push(WINDOW)
        }
        head.extend(&value.to_le_bytes()[..len]);
        Some(Self { head, ..self.clone() })
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut frame = self.clone();
        change(&mut frame);
        frame
    }

    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        // The magic, the descriptor, each other byte of the head; heads of blocks, and blocks.
        let head = std::iter::once(&MAGIC[..]).chain(self.head.chunks(1));
        let blocks = self.blocks.iter().flat_map(|block| [&block[..3], &block[3..]]);
        head.chain(blocks).chain([&self.checksum[..]])
    }

    fn bytes(&self) -> Vec<u8> {
        self.parts().flatten().copied().collect()
    }

    fn stream(&self, what: impl Into<String>, content: &Bytes, right: Right) -> Stream {
        let ends = self.parts().scan(0, |end, part| {
            *end += part.len();
            Some(*end)
        });
        Stream::of(what, self.bytes(), content, right, ends.collect())
    }
}

fn encoded(content: &[u8], parameters: &[CParameter]) -> Vec<u8> {
    let mut context = CCtx::create();
    for parameter in parameters {
        context.set_parameter(*parameter).unwrap();
    }
    let mut bytes = vec![0; zstd_safe::compress_bound(content.len())];
    let len = context.compress2(&mut bytes[..], content).unwrap();
    bytes.truncate(len);
    bytes
}

/// As an encoder writes it.
pub(super) fn compressed(content: &[u8]) -> Vec<u8> {
    encoded(content, &[])
}

/// A frame that every decoder passes over.
fn skippable(number: u32, content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(content.len()).unwrap();
    [&(0x184d_2a50 + number).to_le_bytes()[..], &len.to_le_bytes(), content].concat()
}

/// Streams of clusters of `len` bytes, not all of them at once.
pub(super) fn streams(len: usize) -> impl Iterator<Item = Stream> {
    [frames, sizes, heads, checksums, blocks].into_iter().flat_map(move |some| some(len))
}

/// Several frames, or none; of more than a cluster and of less.
fn frames(len: usize) -> Vec<Stream> {
    let text = Content::text(len);
    let whole = compressed(&text);
    let stream = |what: &str, parts: &[&[u8]], right| Stream::new(what, parts.concat(), &text, right);
    let levels = [-5, 1, 3, 19].map(|level| {
        let frame = Frame::encoded(&text, &[CompressionLevel(level)]);
        frame.stream(format!("text at level {level}"), &text, Right::Read)
    });
    let unsaid = Frame::encoded(&text, &[ContentSizeFlag(false)]);
    let mut all = vec![unsaid.stream("text of a size that is not said", &text, Right::Read)];
    all.extend(levels);
    for other in [0, 1, len / 2, len - 1, len + 1, 2 * len] {
        let content = Content::text(other);
        let frame = Frame::encoded(&content, &[]);
        all.push(frame.stream(format!("{other} bytes"), &text, Right::Refused));
        let frame = Frame::encoded(&content, &[ContentSizeFlag(false)]);
        all.push(frame.stream(format!("{other} bytes, which is not said"), &text, Right::Refused));
    }
    let (half, last) = (len / 2, len - 1);
    let piece = |start: usize, end: usize| compressed(&text[start..end]);
    let each = len.div_ceil(32);
    let many: Vec<_> = (0..32).map(|number| piece(number * each, (number + 1) * each)).collect();
    let many: Vec<_> = many.iter().map(Vec::as_slice).collect();
    let garbage = [0xff; 300];
    let (nothing, skipped) = (compressed(&[]), skippable(7, &garbage));
    let endless = skippable(0, &[]).iter().take(4).chain(&[0xff; 4]).copied().collect::<Vec<_>>();
    all.extend([
        stream("nothing at all", &[], Right::Refused),
        stream("text twice", &[&whole, &whole], Right::Read),
        stream("two halves", &[&piece(0, half), &piece(half, len)], Right::Read),
        stream("all but a byte, and that", &[&piece(0, last), &piece(last, len)], Right::Read),
        stream("a half and a byte less", &[&piece(0, half), &piece(half, last), &garbage], Right::Refused),
        stream("a half and a byte more", &[&piece(0, half), &piece(half - 1, len)], Right::Refused),
        stream("a half and garbage", &[&piece(0, half), &garbage], Right::Refused),
        stream("a half and zeroes", &[&piece(0, half), &[0; 1024]], Right::Refused),
        stream("32 frames", &many, Right::Read),
        stream("31 frames", &[&many[..31], &[&garbage]].concat(), Right::Refused),
        stream("a frame of nothing, and text", &[&nothing, &whole], Right::Read),
        stream("text, and a frame of nothing", &[&whole, &nothing], Right::Read),
        stream("text and ones", &[&whole, &garbage], Right::Read),
        stream("text and zeroes", &[&whole, &[0; 300]], Right::Read),
        stream("a frame to skip, and text", &[&skipped, &whole], Right::Read),
        stream(
            "an empty frame to skip between halves",
            &[&piece(0, half), &skippable(0, &[]), &piece(half, len)],
            Right::Read,
        ),
        stream("only frames to skip", &[&skippable(1, &[]), &skipped], Right::Refused),
        stream("a frame to skip that never ends", &[&endless, &whole], Right::Refused),
        stream("an old magic", &[&[0x27, 0xb5, 0x2f, 0xfd], &whole[4..]], Right::Refused),
        stream("no magic", &[&whole[4..]], Right::Refused),
    ]);
    for number in 0..16 {
        let what = format!("a frame to skip of the number {number}");
        all.push(stream(&what, &[&skippable(number, b"none"), &whole], Right::Read));
    }
    all
}

/// What a head may say of the size, in each way that it can be said.
fn sizes(len: usize) -> Vec<Stream> {
    let (text, run) = (Content::text(len), Content::run(len));
    let frames = [
        ("text", Frame::encoded(&text, &[]), &text),
        ("a letter", Frame::of(repeated(len, BLOCK_MOST)), &run),
    ];
    let cluster = len as u64;
    let sizes = [0, 1, 255, cluster - 1, cluster, cluster + 1, 2 * cluster, 1 << 27, u32::MAX.into()];
    let far = [1 << 32, 1 << 63, u64::MAX - 2, u64::MAX - 1, u64::MAX];
    let mut all = Vec::new();
    for (what, frame, content) in frames {
        for (size, width) in sizes.iter().chain(&far).flat_map(|size| [1, 2, 4, 8].map(|len| (*size, len))) {
            for is_single in [false, true] {
                let Some(saying) = frame.saying(size, width, is_single) else { continue };
                let right = match (size, is_single) {
                    _ if size == cluster => Right::Read,
                    // To zstd this number means that none is said; but in one segment it is the window, too.
                    (u64::MAX, false) => Right::Read,
                    (u64::MAX, true) => Right::RefusedByQemu,
                    _ => Right::Refused,
                };
                let what = format!("{what} that says {size} in {width} bytes, single: {is_single}");
                all.push(saying.stream(what, content, right));
            }
        }
        // The size is right, and what is there is not.
        for other in [len - 1, len + 1] {
            let blocks = repeated(other, BLOCK_MOST);
            let saying = Frame { blocks, ..frame.clone() }.saying(cluster, 8, false).unwrap();
            all.push(saying.stream(format!("{other} bytes that say a cluster"), content, Right::Refused));
        }
    }
    all
}

/// Every window, dictionaries, and flags that mean nothing.
fn heads(len: usize) -> Vec<Stream> {
    let run = Content::run(len);
    let frame = Frame::of(repeated(len, 1024));
    let mut all = Vec::new();
    for window in 0..=u8::MAX {
        // 2^10 bytes and more. qemu takes 128 MiB at most, as zstd does by itself where it allocates one.
        let right = match window >> 3 {
            ..17 => Right::Read,
            17 if window & 7 == 0 => Right::Read,
            17..=21 => Right::RefusedByQemu,
            _ => Right::Refused,
        };
        let frame = frame.with(|frame| frame.head[1] = window);
        all.push(frame.stream(format!("the window {window:#x}"), &run, right));
    }
    for (flag, len) in [(1, 1), (2, 2), (3, 4)] {
        for (id, right) in [(0, Right::Read), (7, Right::Refused)] {
            let frame = frame.with(|frame| {
                frame.head[0] |= flag;
                frame.head.extend(&[id, 0, 0, 0][..len]);
            });
            all.push(frame.stream(format!("the dictionary {id} in {len} bytes"), &run, right));
        }
    }
    let mut flagged = |what: &str, flag, right| {
        let frame = frame.with(|frame| frame.head[0] |= flag);
        all.push(frame.stream(what, &run, right));
    };
    flagged("the unused bit", UNUSED, Right::Read);
    flagged("the reserved bit", RESERVED, Right::Refused);
    all
}

/// Checksums that are right, wrong, and not there.
fn checksums(len: usize) -> Vec<Stream> {
    let text = Content::text(len);
    let right = Frame::encoded(&text, &[ChecksumFlag(true)]);
    let whole = [right.bytes(), right.bytes()].concat();
    let halves = |bit: u8| {
        let halves = [&text[..len / 2], &text[len / 2..]];
        let [first, mut second] = halves.map(|half| encoded(half, &[ChecksumFlag(true)]));
        *second.last_mut().unwrap() ^= bit;
        [first, second].concat()
    };
    let mut all = vec![
        right.stream("a checksum", &text, Right::Read),
        Stream::new("two checksums", whole, &text, Right::Read),
        Stream::new("a checksum of each half", halves(0), &text, Right::Read),
        Stream::new("a wrong checksum of a half", halves(1), &text, Right::Refused),
        right.with(|frame| frame.head[0] ^= CHECKSUM).stream("a checksum not said", &text, Right::Read),
        right.with(|frame| frame.checksum = vec![0xff; 4]).stream(
            "ones as a checksum",
            &text,
            Right::Refused,
        ),
        Frame::encoded(&text, &[])
            .with(|frame| (frame.head[0], frame.checksum) = (frame.head[0] | CHECKSUM, vec![0; 4]))
            .stream("zeroes as a checksum", &text, Right::Refused),
    ];
    for bit in 0..32 {
        let wrong = right.with(|frame| frame.checksum[bit / 8] ^= 1 << (bit % 8));
        all.push(wrong.stream(format!("a checksum with bit {bit} wrong"), &text, Right::Refused));
    }
    all
}

/// Blocks of each kind, and of none.
fn blocks(len: usize) -> Vec<Stream> {
    let (text, run) = (Content::text(len), Content::run(len));
    let packed = Frame::encoded(&text, &[CompressionLevel(3)]);
    let unlike = |blocks: &mut Vec<Vec<u8>>| blocks.last_mut().unwrap()[0] &= !1;
    let letter = Frame::of(repeated(len, BLOCK_MOST));
    let nothing = |kind, is_last| block(is_last, kind, 0, if kind == REPEATED { b"x" } else { b"" });
    let mut all = vec![
        Frame::of(raw(&text, BLOCK_MOST)).stream("raw", &text, Right::Read),
        Frame::of(raw(&text, 100)).stream("raw in blocks of 100", &text, Right::Read),
        letter.stream("a letter", &run, Right::Read),
        Frame::of(repeated(len, 100)).stream("a letter in blocks of 100", &run, Right::Read),
        Frame::of(Vec::new()).stream("no block", &run, Right::Refused),
        packed.with(|frame| unlike(&mut frame.blocks)).stream("no last block", &text, Right::Refused),
        letter.with(|frame| frame.blocks.insert(0, block(false, REPEATED, len, b""))).stream(
            "a letter that is not there",
            &run,
            Right::Refused,
        ),
    ];
    for (name, kind) in [("raw", RAW), ("repeated", REPEATED)] {
        let first = packed.with(|frame| frame.blocks.insert(0, nothing(kind, false)));
        all.push(first.stream(format!("an empty {name} block first"), &text, Right::Read));
        let last = packed.with(|frame| {
            unlike(&mut frame.blocks);
            frame.blocks.push(nothing(kind, true));
        });
        all.push(last.stream(format!("an empty {name} block last"), &text, Right::Read));
        let behind = packed.with(|frame| frame.blocks.push(nothing(kind, true)));
        all.push(behind.stream(format!("an empty {name} block behind the last"), &text, Right::Read));
        let only = Frame::of(vec![nothing(kind, true)]);
        all.push(only.stream(format!("only an empty {name} block"), &text, Right::Refused));
        let more = letter.with(|frame| {
            unlike(&mut frame.blocks);
            frame.blocks.push(block(true, kind, 1, b"x"));
        });
        all.push(more.stream(format!("a {name} byte more"), &run, Right::Refused));
    }
    for len in [0, 1, 2, 3, 1000] {
        let bad = |is_last| block(is_last, COMPRESSED, len, &vec![0; len]);
        // No literals and no sequences.
        let right = if len == 2 { Right::Read } else { Right::Refused };
        let first = packed.with(|frame| frame.blocks.insert(0, bad(false)));
        all.push(first.stream(format!("a block of {len} zeroes first"), &text, right));
        let last = packed.with(|frame| {
            unlike(&mut frame.blocks);
            frame.blocks.push(bad(true));
        });
        all.push(last.stream(format!("a block of {len} zeroes last"), &text, right));
    }
    for len in [0, 1, 100] {
        let none = |is_last| block(is_last, NO_KIND, len, &vec![b'x'; len]);
        let first = packed.with(|frame| frame.blocks.insert(0, none(false)));
        all.push(first.stream(format!("{len} bytes of no kind first"), &text, Right::Refused));
        let last = packed.with(|frame| {
            unlike(&mut frame.blocks);
            frame.blocks.push(none(true));
        });
        all.push(last.stream(format!("{len} bytes of no kind last"), &text, Right::Refused));
    }
    for kind in [RAW, REPEATED, COMPRESSED] {
        let long = Frame::of(vec![block(true, kind, (1 << 21) - 1, b"xxxx")]);
        all.push(long.stream(format!("a block of 2 MiB less one, kind {kind}"), &run, Right::Refused));
    }
    all
}
