//! The new file's space: clusters are given out front to back, and what uses them is counted.

use super::parts::{FilePart, Parts};
use super::refcounts::Refcounts;
use super::{RefcountsPlaced, big_endian};
use crate::range::ByteRange;

/// The space that was given out so far; nothing is ever given back.
pub(super) struct Space {
    cluster_size: u64,
    /// The number of the first cluster that was not given out.
    next: u64,
    /// The number of the first cluster of which no user was counted.
    uncounted: u64,
    refcounts: Refcounts,
    tail: Option<Tail>,
    parts: Parts,
}

/// The cluster that compressed ones are being packed into.
struct Tail {
    cluster: u64,
    bytes: Vec<u8>,
}

impl Space {
    /// A file with a header cluster.
    pub(super) fn new(cluster_bits: u32) -> Self {
        let cluster_size = 1 << cluster_bits;
        let refcounts = Refcounts::new(cluster_size);
        let parts = Parts::default();
        let mut space = Self { cluster_size, next: 0, uncounted: 0, refcounts, tail: None, parts };
        space.give_out(1);
        space
    }

    /// Puts bytes into clusters of their own, one behind the other; returns their offset.
    pub(super) fn put(&mut self, bytes: &[u8]) -> u64 {
        let len = bytes.len() as u64;
        let offset = self.next * self.cluster_size;
        self.parts.put(offset, bytes);
        let clusters = len.div_ceil(self.cluster_size);
        let padding = clusters * self.cluster_size - len;
        if padding > 0 {
            self.parts.put(offset + len, &vec![0; to_index(padding)]);
        }
        self.give_out(clusters);
        offset
    }

    /// Puts a compressed cluster behind the one before it, as far as the space there allows; returns its offset.
    ///
    /// It fits into what is left of a cluster, or goes on into the next one where that is free.
    pub(super) fn pack(&mut self, bytes: &[u8]) -> u64 {
        assert!(
            !bytes.is_empty() && (bytes.len() as u64) < self.cluster_size,
            "a compressed cluster is shorter"
        );
        let fits = |tail: &Tail| {
            let room = self.cluster_size - tail.bytes.len() as u64;
            bytes.len() as u64 <= room || tail.cluster + 1 == self.next
        };
        if self.tail.as_ref().is_some_and(fits) {
            let shared = self.tail.as_ref().map(|tail| tail.cluster);
            self.refcounts.add(shared.expect("there is a tail"));
        } else {
            self.close_tail();
            self.open_tail();
        }
        let tail = self.tail.as_mut().expect("there is a tail");
        let offset = tail.cluster * self.cluster_size + tail.bytes.len() as u64;
        let room = to_index(self.cluster_size) - tail.bytes.len();
        let (head, rest) = bytes.split_at(room.min(bytes.len()));
        tail.bytes.extend_from_slice(head);
        if head.len() == room {
            self.close_tail();
        }
        if !rest.is_empty() {
            self.open_tail();
            self.tail.as_mut().expect("there is a tail").bytes.extend_from_slice(rest);
        }
        offset
    }

    /// The parts that are complete.
    pub(super) fn take_parts(&mut self) -> Vec<FilePart> {
        self.parts.take_complete()
    }

    /// Takes parts that were written, whose memory serves again.
    pub(super) fn take_back(&mut self, parts: Vec<FilePart>) {
        self.parts.take_back(parts);
    }

    /// Puts the refcounts behind everything else.
    pub(super) fn finish(mut self) -> (Vec<FilePart>, RefcountsPlaced) {
        self.close_tail();
        let clusters = self.table_clusters();
        let table = ByteRange::new(self.next * self.cluster_size, clusters * self.cluster_size);
        self.give_out(clusters);
        // Where the last block lies is counted in it, or in one behind it, which is the last one then.
        let offset = self.next * self.cluster_size;
        self.give_out(1);
        let block = self.refcounts.turn(offset);
        self.parts.put(offset, &block);
        let mut entries = big_endian(&self.refcounts.into_table());
        assert!(entries.len() as u64 <= table.len(), "the refcount table has room for every block");
        entries.resize(to_index(table.len()), 0);
        self.parts.put(table.start(), &entries);
        (self.parts.finish(), RefcountsPlaced { table, end: self.next * self.cluster_size })
    }

    /// How many clusters the refcount table takes, with the blocks for itself and for all blocks.
    fn table_clusters(&self) -> u64 {
        let per_block = self.refcounts.per_block();
        let holds = |clusters: &u64| {
            let uncounted = self.next + clusters - self.refcounts.start();
            let more = uncounted.div_ceil(per_block) + 1;
            (self.refcounts.complete() + more) * 8 <= clusters * self.cluster_size
        };
        (1..).find(holds).expect("a table grows faster than what it describes")
    }

    /// Gives the next clusters out, each with one user.
    fn give_out(&mut self, clusters: u64) {
        self.next += clusters;
        while self.uncounted < self.next {
            if self.uncounted == self.refcounts.end() {
                self.turn();
            }
            self.refcounts.add(self.uncounted);
            self.uncounted += 1;
        }
    }

    /// Puts a complete refcount block into the next cluster, which is counted in its turn.
    fn turn(&mut self) {
        let offset = self.next * self.cluster_size;
        self.next += 1;
        let block = self.refcounts.turn(offset);
        self.parts.put(offset, &block);
        // What is counted must not change any more.
        if self.tail.as_ref().is_some_and(|tail| tail.cluster < self.refcounts.start()) {
            self.close_tail();
        }
    }

    fn open_tail(&mut self) {
        self.tail = Some(Tail { cluster: self.next, bytes: Vec::with_capacity(to_index(self.cluster_size)) });
        self.give_out(1);
    }

    fn close_tail(&mut self) {
        if let Some(Tail { cluster, mut bytes }) = self.tail.take() {
            bytes.resize(to_index(self.cluster_size), 0);
            self.parts.put(cluster * self.cluster_size, &bytes);
        }
    }
}

fn to_index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a table fits in memory")
}
