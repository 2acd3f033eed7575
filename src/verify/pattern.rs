//! What bytes that did not read back right look like: a hint at what went wrong on their way.

use serde::Serialize;

use super::Digest;

/// The smallest unit that a disk writes or loses.
const SECTOR: usize = 512;
/// Fewer bytes than this are found elsewhere by chance.
const LEAST_SHIFTED: usize = 32;

/// What bytes that did not read back right look like.
///
/// ```
/// let json = serde_json::to_string(&reimage::Pattern::Shifted { by: 512 }).unwrap();
/// assert_eq!(json, r#"{"kind":"shifted","by":512}"#);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Pattern {
    /// The piece is as it was before this run wrote to it.
    OldContents,
    /// One bit of all is wrong.
    SingleBit {
        /// Which bit of its byte, the least significant is 0.
        bit: u8,
    },
    /// Everything that is wrong reads as zero.
    Zeroes,
    /// The right bytes, but from the first wrong one to the last at another place.
    Shifted {
        /// How many bytes further back than where they belong; negative: further ahead.
        by: i64,
    },
    /// Sectors of 512 bytes hold something else and all others are right, as if writes had not reached the disk.
    WholeSectors,
    /// None of these.
    Other,
}

impl Pattern {
    /// The pattern as a clause.
    pub(crate) fn in_words(self) -> String {
        match self {
            Self::OldContents => "the piece is as it was before this run".to_owned(),
            Self::SingleBit { bit } => format!("bit {bit} of it, and nothing else, is wrong"),
            Self::Zeroes => "what is wrong reads as zero".to_owned(),
            Self::Shifted { by } => format!("the right bytes are there, shifted by {by}"),
            Self::WholeSectors => "whole sectors hold something else".to_owned(),
            Self::Other => "it looks like nothing that is known".to_owned(),
        }
    }
}

/// Where the first wrong byte is, and what the wrong ones look like; `None` when all are right.
///
/// `old` is the digest of the whole piece before it was written, where that is known. Takes time and memory in
/// proportion to the piece, whatever it holds.
pub(crate) fn classify(right: &[u8], found: &[u8], old: Option<Digest>) -> Option<(u64, Pattern)> {
    assert_eq!(right.len(), found.len(), "what was found is as long as what is right");
    let differs = |at: &usize| right[*at] != found[*at];
    let first = (0..right.len()).find(differs)?;
    let last = (0..right.len()).rfind(differs).expect("a byte differs");
    let wrong = || (first..=last).filter(differs);
    let bits = right[first] ^ found[first];
    let pattern = if old.is_some_and(|old| old == Digest::of(found)) {
        Pattern::OldContents
    } else if first == last && bits.is_power_of_two() {
        Pattern::SingleBit { bit: u8::try_from(bits.trailing_zeros()).expect("a byte has eight bits") }
    } else if wrong().all(|at| found[at] == 0) {
        Pattern::Zeroes
    } else if let Some(by) = shift(right, &found[first..=last], first) {
        Pattern::Shifted { by }
    } else if are_whole_sectors(right, found) {
        Pattern::WholeSectors
    } else {
        Pattern::Other
    };
    Some((first as u64, pattern))
}

/// By how much `found`, which lies at `first`, is away from where it lies in `right`.
///
/// Of several places the nearest by whole sectors is told, else the nearest. A part that would come from outside of
/// `right` cannot be compared: at least half must lie within, and be more than one byte over and over.
fn shift(right: &[u8], found: &[u8], first: usize) -> Option<i64> {
    if found.len() < LEAST_SHIFTED {
        return None;
    }
    let ahead = places(found, right).map(|place| signed(first) - signed(place));
    let ahead = ahead.filter(|by| *by != 0).min_by_key(order);
    // The same from the ends: what would come from before `right` begins cannot be compared either.
    let backwards = |bytes: &[u8]| bytes.iter().rev().copied().collect::<Vec<_>>();
    let (end, len) = (first + found.len(), right.len());
    let behind = places(&backwards(found), &backwards(right));
    let behind = behind.map(|place| signed(end) - signed(len - place));
    let behind = behind.filter(|by| *by != 0).min_by_key(order);
    ahead.into_iter().chain(behind).min_by_key(order)
}

