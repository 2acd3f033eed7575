//! Deflate streams, block by block as RFC 1951 has them: such as an encoder writes, and such as none would.

use std::io::Write;

use flate2::Compression;
use flate2::write::DeflateEncoder;

use super::stream::{Content, Right, Stream};

/// What is put into a stream bit by bit, the lowest first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    /// How many bits of the last byte are used; 0 when all are.
    used: u32,
    borders: Vec<usize>,
}

/// The kinds of blocks.
const STORED: u32 = 0;
const FIXED: u32 = 1;
const DYNAMIC: u32 = 2;
const RESERVED: u32 = 3;

/// The symbols of the end of a block, and of 258 bytes again.
const END: u32 = 256;
const LONGEST: u32 = 285;

impl Bits {
    fn number(mut self, value: u32, len: u32) -> Self {
        for bit in 0..len {
            if self.used == 0 {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= u8::from(value >> bit & 1 == 1) << self.used;
            self.used = (self.used + 1) % 8;
        }
        self
    }

    /// A Huffman code, whose highest bit comes first.
    fn code(self, code: u32, len: u32) -> Self {
        self.number(code.reverse_bits() >> (32 - len), len)
    }

    fn block(mut self, is_last: u32, kind: u32) -> Self {
        self.borders.push(self.bytes.len());
        self.number(is_last, 1).number(kind, 2)
    }

    /// Stored bytes, and whatever is written for how many they are not.
    fn stored_with(mut self, is_last: u32, content: &[u8], not: u16) -> Self {
        self = self.block(is_last, STORED);
        self.used = 0;
        let len = u16::try_from(content.len()).unwrap();
        for part in [&len.to_le_bytes()[..], &(!len ^ not).to_le_bytes(), content] {
            self.borders.push(self.bytes.len());
            self.bytes.extend(part);
        }
        self
    }

    fn stored(self, is_last: u32, content: &[u8]) -> Self {
        self.stored_with(is_last, content, 0)
    }

    /// A symbol of the fixed code.
    fn symbol(self, symbol: u32) -> Self {
        match symbol {
            0..=143 => self.code(0x30 + symbol, 8),
            144..=255 => self.code(0x190 + symbol - 144, 9),
            256..=279 => self.code(symbol - 256, 7),
            _ => self.code(0xc0 + symbol - 280, 8),
        }
    }

    fn literals(self, content: &[u8]) -> Self {
        content.iter().fold(self, |bits, byte| bits.symbol((*byte).into()))
    }

    /// 258 bytes again, from so far back.
    fn again(self, distance: u32) -> Self {
        let far = distance - 1;
        let bits = self.symbol(LONGEST);
        if far < 4 {
            return bits.code(far, 5);
        }
        let more = far.ilog2() - 1;
        bits.code(2 * (more + 1) + (far >> more & 1), 5).number(far & ((1 << more) - 1), more)
    }

    /// A block of `period` over and over, up to `len` bytes.
    fn periodic(self, period: &[u8], len: usize) -> Self {
        let mut bits = self.block(1, FIXED).literals(period);
        let times = (len - period.len()) / 258;
        for _ in 0..times {
            bits = bits.again(u32::try_from(period.len()).unwrap());
        }
        let written = period.len() + times * 258;
        let rest = period.iter().cycle().skip(written % period.len()).take(len - written);
        bits.literals(&rest.copied().collect::<Vec<_>>()).symbol(END)
    }
}

/// The order in which the lengths of the code of lengths are written.
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// The head of a dynamic block: how the lengths of its codes are written.
struct Head {
    /// How many lengths of symbols and of distances it says there are.
    counts: (u32, u32),
    /// The lengths, and 16 to 18 with what follows them.
    lengths: Vec<(u32, u32)>,
    /// The lengths of the code that they are written in.
    lengths_of_lengths: [u32; 19],
}

impl Head {
    /// Of a block of many `x`: the letter, the end and 258 bytes again, from one distance.
    fn plain() -> Self {
        let mut lengths = vec![(0, 0); 287];
        (lengths[usize::from(b'x')], lengths[256], lengths[285], lengths[286]) =
            ((1, 0), (2, 0), (2, 0), (1, 0));
        // Thirteen codes of 4 bits and six of 5.
        let lengths_of_lengths = std::array::from_fn(|symbol| if symbol < 13 { 4 } else { 5 });
        Self { counts: (286, 1), lengths, lengths_of_lengths }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// A block with that head, which makes a cluster of `x` if the head is as it should be.
    fn block(&self, len: usize) -> Bits {
        let mut bits = Bits::default().block(1, DYNAMIC);
        bits = bits.number(self.counts.0 - 257, 5).number(self.counts.1 - 1, 5).number(15, 4);
        for symbol in ORDER {
            bits = bits.number(self.lengths_of_lengths[symbol], 3);
        }
        bits.borders.push(bits.bytes.len());
        for (symbol, more) in &self.lengths {
            bits = match symbol {
                0..13 => bits.code(*symbol, 4),
                _ => bits.code(26 + symbol - 13, 5),
            };
            bits = match symbol {
                16 => bits.number(*more, 2),
                17 => bits.number(*more, 3),
                18 => bits.number(*more, 7),
                _ => bits,
            };
        }
        bits.borders.push(bits.bytes.len());
        bits = bits.code(0, 1);
        for _ in 0..(len - 1) / 258 {
            bits = bits.code(3, 2).code(0, 1);
        }
        for _ in 0..(len - 1) % 258 {
            bits = bits.code(0, 1);
        }
        bits.code(2, 2)
    }
}

fn encoded(content: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// As an encoder writes it.
pub(super) fn deflated(content: &[u8]) -> Vec<u8> {
    encoded(content, 6)
}

/// Streams of clusters of `len` bytes, not all of them at once.
pub(super) fn streams(len: usize) -> impl Iterator<Item = Stream> {
    [encoders, blocks, codes, distances].into_iter().flat_map(move |some| some(len))
}

/// What encoders write, of more than a cluster and of less, and what may lie before and behind it.
fn encoders(len: usize) -> Vec<Stream> {
    let text = Content::text(len);
    let whole = deflated(&text);
    let stream = |what: &str, bytes: Vec<u8>, right| Stream::new(what, bytes, &text, right);
    let mut all: Vec<_> = [0, 1, 6, 9]
        .map(|level| stream(&format!("text at level {level}"), encoded(&text, level), Right::Read))
        .into();
    // zlib has filled the cluster then, and qemu asks no more.
    let more = [Content::text(len + 1), Content::text(2 * len)];
    all.extend(more.map(|more| stream(&format!("{} bytes", more.len()), deflated(&more), Right::ReadByQemu)));
    for less in [0, 1, len / 2, len - 1] {
        all.push(stream(&format!("{less} bytes"), deflated(&text[..less]), Right::Refused));
    }
    let halves = [deflated(&text[..len / 2]), deflated(&text[len / 2..])].concat();
    all.push(stream("two halves", halves, Right::Refused));
    all.push(stream("text twice", [&whole[..], &whole].concat(), Right::Read));
    all.push(stream("nothing at all", Vec::new(), Right::Refused));
    for (what, behind) in [("zeroes", 0), ("ones", 0xff), ("its letter", b'x')] {
        all.push(stream(&format!("text and {what}"), [&whole[..], &[behind; 300]].concat(), Right::Read));
    }
    // RFC 1950 and RFC 1952: the head of zlib, at each level that it tells, and that of gzip.
    for head in
        [&[0x78, 0x01][..], &[0x78, 0x5e], &[0x78, 0x9c], &[0x78, 0xda], b"\x1f\x8b\x08\0\0\0\0\0\0\x03"]
    {
        all.push(stream(&format!("text behind {head:x?}"), [head, &whole].concat(), Right::Refused));
    }
    all
}

/// Blocks of each kind, and of none.
fn blocks(len: usize) -> Vec<Stream> {
    let text = Content::text(len);
    let run = Content::run(len);
    let of_text = |what: &str, bits: Bits, right| Stream::of(what, bits.bytes, &text, right, bits.borders);
    let of_run = |what: &str, bits: Bits, right| Stream::of(what, bits.bytes, &run, right, bits.borders);
    let new = Bits::default;
    let letters = |count| run[..count].to_vec();
    // What a stored block can hold, and the rest.
    let stored = |bits: Bits, is_last| {
        let parts: Vec<_> = text.chunks(65535).collect();
        let last = parts.len() - 1;
        let put = |bits: Bits, (number, part): (usize, &&[u8])| {
            bits.stored(if number == last { is_last } else { 0 }, part)
        };
        parts.iter().enumerate().fold(bits, put)
    };
    let empty = |bits: Bits, count: usize| (0..count).fold(bits, |bits, _| bits.stored(0, &[]));
    let fixed = |bits: Bits, is_last| bits.block(is_last, FIXED).literals(&letters(1));
    let mut all = vec![
        of_text("stored", stored(new(), 1), Right::Read),
        of_text("stored behind an empty block", stored(empty(new(), 1), 1), Right::Read),
        of_text("stored and an empty block", stored(new(), 0).stored(1, &[]), Right::Read),
        of_text("stored and many empty ones", empty(stored(new(), 0), 40).stored(1, &[]), Right::Read),
        of_text("stored and an empty fixed block", stored(new(), 0).block(1, FIXED).symbol(END), Right::Read),
        of_text(
            "stored, and wrongly how many are not",
            new().stored_with(1, &text[..len.min(500)], 1),
            Right::Refused,
        ),
        of_run("fixed", new().periodic(b"x", len), Right::Read),
        of_run(
            "fixed in a block of its own each",
            fixed(new(), 0).symbol(END).periodic(b"x", len - 1),
            Right::Read,
        ),
        of_run("only the reserved kind", new().block(1, RESERVED).number(0, 13), Right::Refused),
        of_run(
            "the reserved kind behind a letter",
            fixed(new(), 0).symbol(END).block(1, RESERVED),
            Right::Refused,
        ),
        of_text(
            "stored and the reserved kind",
            stored(new(), 0).block(1, RESERVED).number(0, 5),
            Right::Refused,
        ),
        of_text("stored and one byte more", stored(new(), 0).stored(1, b"x"), Right::ReadByQemu),
        of_text("stored without a last block", stored(new(), 0), Right::Refused),
        of_text("stored, zeroes behind it", stored(new(), 0).number(0, 20).number(0, 20), Right::Refused),
    ];
    // More bytes than there are.
    let mut long = new().stored(1, &text[..100]);
    long.bytes[1..5].copy_from_slice(&[0xff, 0xff, 0, 0]);
    all.push(of_text("stored, and longer than the file", long, Right::Refused));
    all
}

/// The codes of a dynamic block, and the lengths that make them.
fn codes(len: usize) -> Vec<Stream> {
    let run = Content::run(len);
    let head = |what: &str, right, change: &dyn Fn(&mut Head)| {
        let bits = Head::plain().with(change).block(len);
        Stream::of(format!("dynamic, {what}"), bits.bytes, &run, right, bits.borders)
    };
    let letter = usize::from(b'x');
    let symbols = |count: usize| {
        move |head: &mut Head| {
            head.counts.0 = u32::try_from(count).unwrap();
            (286..count).for_each(|_| head.lengths.insert(286, (0, 0)));
        }
    };
    let distances = |count: usize| {
        move |head: &mut Head| {
            head.counts.1 = u32::try_from(count).unwrap();
            (1..count).for_each(|_| head.lengths.push((0, 0)));
        }
    };
    vec![
        head("plain", Right::Read, &|_| {}),
        head("too many codes", Right::Refused, &|head| head.lengths[0] = (1, 0)),
        head("too few codes", Right::Refused, &|head| head.lengths[letter] = (2, 0)),
        head("one code in all", Right::Refused, &|head| {
            (head.lengths[256], head.lengths[285]) = ((0, 0), (0, 0));
        }),
        head("no end", Right::Refused, &|head| head.lengths.swap(256, 257)),
        // zlib takes 286 and 30 at most; those behind them stand for nothing, and have no codes here.
        head("287 symbols", Right::RefusedByQemu, &symbols(287)),
        head("288 symbols", Right::RefusedByQemu, &symbols(288)),
        head("30 distances", Right::Read, &distances(30)),
        head("31 distances", Right::RefusedByQemu, &distances(31)),
        head("32 distances", Right::RefusedByQemu, &distances(32)),
        // libdeflate takes any bit for the distance 1 then.
        head("no distance", Right::RefusedByQemu, &|head| head.lengths[286] = (0, 0)),
        head("a distance of 2 bits", Right::Refused, &|head| head.lengths[286] = (2, 0)),
        head("three distances of a bit", Right::Refused, &|head| {
            distances(3)(head);
            head.lengths[286..].fill((1, 0));
        }),
        head("zeroes repeated", Right::Read, &|head| {
            head.lengths.splice(257..285, [(18, 17)]).for_each(drop);
            head.lengths.splice(121..256, [(18, 124)]).for_each(drop);
            head.lengths.splice(0..120, [(18, 109)]).for_each(drop);
        }),
        head("the last length again before there is one", Right::Refused, &|head| {
            head.lengths.splice(0..3, [(16, 0)]).for_each(drop);
        }),
        head("zeroes past the last", Right::Refused, &|head| *head.lengths.last_mut().unwrap() = (17, 0)),
        head("a length past the last", Right::Refused, &|head| *head.lengths.last_mut().unwrap() = (16, 3)),
        head("no lengths of lengths", Right::Refused, &|head| head.lengths_of_lengths = [0; 19]),
        head("too many lengths of lengths", Right::Refused, &|head| head.lengths_of_lengths = [4; 19]),
        head("too few lengths of lengths", Right::Refused, &|head| head.lengths_of_lengths[18] = 0),
        head("one length of lengths", Right::Refused, &|head| {
            head.lengths_of_lengths = [0; 19];
            head.lengths_of_lengths[8] = 1;
        }),
    ]
}

/// Distances up to the longest, and before the beginning; symbols that stand for none.
fn distances(len: usize) -> Vec<Stream> {
    let text = Content::text(len);
    let mut all = Vec::new();
    // qemu asks for a window of 4 KiB, and zlib does not insist on it where all of the output is at hand.
    for distance in [1, 2, 4, 5, 257, 258, 4095, 4096, 4097, 24577, 32767, 32768] {
        if distance + 258 <= len {
            let period = &text[..distance];
            let bits = Bits::default().periodic(period, len);
            let content = Content::periodic(period, len);
            let what = format!("{distance} bytes back");
            all.push(Stream::of(what, bits.bytes, &content, Right::Read, bits.borders));
        }
    }
    let fixed = |before: usize| Bits::default().block(1, FIXED).literals(&text[..before]);
    let bad = |what: String, bits: Bits| {
        let bits = bits.symbol(END);
        Stream::of(what, bits.bytes, &text, Right::Refused, bits.borders)
    };
    for before in [0, 1, 100] {
        for distance in [before + 1, before + 2, 4096, 32768] {
            let bits = fixed(before).again(u32::try_from(distance).unwrap());
            all.push(bad(format!("{distance} bytes back behind {before}"), bits));
        }
    }
    for symbol in [30, 31] {
        all.push(bad(format!("the distance {symbol}"), fixed(100).symbol(LONGEST).code(symbol, 5)));
    }
    for symbol in [286, 287] {
        all.push(bad(format!("the symbol {symbol}"), fixed(100).symbol(symbol).code(0, 5)));
    }
    all
}
