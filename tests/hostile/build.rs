//! A small maker of qcow2 files, also of such as no program would write. It shares nothing with the engine's reader.
//!
//! What it knows is in qemu's `docs/interop/qcow2`. A `Spec` says what a file is to hold; `lay` puts it together and
//! says where everything lies, so that a row of a table can change one thing.

use std::io::Write;

use flate2::Compression;
use flate2::write::DeflateEncoder;

pub(crate) const COPIED: u64 = 1 << 63;
pub(crate) const COMPRESSED: u64 = 1 << 62;
pub(crate) const DIRTY: u64 = 1;
pub(crate) const CORRUPT: u64 = 1 << 1;
pub(crate) const DATA_FILE: u64 = 1 << 2;
pub(crate) const COMPRESSION_BIT: u64 = 1 << 3;
pub(crate) const EXTENDED_L2: u64 = 1 << 4;

pub(crate) const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
pub(crate) const EXT_FEATURE_NAMES: u32 = 0x6803_f857;
pub(crate) const EXT_BITMAPS: u32 = 0x2385_2875;
pub(crate) const EXT_LUKS: u32 = 0x0537_be77;
pub(crate) const EXT_DATA_FILE: u32 = 0x4441_5441;

/// What one cluster of the disk is to be.
#[derive(Clone)]
pub(crate) enum Cluster {
    /// Nothing is said of it.
    Hole,
    /// It reads as zeroes.
    Zero,
    /// The same, and a cluster of something else is allocated for it.
    ZeroOver(u8),
    /// Bytes of a pattern.
    Data(u8),
    /// The same, compressed.
    Packed(u8),
    /// A stream, how many sectors its entry names (`None`: as many as it touches), and what comes out of it.
    Stream { stream: Vec<u8>, sectors: Option<u64>, content: Vec<u8> },
    /// 32 subclusters, of which these are data and these zeroes.
    Sub { seed: u8, data: u32, zero: u32 },
}

/// What a file is to hold.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) version: u32,
    pub(crate) bits: u32,
    pub(crate) size: u64,
    pub(crate) header_len: u32,
    pub(crate) incompatible: u64,
    pub(crate) compatible: u64,
    pub(crate) autoclear: u64,
    pub(crate) zstd: bool,
    pub(crate) refcount_order: u32,
    pub(crate) extensions: Vec<(u32, Vec<u8>)>,
    pub(crate) backing: Option<(Vec<u8>, &'static str)>,
    pub(crate) snapshots: u32,
    pub(crate) spare_l1: u64,
    pub(crate) clusters: Vec<Cluster>,
}

/// A file that was put together, and where its parts are.
#[derive(Clone)]
pub(crate) struct Laid {
    pub(crate) bytes: Vec<u8>,
    pub(crate) spec: Spec,
    pub(crate) l1: u64,
    pub(crate) refcounts: u64,
    pub(crate) snapshots: u64,
    /// The L2 table of each L1 entry, 0 where there is none.
    pub(crate) l2: Vec<u64>,
    /// Where each cluster's bytes are, 0 for none.
    pub(crate) places: Vec<u64>,
}

/// Bytes of no order that come again, at no border of anything.
pub(crate) fn pattern(seed: u8, len: u64) -> Vec<u8> {
    noise(seed, 251).into_iter().cycle().take(index(len)).collect()
}

/// Bytes that look like noise, and are the same for the same seed.
pub(crate) fn noise(seed: u8, len: u64) -> Vec<u8> {
    let mut state = u64::from(seed) << 32 | 0x9e37_79b9;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8 | 1
    };
    (0..len).map(next).collect()
}

/// Bytes that can be compressed.
pub(crate) fn text(seed: u8, len: u64) -> Vec<u8> {
    let lines =
        (0..).flat_map(|number: u32| format!("{number} bottles of {seed} on the wall\n").into_bytes());
    lines.take(index(len)).collect()
}

pub(crate) fn deflate(content: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Zeroes, deflated without having them all.
pub(crate) fn deflated_zeroes(megabytes: usize) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    for _ in 0..megabytes {
        encoder.write_all(&[0; 1 << 20]).unwrap();
    }
    encoder.finish().unwrap()
}

/// A zstd frame that says no size: blocks of a repeated byte, each of 128 KiB at most.
///
/// RFC 8878: a descriptor, a window of 128 KiB; a block's size, kind and whether it is the last.
pub(crate) fn repeated(len: u64, byte: u8) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3];
    let mut rest = len;
    while rest > 0 {
        let now = rest.min(128 << 10);
        rest -= now;
        let head = u32::try_from(now).unwrap() << 3 | 1 << 1 | u32::from(rest == 0);
        frame.extend(&head.to_le_bytes()[..3]);
        frame.push(byte);
    }
    frame
}