/// Whole sectors come first, then what is near.
fn order(by: &i64) -> (bool, u64, bool) {
    (by % signed(SECTOR) != 0, by.unsigned_abs(), *by < 0)
}

fn signed(index: usize) -> i64 {
    i64::try_from(index).expect("a chunk fits in memory")
}

fn to_index(bytes: u32) -> usize {
    usize::try_from(bytes).expect("a chunk fits in memory")
}

/// Where in `text` the pattern is, to its end or to the text's.
fn places(pattern: &[u8], text: &[u8]) -> impl Iterator<Item = usize> + use<> {
    let (len, text_len) = (pattern.len(), text.len());
    let uniform = pattern.iter().take_while(|byte| **byte == pattern[0]).count();
    // A pattern that is one byte over and over is everywhere and nowhere.
    let least = (len / 2).max(LEAST_SHIFTED).max(uniform + 1);
    let same = common_prefixes(pattern, text).into_iter().map(to_index).enumerate();
    let there = same.filter(move |(at, same)| *same >= least && (*same == len || at + same == text_len));
    there.map(|(at, _)| at)
}

/// For every place of `text`, how many bytes of `pattern` are there (the Z algorithm: linear, whatever the bytes).
fn common_prefixes(pattern: &[u8], text: &[u8]) -> Vec<u32> {
    let all = [pattern, text].concat();
    let mut same = vec![0_u32; all.len()];
    // The stretch that reaches furthest of those known to equal the head.
    let (mut start, mut end) = (0, 0);
    for at in 1..all.len() {
        let known = if at < end { to_index(same[at - start]).min(end - at) } else { 0 };
        let more = all[at + known..].iter().zip(&all[known..]).take_while(|(one, other)| one == other);
        let here = known + more.count();
        if at + here > end {
            (start, end) = (at, at + here);
        }
        same[at] = u32::try_from(here).expect("a chunk fits in memory");
    }
    let most = u32::try_from(pattern.len()).expect("a chunk fits in memory");
    same.drain(..pattern.len());
    same.iter_mut().for_each(|same| *same = most.min(*same));
    same
}

