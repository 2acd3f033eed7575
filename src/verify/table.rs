//! The digests of a disk's chunks, and the one root that stands for all of them.

use std::collections::BTreeMap;

use super::Digest;
use crate::range::ByteRange;

/// Bytes of a chunk: the unit of reading, digesting, writing and checking.
///
/// Chosen by measuring 1, 2 and 4 MiB (ARCHITECTURE.md, "Measured").
pub(crate) const CHUNK: u64 = CHUNK_LEN as u64;
/// The same, to index with.
pub(crate) const CHUNK_LEN: usize = 1 << 20;

/// The digests of a disk's chunks that are not all zero.
///
/// It takes 40 bytes a chunk with data: 40 MiB for each TiB of data, whatever the virtual size is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DigestTable {
    virtual_size: u64,
    digests: Vec<(u64, Digest)>,
    sorted: bool,
}

impl DigestTable {
    /// A table without any digest, which stands for a disk of zeroes.
    pub(crate) fn new(virtual_size: u64) -> Self {
        Self { virtual_size, digests: Vec::new(), sorted: true }
    }

    /// A table of what was noted in that order; of several digests of one chunk the last one counts.
    pub(crate) fn of_notes(virtual_size: u64, mut notes: Vec<(u64, Digest)>) -> Self {
        notes.reverse();
        notes.sort_by_key(|(index, _)| *index);
        notes.dedup_by_key(|(index, _)| *index);
        Self { virtual_size, digests: notes, sorted: true }
    }

    /// A table of chunks that ascend and lie on the disk.
    pub(super) fn of_sorted(virtual_size: u64, digests: Vec<(u64, Digest)>) -> Self {
        Self { virtual_size, digests, sorted: true }
    }

    /// Index and digest of each chunk with data, in order.
    pub(super) fn chunks(&self) -> &[(u64, Digest)] {
        assert!(self.sorted, "a table is sorted before it is asked");
        &self.digests
    }

    /// The size of the disk.
    pub(crate) fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Says how long the disk is, where that was not known before its chunks came.
    ///
    /// # Errors
    ///
    /// With a chunk that is not on that disk.
    pub(crate) fn end_at(&mut self, virtual_size: u64) -> Result<(), ByteRange> {
        if let Some((index, _)) = self.digests.iter().find(|(index, _)| index * CHUNK >= virtual_size) {
            return Err(self.range(*index));
        }
        self.virtual_size = virtual_size;
        Ok(())
    }

    /// How many chunks hold data.
    pub(crate) fn len(&self) -> usize {
        self.digests.len()
    }

    /// The first chunk with data that shares a byte with `range`.
    pub(crate) fn first_in(&self, range: ByteRange) -> Option<ByteRange> {
        let place = self.chunks().partition_point(|(index, _)| self.range(*index).end() <= range.start());
        let chunk = self.range(self.digests.get(place)?.0);
        chunk.intersection(range).map(|_| chunk)
    }

    /// Notes the digest of the chunk at `range`; each chunk once, in any order.
    pub(crate) fn insert(&mut self, range: ByteRange, digest: Digest) {
        assert!(range.start().is_multiple_of(CHUNK), "a chunk starts at a multiple of its size");
        self.digests.push((range.start() / CHUNK, digest));
        self.sorted = false;
    }

    /// Makes the table ready to be asked.
    pub(crate) fn sort(&mut self) {
        self.digests.sort_unstable_by_key(|(index, _)| *index);
        assert!(self.digests.is_sorted_by(|left, right| left.0 < right.0), "no chunk was digested twice");
        self.sorted = true;
    }

    /// Where the chunk of that index lies.
    pub(crate) fn range(&self, index: u64) -> ByteRange {
        ByteRange::between(index * CHUNK, ((index + 1) * CHUNK).min(self.virtual_size))
    }

    /// The chunks with data, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ByteRange, Digest)> {
        assert!(self.sorted, "a table is sorted before it is asked");
        self.digests.iter().map(|(index, digest)| (self.range(*index), *digest))
    }

    /// The digest of the chunk that holds `offset`; `None` for zeroes.
    pub(crate) fn get(&self, offset: u64) -> Option<Digest> {
        assert!(self.sorted, "a table is sorted before it is asked");
        let place = self.digests.binary_search_by_key(&(offset / CHUNK), |(index, _)| *index).ok()?;
        Some(self.digests[place].1)
    }

    /// The root: BLAKE3 of the virtual size, the chunk size, and index and digest of each chunk with data,
    /// all numbers as 8 bytes, least significant first.
    pub(crate) fn root(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.virtual_size.to_le_bytes()).update(&CHUNK.to_le_bytes());
        for (range, digest) in self.iter() {
            hasher.update(&(range.start() / CHUNK).to_le_bytes()).update(digest.as_bytes());
        }
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }
}

/// The ordinary BLAKE3 of a whole disk, put together from chunks that were hashed in any order.
///
/// BLAKE3 is a binary tree: a chunk of a power of two bytes at a multiple of its size is a subtree, whose
/// chaining value depends on its offset. Values that come early wait until their left neighbours are there.
pub(crate) struct WholeDigester {
    disk_size: u64,
    stack: Vec<[u8; 32]>,
    next: u64,
    early: BTreeMap<u64, [u8; 32]>,
}

impl WholeDigester {
    /// For a disk of `disk_size` bytes.
    pub(crate) fn new(disk_size: u64) -> Self {
        Self { disk_size, stack: Vec::new(), next: 0, early: BTreeMap::new() }
    }