/// A deflate stream that only stores: longer than its content.
pub(crate) fn stored(content: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(content: &[u8]) -> Vec<u8> {
    zstd_with(content, &[])
}

pub(crate) fn zstd_with(content: &[u8], parameters: &[zstd_safe::CParameter]) -> Vec<u8> {
    let mut context = zstd_safe::CCtx::create();
    for parameter in parameters {
        context.set_parameter(*parameter).unwrap();
    }
    let mut stream = vec![0; zstd_safe::compress_bound(content.len())];
    let len = context.compress2(&mut stream[..], content).unwrap();
    stream.truncate(len);
    stream
}

/// The seed of a cluster by its number.
pub(crate) fn seed(number: usize) -> u8 {
    u8::try_from(number % 251).unwrap()
}

pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

impl Default for Spec {
    /// Version 3, clusters of 4 KiB, a disk of 16 of them and a half, with everything in it that is usual.
    fn default() -> Self {
        use Cluster::{Data, Hole, Zero, ZeroOver};
        let mut clusters: Vec<_> = (1..12).map(Data).collect();
        clusters.extend([Hole, Zero, Data(12), ZeroOver(13), Data(14), Data(15)]);
        Self {
            version: 3,
            bits: 12,
            size: 16 * 4096 + 2048,
            header_len: 112,
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            zstd: false,
            refcount_order: 4,
            extensions: Vec::new(),
            backing: None,
            snapshots: 0,
            spare_l1: 0,
            clusters,
        }
    }
}

impl Spec {
    pub(crate) fn version_2() -> Self {
        let mut spec = Self { version: 2, header_len: 72, ..Self::default() };
        spec.clusters.retain(|cluster| !matches!(cluster, Cluster::Zero | Cluster::ZeroOver(_)));
        spec.sized()
    }

    /// Clusters of `1 << bits` bytes.
    pub(crate) fn of_clusters(bits: u32, clusters: Vec<Cluster>) -> Self {
        Self { bits, clusters, ..Self::default() }.sized()
    }

    pub(crate) fn packed(zstd: bool) -> Self {
        use Cluster::{Data, Hole, Packed};
        let clusters = vec![Packed(1), Packed(2), Data(3), Hole, Packed(4), Packed(5)];
        let incompatible = if zstd { COMPRESSION_BIT } else { 0 };
        Self { zstd, incompatible, ..Self::of_clusters(12, clusters) }
    }

    pub(crate) fn extended(clusters: Vec<Cluster>) -> Self {
        Self { incompatible: EXTENDED_L2, ..Self::of_clusters(14, clusters) }
    }

    /// An overlay with little of its own.
    pub(crate) fn over(name: &[u8], format: &'static str) -> Self {
        use Cluster::{Data, Hole, Zero};
        let clusters = vec![Hole, Data(40), Hole, Zero, Hole, Data(41), Hole];
        Self { backing: Some((name.to_vec(), format)), ..Self::of_clusters(12, clusters) }
    }

    /// As long as its clusters are.
    pub(crate) fn sized(mut self) -> Self {
        self.size = (self.clusters.len() as u64) << self.bits;
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) fn cluster(&self) -> u64 {
        1 << self.bits
    }

    fn entry_len(&self) -> u64 {
        if self.incompatible & EXTENDED_L2 == 0 { 8 } else { 16 }
    }

    /// How many clusters an L2 table describes.
    fn per_table(&self) -> u64 {
        self.cluster() / self.entry_len()
    }

    fn stream(&self, seed: u8) -> Vec<u8> {
        let content = text(seed, self.cluster());
        if self.zstd { zstd(&content) } else { deflate(&content) }
    }

    /// What the disk holds, over a disk that holds `base`.
    pub(crate) fn disk(&self, base: &[u8]) -> Vec<u8> {
        let len = index(self.cluster());
        let mut disk = base[..base.len().min(index(self.size))].to_vec();
        disk.resize((self.clusters.len() * len).max(index(self.size)), 0);
        for (cluster, bytes) in self.clusters.iter().zip(disk.chunks_mut(len)) {
            match cluster {
                Cluster::Hole => {}
                Cluster::Zero | Cluster::ZeroOver(_) => bytes.fill(0),
                Cluster::Data(seed) => bytes.copy_from_slice(&pattern(*seed, self.cluster())),
                Cluster::Packed(seed) => bytes.copy_from_slice(&text(*seed, self.cluster())),
                Cluster::Stream { content, .. } => bytes.copy_from_slice(content),
                Cluster::Sub { seed, data, zero } => {
                    let all = pattern(*seed, self.cluster());
                    let each = len / 32;
                    for number in 0..32 {
                        let place = number * each..(number + 1) * each;
                        match (data >> number & 1, zero >> number & 1) {
                            (1, _) => bytes[place.clone()].copy_from_slice(&all[place]),
                            (_, 1) => bytes[place].fill(0),
                            _ => {}
                        }
                    }
                }
            }
        }
        disk.truncate(index(self.size));
        disk
    }

    pub(crate) fn lay(self) -> Laid {
        let cluster = self.cluster();
        let tables = self.size.div_ceil(self.per_table() * cluster).max(self.spare_l1.min(1));
        let l1_entries = tables + self.spare_l1;
        let l1_clusters = (l1_entries * 8).div_ceil(cluster);
        let clusters_at_most = self.clusters.len() as u64 * 3 + tables + l1_clusters + 64;
        let blocks = clusters_at_most.div_ceil((cluster * 8) >> self.refcount_order);
        assert!(blocks * 8 <= cluster, "the refcount table is one cluster");
        let l1 = (2 + blocks) * cluster;
        let snapshots = l1 + l1_clusters * cluster;
        let snapshot_len = u64::from(self.snapshots) * 40;
        let mut laid = Laid {
            bytes: vec![0; index(snapshots + snapshot_len.next_multiple_of(cluster))],
            l1,
            refcounts: cluster,
            snapshots,
            l2: vec![0; index(tables)],
            places: Vec::new(),
            spec: self,
        };
        laid.header(l1_entries);
        laid.l2_tables();
        for number in 0..laid.spec.clusters.len() {
            laid.cluster(number);
        }
        laid.reference_counts(blocks);
        laid
    }
}

impl Laid {
    fn header(&mut self, l1_entries: u64) {
        let spec = self.spec.clone();
        self.bytes[..4].copy_from_slice(b"QFI\xfb");
        self.put32(4, spec.version);
        self.put32(20, spec.bits);
        self.put64(24, spec.size);
        self.put32(36, u32::try_from(l1_entries).unwrap());
        self.put64(40, self.l1);
        self.put64(48, self.refcounts);
        self.put32(56, 1);
        if spec.snapshots > 0 {
            self.put32(60, spec.snapshots);
            self.put64(64, self.snapshots);
        }
        if spec.version >= 3 {
            self.put64(72, spec.incompatible);
            self.put64(80, spec.compatible);
            self.put64(88, spec.autoclear);
            self.put32(96, spec.refcount_order);
            self.put32(100, spec.header_len);
            if spec.header_len > 104 {
                self.bytes[104] = spec.zstd.into();
            }
        }
        let mut extensions = spec.extensions;
        if let Some((_, format)) = spec.backing.as_ref().filter(|(_, format)| !format.is_empty()) {
            extensions.insert(0, (EXT_BACKING_FORMAT, format.as_bytes().to_vec()));
        }
        let mut at = u64::from(spec.header_len);
        for (kind, content) in extensions {
            self.put32(at, kind);
            self.put32(at + 4, u32::try_from(content.len()).unwrap());
            self.put(at + 8, &content);
            at += 8 + (content.len() as u64).next_multiple_of(8);
        }
        if let Some((name, _)) = spec.backing {
            self.put64(8, at + 8);
            self.put32(16, u32::try_from(name.len()).unwrap());
            self.put(at + 8, &name);
        }
    }

    fn l2_tables(&mut self) {
        let (cluster, per_table) = (self.spec.cluster(), self.spec.per_table());
        for number in 0..self.l2.len() {
            let first = number * index(per_table);
            let its = self.spec.clusters.iter().skip(first).take(index(per_table));
            if its.clone().all(|cluster| matches!(cluster, Cluster::Hole)) {
                continue;
            }
            let at = self.grow(cluster);
            self.l2[number] = at;
            self.put64(self.l1 + number as u64 * 8, at | COPIED);
        }
    }

    /// Puts one cluster's bytes behind the others, and its entry into its table.
    fn cluster(&mut self, number: usize) {
        let spec = &self.spec;
        let cluster = spec.cluster();
        let (bytes, flags, bitmap) = match spec.clusters[number].clone() {
            Cluster::Hole => return self.places.push(0),
            Cluster::Zero if spec.entry_len() == 16 => {
                self.put64(self.entry_at(number) + 8, 0xffff_ffff_0000_0000);
                return self.places.push(0);
            }
            Cluster::Zero => {
                self.put64(self.entry_at(number), 1);
                return self.places.push(0);
            }
            Cluster::ZeroOver(seed) => (pattern(seed, cluster), COPIED | 1, 0),
            Cluster::Data(seed) => (pattern(seed, cluster), COPIED, 0xffff_ffff),
            Cluster::Sub { seed, data, zero } => {
                (pattern(seed, cluster), COPIED, u64::from(zero) << 32 | u64::from(data))
            }
            Cluster::Packed(seed) => return self.stream(number, &spec.stream(seed), None),
            Cluster::Stream { stream, sectors, .. } => return self.stream(number, &stream, sectors),
        };
        let at = self.grow(cluster);
        self.put(at, &bytes);
        self.put64(self.entry_at(number), at | flags);
        if self.spec.entry_len() == 16 {
            self.put64(self.entry_at(number) + 8, bitmap);
        }
        self.places.push(at);
    }

    /// Streams lie byte behind byte; the file may end in the middle of a sector.
    fn stream(&mut self, number: usize, stream: &[u8], sectors: Option<u64>) {
        let at = self.bytes.len() as u64;
        self.bytes.extend(stream);
        let last = at + (stream.len() as u64).max(1) - 1;
        let more = sectors.map_or(last / 512 - at / 512, |sectors| sectors - 1);
        let entry = self.packed_entry(at, more);
        self.put64(self.entry_at(number), entry);
        self.places.push(at);
    }

    /// The entry of a compressed cluster with so many sectors more than one.
    pub(crate) fn packed_entry(&self, at: u64, more_sectors: u64) -> u64 {
        COMPRESSED | more_sectors << (62 - (self.spec.bits - 8)) | at
    }

    fn reference_counts(&mut self, blocks: u64) {
        let cluster = self.spec.cluster();
        let mut counts = vec![1_u64; index((self.bytes.len() as u64).div_ceil(cluster))];
        for entry in (0..self.places.len()).map(|number| self.entry_at(number)) {
            // A cluster that holds streams is used once by each.
            let value = if entry == 0 { 0 } else { self.get64(entry) };
            if value & COMPRESSED != 0 {
                let bits = 62 - (self.spec.bits - 8);
                let at = value & ((1 << bits) - 1);
                let end = at / 512 * 512 + (((value & !COMPRESSED) >> bits) + 1) * 512;
                for used in at / cluster..end.div_ceil(cluster).min(counts.len() as u64) {
                    counts[index(used)] += 1;
                }
            }
        }
        for number in 0..blocks {
            self.put64(self.refcounts + number * 8, (2 + number) * cluster);
        }
        let width = 1_u64 << self.spec.refcount_order;
        for (number, count) in counts.into_iter().enumerate() {
            let bit = number as u64 * width;
            let at = 2 * cluster + bit / 8;
            if width < 8 {
                self.bytes[index(at)] |= u8::try_from(count.min((1 << width) - 1) << (bit % 8)).unwrap();
            } else {
                self.put(at, &count.to_be_bytes()[8 - index(width / 8)..]);
            }
        }
    }

    /// Where the L2 entry of a cluster of the disk is; 0 where it has no table.
    pub(crate) fn entry_at(&self, number: usize) -> u64 {
        let (table, place) = (number as u64 / self.spec.per_table(), number as u64 % self.spec.per_table());
        match self.l2[index(table)] {
            0 => 0,
            at => at + place * self.spec.entry_len(),
        }
    }

    /// Room for so many bytes at the next cluster's border.
    pub(crate) fn grow(&mut self, len: u64) -> u64 {
        let at = self.end();
        self.bytes.resize(index(at + len), 0);
        at
    }

    /// Says of a cluster, in the first block of reference counts of 16 bits, that it is used once.
    pub(crate) fn count(&mut self, at: u64) {
        let cluster = self.spec.cluster();
        self.put(2 * cluster + at / cluster * 2, &1_u16.to_be_bytes());
    }

    /// The first cluster's border behind the file's end.
    pub(crate) fn end(&self) -> u64 {
        (self.bytes.len() as u64).next_multiple_of(self.spec.cluster())
    }

    pub(crate) fn get64(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.bytes[index(at)..][..8].try_into().unwrap())
    }

    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[index(at)..][..bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn put32(&mut self, at: u64, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    pub(crate) fn put64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}
