//! Reference counts of the new file's clusters: one block at a time, and where the earlier ones lie.

/// A count is 16 bits wide, as qemu makes them.
const COUNT_LEN: u64 = 2;

/// The counts of the clusters that one block describes.
pub(super) struct Refcounts {
    /// The first cluster of the block under way.
    start: u64,
    counts: Vec<u16>,
    /// The offsets of the blocks before it.
    blocks: Vec<u64>,
}

impl Refcounts {
    pub(super) fn new(cluster_size: u64) -> Self {
        let per_block = usize::try_from(cluster_size / COUNT_LEN).expect("a cluster is at most 2 MiB");
        Self { start: 0, counts: vec![0; per_block], blocks: Vec::new() }
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// The first cluster that the block does not describe.
    pub(super) fn end(&self) -> u64 {
        self.start + self.per_block()
    }

    pub(super) fn per_block(&self) -> u64 {
        self.counts.len() as u64
    }

    /// How many blocks are complete.
    pub(super) fn complete(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Counts one more user of a cluster that the block describes.
    pub(super) fn add(&mut self, cluster: u64) {
        let place = cluster.checked_sub(self.start).and_then(|place| usize::try_from(place).ok());
        let count =
            place.and_then(|place| self.counts.get_mut(place)).expect("the cluster is one of the block");
        // Deflate makes at most a thousandth of a cluster, and Zstandard spends 4 bytes on each 128 KiB.
        *count = count.checked_add(1).expect("no more than 30,000 compressed clusters lie in one");
    }

    /// Goes on to the next block; the bytes of this one, which lies at `offset`.
    pub(super) fn turn(&mut self, offset: u64) -> Vec<u8> {
        self.blocks.push(offset);
        self.start = self.end();
        let bytes = self.counts.iter().flat_map(|count| count.to_be_bytes()).collect();
        self.counts.fill(0);
        bytes
    }

    /// The refcount table: the offset of each block.
    pub(super) fn into_table(self) -> Vec<u64> {
        self.blocks
    }
}
