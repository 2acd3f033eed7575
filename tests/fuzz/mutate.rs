//! What is done to an image: each kind of damage knows how images are built, and where it hurts.

use crate::draft::{COMPRESSED, COPIED, Draft};
use crate::random::Random;

/// A kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A field of the header.
    Header,
    /// Feature bits and the compression type.
    Features,
    /// A header extension.
    Extension,
    /// The name of a backing file, and its format.
    Backing,
    /// An entry of the L1 table.
    L1,
    /// An entry of an L2 table.
    L2,
    /// A compressed cluster's entry.
    Descriptor,
    /// The bitmap of an extended entry.
    Subclusters,
    /// Bytes of a cluster, compressed or not.
    Payload,
    /// The file ends early.
    Cut,
    /// Bytes anywhere.
    Blind,
    /// Parts of another image.
    Splice,
    /// Several of the above.
    Several,
    /// Reference counts, which nobody who reads needs.
    Refcounts,
    /// Flags that change nothing for who reads.
    Flags,
    /// The internal snapshots.
    Snapshots,
    /// Bytes behind the end.
    Behind,
}

const KINDS: [Kind; 17] = [
    Kind::Header,
    Kind::Features,
    Kind::Extension,
    Kind::Backing,
    Kind::L1,
    Kind::L2,
    Kind::Descriptor,
    Kind::Subclusters,
    Kind::Payload,
    Kind::Cut,
    Kind::Blind,
    Kind::Splice,
    Kind::Several,
    Kind::Refcounts,
    Kind::Flags,
    Kind::Snapshots,
    Kind::Behind,
];

/// Those with the most ways to go wrong, which are tried twice as often.
const RICH: [Kind; 4] = [Kind::Header, Kind::L2, Kind::Descriptor, Kind::Payload];

impl Kind {
    pub(crate) fn any(random: &mut Random) -> Self {
        let number = random.place(KINDS.len() + RICH.len());
        KINDS.get(number).copied().unwrap_or_else(|| RICH[number - KINDS.len()])
    }

    /// Whether the image must still be read, and hold the same disk.
    pub(crate) fn is_benign(self) -> bool {
        matches!(self, Self::Refcounts | Self::Flags | Self::Snapshots | Self::Behind)
    }

    /// Damages an image; `other` is one to take parts from. An image that has nothing of that kind stays as it is.
    pub(crate) fn apply(self, draft: &mut Draft, other: &Draft, random: &mut Random) {
        match self {
            Self::Header => header(draft, random),
            Self::Features => features(draft, random),
            Self::Extension => extension(draft, random),
            Self::Backing => backing(draft, random),
            Self::L1 => l1(draft, random),
            Self::L2 => l2(draft, random),
            Self::Descriptor => descriptor(draft, random),
            Self::Subclusters => subclusters(draft, random),
            Self::Payload => payload(draft, random),
            Self::Cut => cut(draft, random),
            Self::Blind => blind(draft, random),
            Self::Splice => splice(draft, other, random),
            Self::Several => {
                for _ in 0..2 + random.below(3) {
                    KINDS[random.place(12)].apply(draft, other, random);
                }
            }
            Self::Refcounts => refcounts(draft, random),
            Self::Flags => flags(draft, random),
            Self::Snapshots => snapshots(draft, random),
            Self::Behind => {
                let len = 1 + random.place(3 * 4096);
                draft.bytes.extend(random.bytes(len));
            }
        }
    }
}

/// Every field's place and length, and whether it is an offset.
const FIELDS: [(u64, usize, bool); 16] = [
    (0, 4, false),
    (4, 4, false),
    (8, 8, true),
    (16, 4, false),
    (20, 4, false),
    (24, 8, false),
    (32, 4, false),
    (36, 4, false),
    (40, 8, true),
    (48, 8, true),
    (56, 4, false),
    (60, 4, false),
    (64, 8, true),
    (96, 4, false),
    (100, 4, false),
    (24, 8, false),
];

