//! Damage to what the tables lead to, to the file as a whole, and to what nobody reads.

use crate::draft::{COMPRESSED, COPIED, Draft};
use crate::random::Random;

pub(super) fn payload(draft: &mut Draft, random: &mut Random) {
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

pub(super) fn cut(draft: &mut Draft, random: &mut Random) {
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

pub(super) fn blind(draft: &mut Draft, random: &mut Random) {
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

pub(super) fn splice(draft: &mut Draft, other: &Draft, random: &mut Random) {
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

pub(super) fn refcounts(draft: &mut Draft, random: &mut Random) {
    let place = match random.below(4) {
        0 => draft.map.refcounts,
        _ => random.pick(&draft.map.refcount_blocks),
    };
    let at = place + random.below(64).min(draft.map.cluster - 8);
    let bytes = random.bytes(8);
    draft.put(at, &bytes);
}

pub(super) fn flags(draft: &mut Draft, random: &mut Random) {
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
pub(super) fn snapshots(draft: &mut Draft, random: &mut Random) {
    if draft.map.snapshot_count == 0 {
        return refcounts(draft, random);
    }
    let at = draft.map.snapshots + random.below(40 * draft.map.snapshot_count);
    let bytes = random.bytes(8);
    draft.put(at, &bytes);
}