    /// The value of the chunk at `range` that `insert` wants; the caller may be any thread.
    pub(crate) fn chaining_value(disk_size: u64, range: ByteRange, bytes: &[u8]) -> [u8; 32] {
        use blake3::hazmat::HasherExt;
        if range.len() == disk_size {
            return *blake3::hash(bytes).as_bytes();
        }
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(range.start());
        hasher.update(bytes).finalize_non_root()
    }

    /// Takes the value of the chunk at `range`; each chunk once, in any order.
    pub(crate) fn insert(&mut self, range: ByteRange, value: [u8; 32]) {
        self.early.insert(range.start() / CHUNK, value);
        while let Some(value) = self.early.remove(&self.next) {
            // As many subtrees stay unmerged as the count of chunks before has bits.
            while self.stack.len() > usize::try_from(self.next.count_ones()).expect("64 at most") {
                self.merge_last_two();
            }
            self.stack.push(value);
            self.next += 1;
        }
    }

    fn merge_last_two(&mut self) {
        let right = self.stack.pop().expect("two subtrees wait");
        let left = self.stack.pop().expect("two subtrees wait");
        self.stack.push(blake3::hazmat::merge_subtrees_non_root(&left, &right, blake3::hazmat::Mode::Hash));
    }

    /// Says how long the disk is, where that was not known before its chunks came.
    pub(crate) fn end_at(&mut self, disk_size: u64) {
        self.disk_size = disk_size;
    }

    /// The digest, when every chunk is there.
    pub(crate) fn finish(mut self) -> Digest {
        assert_eq!(self.next, self.disk_size.div_ceil(CHUNK), "every chunk was hashed");
        while self.stack.len() > 2 {
            self.merge_last_two();
        }
        match self.stack.as_slice() {
            [] => Digest::of(&[]),
            [only] => Digest::from_bytes(*only),
            [left, right, ..] => {
                let mode = blake3::hazmat::Mode::Hash;
                Digest::from_bytes(*blake3::hazmat::merge_subtrees_root(left, right, mode).as_bytes())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_of(len: usize) -> Vec<u8> {
        (0..len).map(|at| if at / 100_000 % 3 == 0 { 0 } else { (at * 7 % 251).to_le_bytes()[0] }).collect()
    }

    #[test]
    fn the_root_is_that_of_a_slow_plain_function() {
        fn plain(disk: &[u8]) -> Digest {
            let mut table = Vec::new();
            table.extend((disk.len() as u64).to_le_bytes());
            table.extend(CHUNK.to_le_bytes());
            for (index, chunk) in disk.chunks(CHUNK_LEN).enumerate() {
                if chunk.iter().any(|byte| *byte != 0) {
                    table.extend((index as u64).to_le_bytes());
                    table.extend(blake3::hash(chunk).as_bytes());
                }
            }
            Digest::of(&table)
        }
        for len in [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 3 * CHUNK_LEN + 77] {
            let mut disk = disk_of(len);
            if let Some(second) = disk.chunks_mut(CHUNK_LEN).nth(1) {
                second.fill(0);
            }
            let mut table = DigestTable::new(len as u64);
            for (index, chunk) in disk.chunks(CHUNK_LEN).enumerate().collect::<Vec<_>>().into_iter().rev() {
                if chunk.iter().any(|byte| *byte != 0) {
                    table.insert(table.range(index as u64), Digest::of(chunk));
                }
            }
            table.sort();
            assert_eq!(table.root(), plain(&disk), "{len} bytes");
        }
    }

    #[test]
    fn a_disk_that_ends_where_its_chunks_do_has_the_same_root_and_one_that_ends_before_is_told() {
        let digest = |index: u64| Digest::of(&index.to_le_bytes());
        let (mut early, mut late) = (DigestTable::new(2 * CHUNK + 5), DigestTable::new(u64::MAX >> 1));
        for index in [2, 0] {
            let start = index * CHUNK;
            early.insert(ByteRange::between(start, (start + CHUNK).min(2 * CHUNK + 5)), digest(index));
            late.insert(ByteRange::new(start, 1), digest(index));
        }
        assert_eq!(late.end_at(2 * CHUNK), Err(ByteRange::new(2 * CHUNK, CHUNK)));
        assert_eq!(late.end_at(2 * CHUNK + 5), Ok(()));
        early.sort();
        late.sort();
        assert_eq!(late.root(), early.root());
    }

    #[test]
    fn the_whole_digest_is_that_of_b3sum_in_whatever_order_the_chunks_come() {
        let chunk = CHUNK_LEN;
        for len in [0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk, 3 * chunk, 5 * chunk + 77, 8 * chunk] {
            let disk = disk_of(len);
            // Where a chunk is not all of the disk, its value does not depend on how long that is.
            let mut whole = WholeDigester::new(u64::MAX);
            whole.end_at(len as u64);
            let mut order: Vec<_> = disk.chunks(chunk).enumerate().collect();
            order.rotate_left(usize::from(len > 3 * chunk) * 2);
            order.reverse();
            for (index, bytes) in order {
                let range = ByteRange::new(index as u64 * CHUNK, bytes.len() as u64);
                whole.insert(range, WholeDigester::chaining_value(len as u64, range, bytes));
            }
            assert_eq!(whole.finish(), Digest::of(&disk), "{len} bytes");
        }
    }
}