fn header(draft: &mut Draft, random: &mut Random) {
    let (at, len, is_offset) = random.pick(&FIELDS);
    let old = draft.get(at, len);
    let span = draft.map.cluster / draft.map.entry_len() * draft.map.cluster;
    let value = match random.below(6) {
        _ if is_offset && !random.once_in(6) => draft.place(random),
        0 => random.below(9),
        1 => old.wrapping_add(random.pick(&[1, u64::MAX, 8, 512, 4, u64::MAX - 511])),
        2 => random.pick(&[1 << 31, (1 << 31) - 1, (1 << 32) - 1, 65536, 65537, 1 << 22, (1 << 22) + 1]),
        3 if len == 8 => random.pick(&[1 << 63, (1 << 63) - 1, u64::MAX, u64::MAX - 511, 1 << 61, 1 << 53]),
        4 if len == 8 => (draft.map.l1_count * span).wrapping_add(random.pick(&[0, 1, u64::MAX])),
        4 => old << 1,
        _ => old ^ 1 << random.below(len as u64 * 8),
    };
    draft.put_number(at, len, value);
}

fn features(draft: &mut Draft, random: &mut Random) {
    if random.once_in(4) {
        let value = random.below(4);
        draft.put_number(104, 1, value);
    }
    let field = random.pick(&[72, 72, 72, 80, 88]);
    for _ in 0..=random.below(2) {
        let bit = if random.once_in(2) { random.below(6) } else { random.below(64) };
        draft.flip(field, 8, 1 << bit);
    }
}

const EXTENSIONS: [u64; 7] =
    [0, 0xe279_2aca, 0x6803_f857, 0x2385_2875, 0x0537_be77, 0x4441_5441, 0x1234_5678];

/// One more extension before those that are there, or one of them changed.
fn extension(draft: &mut Draft, random: &mut Random) {
    let (start, end) = (draft.map.header_len, draft.map.cluster.min(draft.len()));
    let room = end.saturating_sub(start + 8);
    if random.once_in(3) {
        let at = start + random.below(2) * 4 + random.below(4) * 8;
        let value = random.pick(&[0, 1, 7, 9, room, room + 1, (1 << 32) - 1, (1 << 31) + 1]);
        return draft.put_number(at, 4, value);
    }
    let len =
        random.pick(&[0, 1, 3, 8, 24, 47, 48, room, room.saturating_sub(7), room + 1, 1 << 31, 0xffff_fff8]);
    let mut added = u32::try_from(random.pick(&EXTENSIONS)).unwrap().to_be_bytes().to_vec();
    added.extend(u32::try_from(len.min(u64::from(u32::MAX))).unwrap().to_be_bytes());
    let content = usize::try_from(len.min(64)).unwrap();
    added.extend(random.bytes(content));
    added.resize(added.len().next_multiple_of(8), 0);
    let kept = usize::try_from(draft.get(start + 4, 4).min(200)).unwrap() + 8;
    let from = usize::try_from(start).unwrap().min(draft.bytes.len());
    let old = draft.bytes[from..(from + kept).min(draft.bytes.len())].to_vec();
    if len <= 64 {
        added.extend(old);
    }
    added.truncate(usize::try_from(end.saturating_sub(start)).unwrap());
    draft.put(start, &added);
}

/// Names that an image could give; each is tried with each format.
const NAMES: [&[u8]; 18] = [
    b"chain-base.raw",
    b"./chain-base.raw",
    b"chain-mid.qcow2",
    b"image.qcow2",
    b"./image.qcow2",
    b"../image.qcow2",
    b"missing.raw",
    b".",
    b"/",
    b"/etc/passwd",
    b"/dev/zero",
    b"/proc/self/fd/0",
    b"json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}",
    b"nbd:127.0.0.1:10809",
    b"file:chain-base.raw",
    b"./a:b",
    b"chain-base.raw\0",
    b"\xff\xfe\x1b[31m",
];

fn backing(draft: &mut Draft, random: &mut Random) {
    let formats: [&[u8]; 6] = [b"raw", b"qcow2", b"", b"vmdk", b"RAW", b"raw\0"];
    let few = if random.once_in(3) { formats.len() } else { 2 };
    let (name, format) = (random.pick(&NAMES), random.pick(&formats[..few]));
    let start = draft.map.header_len;
    let mut added = Vec::new();
    if !format.is_empty() {
        added.extend(0xe279_2aca_u32.to_be_bytes());
        added.extend(u32::try_from(format.len()).unwrap().to_be_bytes());
        added.extend(format);
        added.resize(added.len().next_multiple_of(8), 0);
    }
    added.extend([0; 8]);
    let at = start + added.len() as u64;
    added.extend(name);
    if start + added.len() as u64 > draft.map.cluster {
        return;
    }
    draft.put(start, &added);
    draft.put_number(8, 8, at);
    draft.put_number(16, 4, name.len() as u64);
}

