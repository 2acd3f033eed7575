//! Section "Cluster mapping" of the specification: L1 and L2 tables, with and without subclusters.

use std::collections::{BTreeMap, BTreeSet};

use super::header::Header;
use super::{Bytes, Oddities, Refused, refused};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Bits 9 to 55.
const OFFSET: u64 = (1 << 56) - 512;

/// Where the bytes of a stretch of the disk come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// From the file below.
    Nothing,
    Zero,
    Data {
        host: u64,
    },
    /// From one compressed cluster of at most `len` bytes, of which `skip` come before the stretch.
    Packed {
        host: u64,
        len: u64,
        skip: u64,
    },
}

/// Every stretch of the disk that its own file says something of, by its offset, with its end.
pub(super) struct Tables {
    pieces: BTreeMap<u64, (u64, Piece)>,
}

impl Tables {
    /// What is said of the bytes from `at` on, and where that ends.
    pub(super) fn at(&self, at: u64) -> (Piece, u64) {
        if let Some((start, (end, piece))) = self.pieces.range(..=at).next_back()
            && at < *end
        {
            let before = at - start;
            let piece = match *piece {
                Piece::Data { host } => Piece::Data { host: host + before },
                Piece::Packed { host, len, skip } => Piece::Packed { host, len, skip: skip + before },
                other => other,
            };
            return (piece, *end);
        }
        let next = self.pieces.range(at..).next();
        (Piece::Nothing, next.map_or(u64::MAX, |(start, _)| *start))
    }

    pub(super) fn read(bytes: &Bytes, header: &Header, oddities: &mut Oddities) -> Result<Self, Refused> {
        let (plain, packed) = Default::default();
        let mut walk = Walk { bytes, header, structures: Vec::new(), plain, packed, oddities };
        let l1 = (header.l1.0, header.l1.1 * 8);
        if meet(l1, header.refcounts) {
            return refused("the L1 table on the refcount table");
        }
        walk.structures.extend([(0, header.cluster()), l1, header.refcounts]);
        let tables = walk.l1()?;
        let soft = walk.soft();
        let mut pieces = BTreeMap::new();
        for (start, table) in tables {
            walk.l2(start, table, &soft, &mut pieces)?;
        }
        Ok(Self { pieces })
    }
}

fn meet((left, left_len): (u64, u64), (right, right_len): (u64, u64)) -> bool {
    left_len > 0 && right_len > 0 && left < right + right_len && right < left + left_len
}

struct Walk<'a> {
    bytes: &'a Bytes,
    header: &'a Header,
    /// Offset and length of what no cluster of the disk may lie on.
    structures: Vec<(u64, u64)>,
    /// Clusters of the file that hold bytes of the disk as they are, or are kept for them.
    plain: BTreeSet<u64>,
    /// Where compressed clusters begin, and the clusters of the file in which they do.
    packed: (BTreeSet<u64>, BTreeSet<u64>),
    oddities: &'a mut Oddities,
}

