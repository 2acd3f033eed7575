//! Damage to the header, its extensions, and the name of the file below.

use crate::draft::Draft;
use crate::random::Random;

/// Every field's place and length, and whether it is an offset.
pub(crate) const FIELDS: [(u64, usize, bool); 15] = [
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
];

pub(super) fn header(draft: &mut Draft, random: &mut Random) {
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

pub(super) fn features(draft: &mut Draft, random: &mut Random) {
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

pub(crate) const EXTENSIONS: [u64; 7] =
    [0, 0xe279_2aca, 0x6803_f857, 0x2385_2875, 0x0537_be77, 0x4441_5441, 0x1234_5678];

/// One more extension before those that are there, or one of them changed.
pub(super) fn extension(draft: &mut Draft, random: &mut Random) {
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

pub(super) fn backing(draft: &mut Draft, random: &mut Random) {
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