/// Flags at random; more often than not those that are known.
fn flags_of(random: &mut Random) -> u64 {
    match random.below(8) {
        0..=2 => COPIED,
        3 => 0,
        4 => COPIED | 1,
        5 => 1,
        6 => 1 << (56 + random.below(8)),
        _ => 1 << random.below(9),
    }
}

fn l1(draft: &mut Draft, random: &mut Random) {
    if draft.map.l1_count == 0 {
        return;
    }
    let at = draft.map.l1 + 8 * random.below(draft.map.l1_count);
    match random.below(4) {
        0 => {
            let bits = flags_of(random);
            draft.flip(at, 8, bits);
        }
        _ => {
            let value = draft.place(random) | flags_of(random);
            draft.put_number(at, 8, value);
        }
    }
}

/// The offset of an entry, more often than not of one that is used.
fn entry(draft: &Draft, random: &mut Random) -> Option<u64> {
    if !draft.map.used.is_empty() && !random.once_in(4) {
        return Some(random.pick(&draft.map.used));
    }
    let tables = &draft.map.tables;
    let index = random.below(draft.map.cluster / draft.map.entry_len());
    (!tables.is_empty()).then(|| random.pick(tables) + index * draft.map.entry_len())
}

fn l2(draft: &mut Draft, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let Some(at) = entry(draft, random) else { return };
        match random.below(5) {
            0 => {
                let bits = flags_of(random);
                draft.flip(at, 8, bits);
            }
            1 => draft.flip(at, 8, random.pick(&[COMPRESSED, COPIED, 1])),
            2 => {
                let Some(other) = entry(draft, random) else { return };
                let (one, two) = (draft.get(at, 8), draft.get(other, 8));
                draft.put_number(at, 8, two);
                if random.once_in(2) {
                    draft.put_number(other, 8, one);
                }
            }
            _ => {
                let value = draft.place(random) | flags_of(random);
                draft.put_number(at, 8, value);
            }
        }
    }
}

fn descriptor(draft: &mut Draft, random: &mut Random) {
    let Some(at) = entry(draft, random) else { return };
    let bits = 62 - (draft.map.cluster.ilog2() - 8);
    let old = draft.get(at, 8);
    let (mut host, mut sectors) = (old & ((1 << bits) - 1), (old & (COMPRESSED - 1)) >> bits);
    match random.below(3) {
        0 => host = draft.place(random).wrapping_add(random.below(draft.map.cluster)),
        1 => host = host.wrapping_add(random.pick(&[1, 2, 511, 512, u64::MAX, u64::MAX - 511])),
        _ => sectors = random.pick(&[0, sectors.wrapping_sub(1), sectors + 1, (1 << (62 - bits)) - 1]),
    }
    let host = host & ((1 << bits) - 1);
    draft.put_number(at, 8, COMPRESSED | (sectors << bits) & (COMPRESSED - 1) | host);
}

fn subclusters(draft: &mut Draft, random: &mut Random) {
    if !draft.map.extended {
        return l2(draft, random);
    }
    let Some(at) = entry(draft, random) else { return };
    let bitmap = match random.below(5) {
        0 => u64::from(u32::MAX),
        1 => u64::from(u32::MAX) << 32,
        2 => random.next() & u64::from(u32::MAX),
        3 => draft.get(at + 8, 8) ^ 1 << random.below(64),
        _ => {
            let data = random.next() & u64::from(u32::MAX);
            data | (!data & random.next() & u64::from(u32::MAX)) << 32
        }
    };
    draft.put_number(at + 8, 8, bitmap);
}

fn payload(draft: &mut Draft, random: &mut Random) {
    if draft.map.used.is_empty() {
        return blind(draft, random);
    }
    let bits = 62 - (draft.map.cluster.ilog2() - 8);
    for _ in 0..=random.below(3) {
        let word = draft.get(random.pick(&draft.map.used), 8);
        let near = random.pick(&[16, 2048]);
        let at = match word & COMPRESSED {
            0 => (word & ((1 << 56) - 512)) + random.below(draft.map.cluster),
            _ => (word & ((1 << bits) - 1)) + random.below(near),
        };
        match random.below(3) {
            0 => draft.flip(at, 1, 1 << random.below(8)),
            1 => draft.put(at, &[random.pick(&[0, 0xff, 0x28, 0x50])]),
            _ => {
                let bytes = random.bytes(8);
                draft.put(at, &bytes);
            }
        }
    }
}

