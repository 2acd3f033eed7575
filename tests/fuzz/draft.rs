//! An image that is about to be damaged, and where in it what lies.

use crate::random::Random;

const OFFSET: u64 = (1 << 56) - 512;
pub(crate) const COMPRESSED: u64 = 1 << 62;
pub(crate) const COPIED: u64 = 1 << 63;

/// The bytes of an image file.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) bytes: Vec<u8>,
    pub(crate) map: Map,
}

/// Where the structures of an undamaged image lie.
#[derive(Clone)]
pub(crate) struct Map {
    pub(crate) cluster: u64,
    pub(crate) version: u64,
    pub(crate) header_len: u64,
    pub(crate) extended: bool,
    pub(crate) l1: u64,
    pub(crate) l1_count: u64,
    pub(crate) refcounts: u64,
    pub(crate) refcount_blocks: Vec<u64>,
    pub(crate) snapshots: u64,
    pub(crate) snapshot_count: u64,
    /// The offsets of the L2 tables.
    pub(crate) tables: Vec<u64>,
    /// The offsets of the entries that say something of the disk.
    pub(crate) used: Vec<u64>,
}

impl Draft {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let map = Map::of(&bytes);
        Self { bytes, map }
    }

    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// A big-endian number; 0 where the file ends.
    pub(crate) fn get(&self, at: u64, len: usize) -> u64 {
        number(&self.bytes, at, len)
    }

    /// Overwrites bytes, as far as the file has them.
    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) {
        let start = usize::try_from(at).unwrap_or(usize::MAX).min(self.bytes.len());
        let end = start.saturating_add(bytes.len()).min(self.bytes.len());
        self.bytes[start..end].copy_from_slice(&bytes[..end - start]);
    }

    pub(crate) fn put_number(&mut self, at: u64, len: usize, value: u64) {
        self.put(at, &value.to_be_bytes()[8 - len..]);
    }

    pub(crate) fn flip(&mut self, at: u64, len: usize, bits: u64) {
        let value = self.get(at, len) ^ bits;
        self.put_number(at, len, value);
    }

    /// An offset that some structure has, or would better not have.
    pub(crate) fn place(&self, random: &mut Random) -> u64 {
        let map = &self.map;
        let up = self.len().next_multiple_of(map.cluster);
        let offset = match random.below(16) {
            0 => 0,
            1 => map.cluster,
            2 => map.l1,
            3 => map.refcounts,
            4 => random.pick(&map.refcount_blocks),
            5 | 6 if !map.tables.is_empty() => random.pick(&map.tables),
            7 | 8 if !map.used.is_empty() => self.get(random.pick(&map.used), 8) & OFFSET,
            9 => up,
            10 => up - map.cluster,
            11 => up + map.cluster,
            12 => random.pick(&[1 << 55, (1 << 56) - map.cluster, 1 << 40, 1 << 32, (1 << 31) - map.cluster]),
            13 => random.pick(&[1 << 63, u64::MAX - map.cluster + 1, u64::MAX, (1 << 63) - map.cluster]),
            _ => random.below(up / map.cluster + 1) * map.cluster,
        };
        match random.below(8) {
            0 => offset.wrapping_add(random.pick(&[1, 8, 256, 511, 512, u64::MAX, 4096])),
            _ => offset,
        }
    }
}

impl Map {
    fn of(bytes: &[u8]) -> Self {
        let version = number(bytes, 4, 4);
        let cluster = 1 << number(bytes, 20, 4);
        let extended = version == 3 && number(bytes, 72, 8) & 16 != 0;
        let mut map = Self {
            cluster,
            version,
            header_len: if version == 3 { number(bytes, 100, 4) } else { 72 },
            extended,
            l1: number(bytes, 40, 8),
            l1_count: number(bytes, 36, 4),
            refcounts: number(bytes, 48, 8),
            refcount_blocks: Vec::new(),
            snapshots: number(bytes, 64, 8),
            snapshot_count: number(bytes, 60, 4),
            tables: Vec::new(),
            used: Vec::new(),
        };
        let refcounts = (0..cluster / 8).map(|index| number(bytes, map.refcounts + index * 8, 8));
        map.refcount_blocks = refcounts.filter(|block| *block != 0).collect();
        let tables = (0..map.l1_count).map(|index| number(bytes, map.l1 + index * 8, 8) & OFFSET);
        map.tables = tables.filter(|table| *table != 0).collect();
        let entry_len = map.entry_len();
        let entries = |table: u64| (0..cluster / entry_len).map(move |index| (table, index));
        for (table, index) in map.tables.clone().into_iter().flat_map(entries) {
            let at = table + index * entry_len;
            if number(bytes, at, 8) != 0 {
                map.used.push(at);
            }
        }
        map
    }

    pub(crate) fn entry_len(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }
}

fn number(bytes: &[u8], at: u64, len: usize) -> u64 {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    let bytes = bytes.get(at..at.saturating_add(len)).unwrap_or_default();
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