impl Walk<'_> {
    /// The L2 tables, with the offset in the disk from which on each says something.
    fn l1(&mut self) -> Result<Vec<(u64, u64)>, Refused> {
        let header = self.header;
        let mut tables = Vec::new();
        let needed = header.size.div_ceil(header.table_span());
        let mut seen = BTreeSet::new();
        for (index, entry) in numbers(&self.bytes.at(header.l1.0, needed * 8)).zip(0..) {
            let (index, entry): (u64, u64) = (entry, index);
            let table = entry & OFFSET;
            if entry & !(OFFSET | COPIED) != 0 {
                return refused(format!("reserved bits in L1 entry {index}"));
            }
            if !table.is_multiple_of(header.cluster()) {
                return refused(format!("L1 entry {index} is not aligned"));
            }
            if table == 0 {
                continue;
            }
            let place = (table, header.cluster());
            if !self.bytes.has(table, header.cluster()) {
                return refused(format!("the L2 table of L1 entry {index} is not in the file"));
            }
            if self.structures.iter().any(|other| meet(place, *other)) {
                return refused(format!("the L2 table of L1 entry {index} lies on another structure"));
            }
            if !seen.insert(table) {
                return refused(format!("the L2 table of L1 entry {index} serves twice"));
            }
            tables.push((index * header.table_span(), table));
        }
        self.structures.extend(tables.iter().map(|(_, table)| (*table, header.cluster())));
        Ok(tables)
    }

    /// What a cluster of the disk should not lie on either: refcount blocks and the snapshot table.
    fn soft(&self) -> Vec<(u64, u64)> {
        let (offset, len) = self.header.refcounts;
        let blocks = numbers(&self.bytes.at(offset, len)).map(|entry| entry & !511).collect::<Vec<_>>();
        let blocks = blocks.into_iter().filter(|block| *block != 0 && *block < self.bytes.len);
        let mut soft: Vec<_> = blocks.map(|block| (block, self.header.cluster())).collect();
        soft.push((self.header.snapshots.0, self.header.snapshots.1 * 40));
        soft
    }

    /// Every entry of a table; those behind the disk's end are looked at, and used for nothing.
    fn l2(
        &mut self,
        start: u64,
        table: u64,
        soft: &[(u64, u64)],
        pieces: &mut BTreeMap<u64, (u64, Piece)>,
    ) -> Result<(), Refused> {
        let header = self.header;
        let content = self.bytes.at(table, header.cluster());
        for (entry, at) in content
            .chunks(if header.extended { 16 } else { 8 })
            .zip((start..).step_by(1 << header.cluster_bits))
        {
            let mut words = numbers(entry);
            let (word, bitmap) = (words.next().unwrap(), words.next());
            let found = self.entry(at, word, bitmap, soft);
            if at >= header.size {
                if !matches!(found.as_deref(), Ok([])) {
                    self.oddities.insert("an entry behind the disk's end");
                }
                continue;
            }
            pieces.extend(found?.into_iter().map(|(at, end, piece)| (at, (end, piece))));
        }
        Ok(())
    }

    /// What one entry says, as stretches of the disk.
    fn entry(
        &mut self,
        at: u64,
        word: u64,
        bitmap: Option<u64>,
        soft: &[(u64, u64)],
    ) -> Result<Vec<(u64, u64, Piece)>, Refused> {
        let header = self.header;
        let end = at + header.cluster();
        if word & COMPRESSED != 0 {
            if bitmap.is_some_and(|bitmap| bitmap != 0) {
                return refused(format!("a compressed cluster with subclusters at {at}"));
            }
            return Ok(vec![(at, end, self.packed(at, word, soft)?)]);
        }
        let zero_bit = u64::from(header.version == 3 && !header.extended);
        if word & !(OFFSET | COPIED | zero_bit) != 0 {
            return refused(format!("reserved bits in the L2 entry of {at}"));
        }
        let host = word & OFFSET;
        if !host.is_multiple_of(header.cluster()) {
            return refused(format!("the L2 entry of {at} is not aligned"));
        }
        if host == 0 && word & COPIED != 0 {
            self.oddities.insert("a cluster that is used once, and is none");
        }
        if let Some(bitmap) = bitmap {
            return self.subclusters(at, host, bitmap, soft);
        }
        if word & zero_bit != 0 {
            self.reserved(host);
            return Ok(vec![(at, end, Piece::Zero)]);
        }
        if host == 0 {
            return Ok(Vec::new());
        }
        self.owned(host, header.cluster(), soft);
        self.stored(at, host, header.cluster())?;
        Ok(vec![(at, end, Piece::Data { host })])
    }

    fn subclusters(
        &mut self,
        at: u64,
        host: u64,
        bitmap: u64,
        soft: &[(u64, u64)],
    ) -> Result<Vec<(u64, u64, Piece)>, Refused> {
        let len = self.header.cluster() / 32;
        let (data, zero) = (bitmap & 0xffff_ffff, bitmap >> 32);
        if data & zero != 0 {
            return refused(format!("a subcluster of {at} is both data and zero"));
        }
        if data != 0 && host == 0 {
            return refused(format!("subclusters of {at} without a cluster"));
        }
        let mut pieces = Vec::new();
        for number in 0..32 {
            let (start, host) = (at + number * len, host + number * len);
            if data >> number & 1 == 1 {
                self.stored(start, host, len)?;
                pieces.push((start, start + len, Piece::Data { host }));
            } else if zero >> number & 1 == 1 {
                pieces.push((start, start + len, Piece::Zero));
            }
        }
        match data {
            0 => self.reserved(host),
            _ => self.owned(host, self.header.cluster(), soft),
        }
        Ok(pieces)
    }

    fn packed(&mut self, at: u64, word: u64, soft: &[(u64, u64)]) -> Result<Piece, Refused> {
        let bits = 62 - (self.header.cluster_bits - 8);
        let host = word & ((1 << bits) - 1);
        let sectors = (word & (COMPRESSED - 1)) >> bits;
        if word & COPIED != 0 {
            self.oddities.insert("a compressed cluster that is used once");
        }
        if !self.bytes.has(host, 1) {
            return refused(format!("the compressed cluster of {at} begins behind the file's end"));
        }
        if self.structures.iter().any(|other| meet((host, 1), *other)) {
            return refused(format!("the compressed cluster of {at} lies on another structure"));
        }
        let len = ((sectors + 1) * 512 - host % 512).min(self.bytes.len - host);
        let first = host / self.header.cluster() * self.header.cluster();
        let near = (first, host + len - first);
        if self.structures.iter().chain(soft).any(|other| meet(near, *other)) {
            self.oddities.insert("a compressed cluster near another structure");
        }
        // Many compressed clusters share a cluster of the file, but none with what is not compressed; and where one
        // begins, no other does.
        if !self.packed.0.insert(host) || self.plain.contains(&first) {
            self.oddities.insert("two clusters of the disk in one place");
        }
        self.packed.1.insert(first);
        Ok(Piece::Packed { host, len, skip: 0 })
    }

    /// Whether the part of a cluster that the disk shows is in the file, and on nothing else.
    fn stored(&mut self, at: u64, host: u64, len: u64) -> Result<(), Refused> {
        let visible = len.min(self.header.size.saturating_sub(at));
        if visible == 0 {
            self.oddities.insert("an entry behind the disk's end");
            return Ok(());
        }
        if !self.bytes.has(host, visible) {
            return refused(format!("the cluster of {at} is not in the file"));
        }
        if !self.bytes.has(host, len) {
            self.oddities.insert("a last cluster that is not all in the file");
        }
        if self.structures.iter().any(|other| meet((host, visible), *other)) {
            return refused(format!("the cluster of {at} lies on another structure"));
        }
        Ok(())
    }

    /// A cluster that holds bytes of the disk belongs to one address.
    fn owned(&mut self, host: u64, len: u64, soft: &[(u64, u64)]) {
        if !self.plain.insert(host) || self.packed.1.contains(&host) {
            self.oddities.insert("two clusters of the disk in one place");
        }
        if self.structures.iter().chain(soft).any(|other| meet((host, len), *other)) {
            self.oddities.insert("a cluster near another structure");
        }
    }

    /// A cluster that is kept for later and not read.
    fn reserved(&mut self, host: u64) {
        if host == 0 {
            return;
        }
        let place = (host, self.header.cluster());
        let wild = !self.bytes.has(host, self.header.cluster());
        if wild || !self.plain.insert(host) || self.structures.iter().any(|other| meet(place, *other)) {
            self.oddities.insert("a reserved cluster in a wild place");
        }
    }
}

/// Big-endian numbers of 8 bytes.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().unwrap()))
}