/// Whether each sector is right, or wrong in most of its bytes.
fn are_whole_sectors(right: &[u8], found: &[u8]) -> bool {
    right.chunks(SECTOR).zip(found.chunks(SECTOR)).all(|(right, found)| {
        let wrong = right.iter().zip(found).filter(|(right, found)| right != found).count();
        wrong == 0 || wrong > right.len() / 2
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 1 << 18;

    /// Bytes without a period.
    fn noise(len: usize, rng_seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&rng_seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// What is right, with a part replaced by other bytes.
    fn with(right: &[u8], at: usize, other: &[u8]) -> Vec<u8> {
        let mut found = right.to_vec();
        found[at..at + other.len()].copy_from_slice(other);
        found
    }

    #[track_caller]
    fn check(right: &[u8], found: &[u8], expected: Option<(u64, Pattern)>) {
        assert_eq!(classify(right, found, None), expected);
        assert_eq!(classify(right, found, Some(Digest::of(b"another"))), expected);
        let old = expected.map(|(first, _)| (first, Pattern::OldContents));
        assert_eq!(classify(right, found, Some(Digest::of(found))), old);
    }

    #[test]
    fn what_is_wrong_is_told_from_the_bytes_alone() {
        use Pattern::{Other, SingleBit, WholeSectors, Zeroes};
        let right = noise(LEN, 1);
        check(&[], &[], None);
        check(&right, &right, None);
        for at in [0, 1, 511, 512, LEN - 1] {
            for bit in 0..8 {
                let found = with(&right, at, &[right[at] ^ (1 << bit)]);
                check(&right, &found, Some((at as u64, SingleBit { bit })));
            }
            check(&right, &with(&right, at, &[right[at] ^ 3]), Some((at as u64, Other)));
        }
        check(&[0, 0], &[0, 0x80], Some((1, SingleBit { bit: 7 })));
        check(&[0xff, 0xff], &[0, 0], Some((0, Zeroes)));
        check(&right, &vec![0; LEN], Some((u64::from(right[0] == 0), Zeroes)));
        let sparse = with(&vec![0; LEN], 5000, &[1, 0, 0, 7]);
        check(&sparse, &vec![0; LEN], Some((5000, Zeroes)));
        check(&right, &with(&right, 4096, &noise(1024, 2)), Some((4096, WholeSectors)));
        check(&right, &noise(LEN, 2), Some((0, WholeSectors)));
        check(&right[..700], &with(&right[..700], 512, &noise(188, 2)), Some((512, WholeSectors)));
        check(&right, &with(&right, 4096, &noise(200, 2)), Some((4096, Other)));
        check(&right, &with(&right, 4000, &noise(512, 2)), Some((4000, Other)));
    }

    #[test]
    fn right_bytes_at_another_place_are_found_however_far_they_were_moved() {
        let right = noise(LEN, 1);
        for by in [1_i64, -1, 7, 512, -512, 4096, 3000, -100_000] {
            let source = |at: usize| usize::try_from(signed(at) - by).unwrap();
            let (from, to) = (120_000, 130_000);
            let found = with(&right, from, &right[source(from)..source(to)]);
            let (first, pattern) = classify(&right, &found, None).unwrap();
            assert!((from as u64..from as u64 + 8).contains(&first));
            assert_eq!(pattern, Pattern::Shifted { by });
        }
        // The whole piece: what comes from its neighbours is not known.
        let around = noise(LEN + 8192, 1);
        for by in [512, -512, 4096, -3] {
            let from = usize::try_from(4096 - by).unwrap();
            let (right, found) = (&around[4096..4096 + LEN], &around[from..from + LEN]);
            assert_eq!(classify(right, found, None).unwrap().1, Pattern::Shifted { by });
        }
    }

    #[test]
    fn of_several_places_the_nearest_by_whole_sectors_is_told() {
        let periodic = |period: u8| (0..period).cycle().take(LEN).collect::<Vec<_>>();
        let shifted = |period: u8, at: usize| periodic(period)[at..][..65_536].to_vec();
        // No number of whole sectors is a number of periods of 96 and seven more; of 32 more it may be.
        let right = periodic(96);
        check(&right, &with(&right, 96 * 64, &shifted(96, 7)), Some((96 * 64, Pattern::Shifted { by: -7 })));
        check(
            &right,
            &with(&right, 96 * 64, &shifted(96, 32)),
            Some((96 * 64, Pattern::Shifted { by: -512 })),
        );
        let right = periodic(251);
        let (first, pattern) = classify(&right, &with(&right, 251 * 64, &shifted(251, 7)), None).unwrap();
        let Pattern::Shifted { by } = pattern else { panic!("{pattern:?}") };
        assert_eq!((first, by % 512, by.rem_euclid(251)), (251 * 64, 0, 251 - 7));
    }

    #[test]
    fn one_byte_over_and_over_is_nowhere_else() {
        let filled = vec![0xaa; LEN];
        check(&filled, &with(&filled, 8192, &[0xbb; 512]), Some((8192, Pattern::WholeSectors)));
        let halves = [vec![0xaa; LEN / 2], vec![0xbb; LEN / 2]].concat();
        check(&halves, &with(&halves, 8192, &[0xbb; 1024]), Some((8192, Pattern::WholeSectors)));
        check(&halves, &with(&halves, 8200, &[0xbb; 40]), Some((8200, Pattern::Other)));
        check(&vec![0; LEN], &vec![0xff; LEN], Some((0, Pattern::WholeSectors)));
        check(
            &noise(600, 1),
            &with(&noise(600, 1), 9, &noise(600, 1)[64..][..31]),
            Some((9, Pattern::Other)),
        );
    }

    #[test]
    fn contents_made_to_be_slow_are_not() {
        let mut ending = vec![0xaa; 1 << 20];
        ending[(1 << 20) - 1] = 1;
        let mut beginning = vec![0xaa; 1 << 20];
        beginning[0] = 1;
        let started = std::time::Instant::now();
        for (right, found) in [(&ending, &beginning), (&beginning, &ending)] {
            classify(right, found, None).unwrap();
        }
        let alternating: Vec<u8> = [1, 2].repeat(LEN / 2);
        classify(&alternating, &with(&alternating, 0, &alternating[1..]), None).unwrap();
        // A comparison of every place with every other would take hours.
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    }
}