fn cut(draft: &mut Draft, random: &mut Random) {
    let len = match random.below(6) {
        0 => random.pick(&[0, 1, 4, 71, 72, 73, 103, 104, 105, 111, 112, 200, 511, 512]),
        1 => draft.place(random),
        2 => draft.place(random).wrapping_sub(random.pick(&[1, 8, 512])),
        3 => draft.len().saturating_sub(1 + random.below(2 * draft.map.cluster)),
        4 => draft.len().saturating_sub(random.pick(&[1, 512, 513, 4096])),
        _ => random.below(draft.len() + 1),
    };
    draft.bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
}

fn blind(draft: &mut Draft, random: &mut Random) {
    if draft.bytes.is_empty() {
        return;
    }
    for _ in 0..1 + random.below(8) {
        let mut at = random.place(draft.bytes.len());
        // Most of an image is zeroes; where something is, more depends on it.
        for _ in 0..20 {
            if draft.bytes[at] == 0 {
                at = random.place(draft.bytes.len());
            }
        }
        draft.bytes[at] = match random.below(3) {
            0 => draft.bytes[at] ^ 1 << random.below(8),
            1 => 0xff,
            _ => random.byte(),
        };
    }
}

fn splice(draft: &mut Draft, other: &Draft, random: &mut Random) {
    let limit = draft.bytes.len().min(other.bytes.len());
    if limit == 0 {
        return;
    }
    match random.below(3) {
        0 => {
            // One's beginning, the other's end.
            let unit = usize::try_from(draft.map.cluster).unwrap();
            let at = (random.place(limit / unit + 1) * unit).min(limit);
            draft.bytes.truncate(at);
            draft.bytes.extend(&other.bytes[at..]);
        }
        1 => {
            let (start, len) = (random.place(limit), random.pick(&[8, 16, 512, 4096, 65536]));
            let end = (start + len).min(limit);
            draft.bytes[start..end].copy_from_slice(&other.bytes[start..end]);
        }
        _ => {
            // The tables or the data of the other in the place of what is here.
            let (from, to) = (other.place(random), draft.place(random));
            let from = usize::try_from(from).unwrap_or(usize::MAX).min(other.bytes.len());
            let end = from.saturating_add(usize::try_from(draft.map.cluster).unwrap()).min(other.bytes.len());
            draft.put(to, &other.bytes[from..end]);
        }
    }
}

fn refcounts(draft: &mut Draft, random: &mut Random) {
    let place = match random.below(4) {
        0 => draft.map.refcounts,
        _ => random.pick(&draft.map.refcount_blocks),
    };
    let at = place + random.below(64).min(draft.map.cluster - 8);
    let bytes = random.bytes(8);
    draft.put(at, &bytes);
}

fn flags(draft: &mut Draft, random: &mut Random) {
    match random.below(5) {
        0 if draft.map.version == 3 => draft.flip(72, 8, 1),
        1 if draft.map.version == 3 => draft.flip(80, 8, random.next()),
        2 if draft.map.version == 3 => draft.flip(88, 8, random.next() & !3),
        3 if !draft.map.tables.is_empty() => {
            // Whether a table is used once says nothing about what is in it.
            for index in 0..draft.map.l1_count {
                let at = draft.map.l1 + 8 * index;
                if draft.get(at, 8) != 0 && random.once_in(2) {
                    draft.flip(at, 8, COPIED);
                }
            }
        }
        _ => {
            for at in draft.map.used.clone() {
                let word = draft.get(at, 8);
                if word & COMPRESSED == 0 && word & ((1 << 56) - 512) != 0 && random.once_in(2) {
                    draft.flip(at, 8, COPIED);
                }
            }
        }
    }
}

/// Names, times, sizes and tables of snapshots: all but where the table lies.
fn snapshots(draft: &mut Draft, random: &mut Random) {
    if draft.map.snapshot_count == 0 {
        return refcounts(draft, random);
    }
    let at = draft.map.snapshots + random.below(40 * draft.map.snapshot_count);
    let bytes = random.bytes(8);
    draft.put(at, &bytes);
}
