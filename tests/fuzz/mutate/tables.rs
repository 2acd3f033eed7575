//! Damage to the entries of L1 and L2 tables.

use crate::draft::{COMPRESSED, COPIED, Draft};
use crate::random::Random;

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

pub(super) fn l1(draft: &mut Draft, random: &mut Random) {
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

pub(super) fn l2(draft: &mut Draft, random: &mut Random) {
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

pub(super) fn descriptor(draft: &mut Draft, random: &mut Random) {
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

pub(super) fn subclusters(draft: &mut Draft, random: &mut Random) {
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
