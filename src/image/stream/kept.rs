//! What is kept of a stream while it passes: pieces for who comes a little late, and blocks that are wanted again.

use std::collections::{BTreeMap, VecDeque};

use crate::range::ByteRange;

/// What is decoded at once.
pub(super) const PIECE: u64 = 1 << 20;
/// How many pieces wait for who asked for them earlier and comes later: one for each thread of a pool.
const RECENT: usize = 12;
/// What is kept is kept in blocks.
const BLOCK: u64 = 16 << 10;
/// 8 MiB.
const MOST_BLOCKS: usize = 512;

/// The pieces that were decoded last.
#[derive(Default)]
pub(super) struct Recent {
    pieces: VecDeque<(u64, Vec<u8>)>,
}

impl Recent {
    /// A buffer for the next piece; the oldest is given up for it.
    pub(super) fn make_room(&mut self) -> Vec<u8> {
        let oldest = if self.pieces.len() < RECENT { None } else { self.pieces.pop_front() };
        oldest.map(|(_, buffer)| buffer).unwrap_or_default()
    }

    pub(super) fn push(&mut self, start: u64, bytes: Vec<u8>) {
        self.pieces.push_back((start, bytes));
    }

    /// The piece that begins at `start`, if it is here.
    pub(super) fn piece(&self, start: u64) -> Option<&[u8]> {
        let piece = self.pieces.iter().rev().find(|(at, _)| *at == start);
        piece.map(|(_, bytes)| bytes.as_slice())
    }

    /// Copies a range of the disk, if all of it is here.
    pub(super) fn copy(&self, range: ByteRange, buffer: &mut [u8]) -> bool {
        range.cut(PIECE).all(|part| {
            let start = part.start() / PIECE * PIECE;
            let bytes = self.piece(start).and_then(|bytes| bytes.get(place(start, part)));
            bytes.map(|bytes| buffer[place(range.start(), part)].copy_from_slice(bytes)).is_some()
        })
    }
}

/// Blocks of the disk that are kept to the end; which ones is said before they come.
#[derive(Default)]
pub(super) struct Blocks {
    /// By the offset of their first byte; `None` until they come.
    blocks: BTreeMap<u64, Option<Vec<u8>>>,
}

impl Blocks {
    /// Keeps what of `range` is still to come, as far as there is room.
    pub(super) fn want(&mut self, range: ByteRange, behind: u64) {
        let first = range.start() / BLOCK * BLOCK;
        let mut starts = (first..range.end()).step_by(usize::try_from(BLOCK).expect("a block is short"));
        while let Some(start) = starts.next().filter(|_| self.blocks.len() < MOST_BLOCKS) {
            if start >= behind {
                self.blocks.entry(start).or_default();
            }
        }
    }

    /// Keeps what is wanted of a piece, which begins where a block does; whether that was anything.
    pub(super) fn take_in(&mut self, start: u64, bytes: &[u8]) -> bool {
        let range = ByteRange::new(start, bytes.len() as u64);
        let mut any = false;
        for (at, block) in self.blocks.range_mut(range.start()..range.end()) {
            let part = ByteRange::between(*at, range.end().min(at + BLOCK));
            *block = Some(bytes[place(start, part)].to_vec());
            any = true;
        }
        any
    }

    /// Keeps a piece whole, whatever room there is: the end of the disk.
    pub(super) fn add(&mut self, start: u64, bytes: &[u8]) {
        for part in ByteRange::new(start, bytes.len() as u64).cut(BLOCK) {
            self.blocks.insert(part.start(), Some(bytes[place(start, part)].to_vec()));
        }
    }

    /// Gives up what was wanted and did not come.
    pub(super) fn close(&mut self) {
        self.blocks.retain(|_, block| block.is_some());
    }

    /// Whether all of a range is here.
    pub(super) fn holds(&self, range: ByteRange) -> bool {
        let is_here = |part: ByteRange| {
            let start = part.start() / BLOCK * BLOCK;
            let block = self.blocks.get(&start).and_then(Option::as_ref);
            block.is_some_and(|block| start + block.len() as u64 >= part.end())
        };
        // A hole is found at once, however long the range is.
        range.cut(BLOCK).all(is_here)
    }

    /// Copies what is here of a range, and puts zeroes in place of the rest; whether all of it was here.
    pub(super) fn copy(&self, range: ByteRange, buffer: &mut [u8]) -> bool {
        let mut all = true;
        for part in range.cut(BLOCK) {
            let start = part.start() / BLOCK * BLOCK;
            let block = self.blocks.get(&start).and_then(Option::as_ref);
            let to = &mut buffer[place(range.start(), part)];
            match block.and_then(|block| block.get(place(start, part))) {
                Some(bytes) => to.copy_from_slice(bytes),
                None => {
                    to.fill(0);
                    all = false;
                }
            }
        }
        all
    }
}

/// Where a part lies in a buffer that begins with the disk's byte `start`.
fn place(start: u64, part: ByteRange) -> std::ops::Range<usize> {
    let index = |offset: u64| usize::try_from(offset - start).expect("it lies in memory");
    index(part.start())..index(part.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(range: ByteRange) -> Vec<u8> {
        (range.start()..range.end()).map(|at| (at / 7 % 251) as u8).collect()
    }

    #[test]
    fn what_was_decoded_last_is_there_and_what_came_before_is_not() {
        let mut recent = Recent::default();
        for number in 0..RECENT as u64 + 2 {
            let range = ByteRange::new(number * PIECE, if number == 9 { 100 } else { PIECE });
            let mut buffer = recent.make_room();
            buffer.clear();
            buffer.extend(bytes(range));
            recent.push(range.start(), buffer);
        }
        for (start, len, is_there) in [(PIECE, 10, false), (2 * PIECE, 10, true), (5 * PIECE - 3, 9, true)] {
            let range = ByteRange::new(start, len);
            let mut buffer = [0; 10];
            let buffer = &mut buffer[..usize::try_from(len).unwrap()];
            assert_eq!(recent.copy(range, buffer), is_there, "{range}");
            assert_eq!(buffer == bytes(range), is_there, "{range}");
        }
        assert!(!recent.copy(ByteRange::new(9 * PIECE + 99, 2), &mut [0; 2]), "it ends before");
    }

    #[test]
    fn what_was_wanted_is_kept_and_the_rest_reads_as_zeroes() {
        let mut kept = Blocks::default();
        kept.want(ByteRange::new(BLOCK + 5, BLOCK), 0);
        kept.want(ByteRange::new(0, 1), BLOCK);
        kept.want(ByteRange::new(PIECE, 1), 0);
        let piece = bytes(ByteRange::new(0, PIECE));
        assert!(kept.take_in(0, &piece));
        kept.close();
        let check = |start: u64, len: u64| {
            let range = ByteRange::new(start, len);
            let mut buffer = vec![9; usize::try_from(len).unwrap()];
            (kept.copy(range, &mut buffer), buffer == bytes(range))
        };
        assert_eq!(check(BLOCK, 2 * BLOCK), (true, true));
        assert_eq!(check(BLOCK - 1, 2), (false, false));
        assert_eq!(check(PIECE, 1), (false, false));
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let mut kept = Blocks::default();
        kept.want(ByteRange::new(0, u64::MAX - BLOCK), 0);
        assert_eq!(kept.blocks.len(), MOST_BLOCKS);
        kept.add(1 << 40, &bytes(ByteRange::new(0, PIECE)));
        assert_eq!(kept.blocks.len(), MOST_BLOCKS + 64);
    }
}
