//! The header: every field checked before anything is sized by it. Section "Header".

use std::path::Path;

use super::extensions;
use super::features::{self, COMPRESSION, CORRUPT, DIRTY, EXTENDED_L2, LAZY_REFCOUNTS};
use crate::image::content::QCOW_MAGIC;
use crate::image::error::ImageError;
use crate::image::fault::{Fault, Sink, all_but_last, refuse};
use crate::image::file::SourceFile;
use crate::range::ByteRange;

/// A big-endian field of the header.
#[derive(Clone, Copy)]
pub(super) struct Field {
    at: usize,
    len: usize,
    name: &'static str,
}

impl Field {
    pub(super) fn range(self) -> ByteRange {
        ByteRange::new(self.at as u64, self.len as u64)
    }

    /// Writes its value into a header.
    pub(super) fn put(self, header: &mut [u8], value: u64) {
        header[self.at..self.at + self.len].copy_from_slice(&value.to_be_bytes()[8 - self.len..]);
    }
}

const fn field(at: usize, len: usize, name: &'static str) -> Field {
    Field { at, len, name }
}

pub(super) const BACKING_FILE_OFFSET: Field = field(8, 8, "backing_file_offset");
pub(super) const BACKING_FILE_SIZE: Field = field(16, 4, "backing_file_size");
pub(super) const VERSION: Field = field(4, 4, "version");
pub(super) const CLUSTER_BITS: Field = field(20, 4, "cluster_bits");
pub(super) const SIZE: Field = field(24, 8, "size");
pub(super) const CRYPT_METHOD: Field = field(32, 4, "crypt_method");
pub(super) const L1_SIZE: Field = field(36, 4, "l1_size");
pub(super) const L1_TABLE_OFFSET: Field = field(40, 8, "l1_table_offset");
pub(super) const REFCOUNT_TABLE_OFFSET: Field = field(48, 8, "refcount_table_offset");
pub(super) const REFCOUNT_TABLE_CLUSTERS: Field = field(56, 4, "refcount_table_clusters");
const NB_SNAPSHOTS: Field = field(60, 4, "nb_snapshots");
const SNAPSHOTS_OFFSET: Field = field(64, 8, "snapshots_offset");
pub(super) const INCOMPATIBLE_FEATURES: Field = field(72, 8, "incompatible_features");
const COMPATIBLE_FEATURES: Field = field(80, 8, "compatible_features");
pub(super) const REFCOUNT_ORDER: Field = field(96, 4, "refcount_order");
pub(super) const HEADER_LENGTH: Field = field(100, 4, "header_length");
pub(super) const COMPRESSION_TYPE: Field = field(104, 1, "compression_type");

pub(super) const VERSION_2_LEN: u64 = 72;
const VERSION_3_LEN: u64 = 104;
/// What every version 3 file has, and may have, of the fields here.
const MOST_FIELDS: usize = 112;

const CLUSTER_BITS_LEAST: u32 = 9;
const CLUSTER_BITS_MOST: u32 = 21;

/// Where a table is that is not there.
const NOWHERE: ByteRange = ByteRange::EMPTY;

/// Bounds that qemu sets too.
pub(super) const L1_BYTES_MAX: u64 = 32 << 20;
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
const SNAPSHOTS_MAX: u64 = 65536;
/// The fixed part of a snapshot table's entry.
const SNAPSHOT_ENTRY_LEN: u64 = 40;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Raw deflate, which the specification calls zlib.
    Zlib,
    /// Zstandard frames.
    Zstd,
}

/// What an L2 entry consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum L2Kind {
    /// 8 bytes for a cluster.
    Plain,
    /// 16 bytes for a cluster of 32 subclusters.
    Extended,
}

impl L2Kind {
    /// How many bytes an entry takes, as a power of two.
    fn entry_bits(self) -> u32 {
        match self {
            Self::Plain => 3,
            Self::Extended => 4,
        }
    }
}

/// The file that an image reads from where it holds nothing itself, as its header says it.
#[derive(Clone, Debug)]
pub(in crate::image) struct Backing {
    pub(in crate::image) name: Vec<u8>,
    /// Where the name is.
    pub(in crate::image) range: ByteRange,
    pub(in crate::image) format: Option<Vec<u8>>,
}

/// What a header that marks its own file as corrupt is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image) enum Corrupt {
    /// Nothing: what it describes is not to be read.
    Refuse,
    /// It still says what the disk was that is about to be replaced.
    Describe,
}

/// A checked header.
#[derive(Clone, Debug)]
pub(in crate::image) struct Header {
    pub(in crate::image) version: u32,
    pub(in crate::image) cluster_bits: u32,
    pub(in crate::image) virtual_size: u64,
    pub(in crate::image) compression: Compression,
    pub(in crate::image) refcount_bits: u32,
    pub(in crate::image) snapshots: u32,
    pub(in crate::image) dirty: bool,
    pub(in crate::image) corrupt: bool,
    /// Whether it keeps dirty bitmaps for backups.
    pub(in crate::image) bitmaps: bool,
    pub(in crate::image) lazy_refcounts: bool,
    pub(in crate::image) backing: Option<Backing>,
    pub(super) l2_kind: L2Kind,
    /// Whether the reference counts mean anything: not where the image was not closed properly.
    pub(super) has_counts: bool,
    pub(super) l1_table: ByteRange,
    pub(super) refcount_table: ByteRange,
    /// The part of it that has one length, whatever stands in it.
    pub(super) snapshot_table: ByteRange,
}

impl Header {
    pub(in crate::image) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(in crate::image) fn has_extended_l2(&self) -> bool {
        self.l2_kind == L2Kind::Extended
    }

    /// How many bytes an L2 entry takes, as a power of two.
    pub(super) fn l2_entry_bits(&self) -> u32 {
        self.l2_kind.entry_bits()
    }

    /// How many bytes of the virtual disk an L2 table describes, as a power of two.
    pub(in crate::image) fn l2_span_bits(&self) -> u32 {
        l2_span_bits(self.cluster_bits, self.l2_kind)
    }

    /// How many L1 entries the virtual disk needs.
    pub(super) fn l1_entries_needed(&self) -> u64 {
        l1_entries(self.virtual_size, self.l2_span_bits())
    }

    /// Reads and checks the header cluster.
    pub(in crate::image) fn read(file: &SourceFile, corrupt: Corrupt) -> Result<Self, ImageError> {
        Self::read_telling(file, corrupt, &mut refuse)
    }

    /// The same; where several fields are wrong, the sink is told of them.
    ///
    /// What it passes over is an error all the same where the tables would mean nothing then.
    pub(super) fn read_telling(
        file: &SourceFile,
        corrupt: Corrupt,
        sink: &mut Sink<'_>,
    ) -> Result<Self, ImageError> {
        let mut start = [0; MOST_FIELDS];
        let start = read_head(file, &mut start)?;
        let fields = Fields { bytes: start, path: file.path(), file_len: file.len(), cluster_bits: None };
        if !start.starts_with(&QCOW_MAGIC) {
            let range = ByteRange::new(0, QCOW_MAGIC.len() as u64);
            return Err(ImageError::NotQcow2 { path: file.path().into(), content: "raw", range });
        }
        fields.bytes(ByteRange::new(0, VERSION_2_LEN), "the header")?;
        let version = fields.version()?;
        let mut faults = Vec::new();
        let cluster_bits = keep(fields.checked_cluster_bits(), &mut faults);
        let header_len = keep(fields.header_len(version, cluster_bits), &mut faults);
        let mut cluster = vec![0; 1 << cluster_bits.unwrap_or(CLUSTER_BITS_LEAST)];
        let bytes = read_head(file, &mut cluster)?;
        let fields = Fields { bytes, path: file.path(), file_len: file.len(), cluster_bits };
        let header = fields.check((version, header_len), corrupt, &mut faults);
        match header {
            Some(header) => {
                faults.into_iter().try_for_each(|error| sink(Fault::refused(error, None)))?;
                Ok(header)
            }
            None => {
                let last = all_but_last(faults, sink)?;
                Err(last.expect("a header that is not given has a fault"))
            }
        }
    }
}

/// What a check gives, or its fault among the others.
pub(super) fn keep<T>(checked: Result<T, ImageError>, faults: &mut Vec<ImageError>) -> Option<T> {
    checked.map_err(|fault| faults.push(fault)).ok()
}

fn read_head<'a>(file: &SourceFile, buffer: &'a mut [u8]) -> Result<&'a [u8], ImageError> {
    let len = usize::try_from(file.len()).unwrap_or(usize::MAX).min(buffer.len());
    file.read_exact_at(&mut buffer[..len], 0)?;
    Ok(&buffer[..len])
}

/// The header cluster's bytes, as far as the file has them.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    path: &'a Path,
    file_len: u64,
    /// `None` where the header does not say it rightly.
    cluster_bits: Option<u32>,
}

impl Fields<'_> {
    /// Of what size clusters are; `None` where the header does not say it rightly.
    pub(super) fn cluster_size(&self) -> Option<u64> {
        self.cluster_bits.map(|bits| 1 << bits)
    }

    /// How large clusters are at least: what is no multiple of that is none of their size, either.
    fn least_cluster_bits(&self) -> u32 {
        self.cluster_bits.unwrap_or(CLUSTER_BITS_LEAST)
    }

    /// A field's value; the caller has checked that the header is long enough.
    pub(super) fn get(&self, field: Field) -> u64 {
        self.bytes[field.at..field.at + field.len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    pub(super) fn bytes(&self, range: ByteRange, what: &'static str) -> Result<&[u8], ImageError> {
        let part = |offset| usize::try_from(offset).ok();
        match (part(range.start()), part(range.end())) {
            (Some(start), Some(end)) if end <= self.bytes.len() => Ok(&self.bytes[start..end]),
            _ => Err(self.beyond_end(range, what)),
        }
    }

    pub(super) fn fault(&self, field: Field, why: &'static str) -> ImageError {
        self.fault_at(field.range(), field.name, self.get(field), why)
    }

    pub(super) fn fault_at(
        &self,
        range: ByteRange,
        field: &'static str,
        value: u64,
        why: &'static str,
    ) -> ImageError {
        ImageError::BadHeader { path: self.path.into(), field, range, value, why }
    }

    pub(super) fn unsupported(&self, range: ByteRange, feature: &str) -> ImageError {
        ImageError::Unsupported { path: self.path.into(), feature: feature.into(), range }
    }

    pub(super) fn marked_corrupt(&self, range: ByteRange) -> ImageError {
        ImageError::MarkedCorrupt { path: self.path.into(), range }
    }

    fn beyond_end(&self, range: ByteRange, what: &'static str) -> ImageError {
        ImageError::BeyondEnd { path: self.path.into(), what, range, file_size: self.file_len, entry: None }
    }

    fn version(&self) -> Result<u32, ImageError> {
        match self.get(VERSION) {
            2 => Ok(2),
            3 => self.bytes(ByteRange::new(0, VERSION_3_LEN), "the header").map(|_| 3),
            version => Err(self.unsupported(VERSION.range(), &format!("qcow version {version}"))),
        }
    }

    fn checked_cluster_bits(&self) -> Result<u32, ImageError> {
        let bits = u32::try_from(self.get(CLUSTER_BITS)).unwrap_or(u32::MAX);
        if !(CLUSTER_BITS_LEAST..=CLUSTER_BITS_MOST).contains(&bits) {
            return Err(self.fault(CLUSTER_BITS, "is not between 9 and 21"));
        }
        Ok(bits)
    }

    /// How long the header is, all of which is there.
    fn header_len(&self, version: u32, cluster_bits: Option<u32>) -> Result<u64, ImageError> {
        if version == 2 {
            return Ok(VERSION_2_LEN);
        }
        let len = self.get(HEADER_LENGTH);
        if len < VERSION_3_LEN || !len.is_multiple_of(8) {
            return Err(self.fault(HEADER_LENGTH, "is less than 104 or no multiple of 8"));
        }
        if len > 1 << cluster_bits.unwrap_or(CLUSTER_BITS_MOST) {
            return Err(self.fault(HEADER_LENGTH, "is more than a cluster"));
        }
        if len > self.file_len {
            return Err(self.beyond_end(ByteRange::new(0, len), "the header"));
        }
        Ok(len)
    }

    /// Checks every field that means something whatever the others say; `None` where the tables mean nothing then.
    ///
    /// Of version and header length, the second is `None` where it is wrong.
    fn check(
        &self,
        (version, header_len): (u32, Option<u64>),
        corrupt: Corrupt,
        faults: &mut Vec<ImageError>,
    ) -> Option<Header> {
        let features = if version == 2 { 0 } else { self.get(INCOMPATIBLE_FEATURES) };
        let compatible = if version == 2 { 0 } else { self.get(COMPATIBLE_FEATURES) };
        let l2_kind = if features & EXTENDED_L2 == 0 { L2Kind::Plain } else { L2Kind::Extended };
        let understood = features::check(self, features, corrupt, faults);
        let virtual_size = Some(self.get(SIZE)).filter(|size| *size < 1 << 63);
        if virtual_size.is_none() {
            faults.push(self.fault(SIZE, "is 2^63 or more"));
        }
        let refcount_order = if version == 2 { 4 } else { self.get(REFCOUNT_ORDER) };
        if refcount_order > 6 {
            faults.push(self.fault(REFCOUNT_ORDER, "is more than 6"));
        }
        let extensions = header_len.map(|len| extensions::read(self, len, faults)).unwrap_or_default();
        let compression = header_len.and_then(|len| keep(self.compression(features, len), faults));
        let (snapshots, snapshot_table) = self.snapshots(faults);
        let refcount_table = self.refcount_table(faults);
        let mut l1_table = self.l1_table(faults);
        let spans =
            self.cluster_bits.zip(virtual_size).map(|(bits, size)| (l2_span_bits(bits, l2_kind), size));
        if let Some((span_bits, size)) = spans
            && l1_entries(size, span_bits) > self.get(L1_SIZE)
        {
            faults.push(self.fault(L1_SIZE, "is too small for the virtual size"));
            l1_table = None;
        }
        if let (Some(l1), Some(refcounts)) = (l1_table, refcount_table)
            && l1.intersection(refcounts).is_some()
        {
            let path = self.path.into();
            let (what, other) = ("the L1 table", "the refcount table");
            faults.push(ImageError::Overlap { path, what, range: l1, other, entry: None });
            l1_table = None;
        }
        understood.then_some(Header {
            version,
            cluster_bits: self.cluster_bits?,
            virtual_size: virtual_size?,
            compression: compression?,
            refcount_bits: 1 << refcount_order.min(6),
            snapshots,
            snapshot_table,
            dirty: features & DIRTY != 0,
            corrupt: features & CORRUPT != 0,
            bitmaps: extensions.bitmaps,
            lazy_refcounts: compatible & LAZY_REFCOUNTS != 0,
            l2_kind,
            has_counts: features & DIRTY == 0 && refcount_order <= 6 && refcount_table.is_some(),
            refcount_table: refcount_table.unwrap_or(NOWHERE),
            l1_table: l1_table?,
            backing: extensions.backing,
        })
    }

    /// The caller has checked that the header is so long.
    fn compression(&self, features: u64, header_len: u64) -> Result<Compression, ImageError> {
        let kind = if header_len > VERSION_3_LEN { self.get(COMPRESSION_TYPE) } else { 0 };
        match (features & COMPRESSION != 0, kind) {
            (false, 0) => Ok(Compression::Zlib),
            (true, 1) => Ok(Compression::Zstd),
            (true, 0) => {
                Err(self.fault(INCOMPATIBLE_FEATURES, "has the compression bit and no compression type"))
            }
            (false, _) => Err(self.fault(COMPRESSION_TYPE, "is set without its incompatible feature bit")),
            (true, _) => Err(self.fault(COMPRESSION_TYPE, "is no compression that is known")),
        }
    }

    /// Snapshots are not read; but a header that lies about them is not to be trusted.
    fn snapshots(&self, faults: &mut Vec<ImageError>) -> (u32, ByteRange) {
        let count = self.get(NB_SNAPSHOTS);
        let is_bounded = count <= SNAPSHOTS_MAX;
        if !is_bounded {
            faults.push(self.fault(NB_SNAPSHOTS, "is more than 65536"));
        }
        let len = is_bounded.then_some(count * SNAPSHOT_ENTRY_LEN);
        let table = self.table(SNAPSHOTS_OFFSET, len, "the snapshot table", faults);
        (u32::try_from(count).unwrap_or(u32::MAX), table.unwrap_or(NOWHERE))
    }

    fn refcount_table(&self, faults: &mut Vec<ImageError>) -> Option<ByteRange> {
        let len = self.get(REFCOUNT_TABLE_CLUSTERS) << self.least_cluster_bits();
        let is_bounded = (1..=REFCOUNT_TABLE_BYTES_MAX).contains(&len);
        if len == 0 {
            faults.push(self.fault(REFCOUNT_TABLE_CLUSTERS, "is 0"));
        } else if !is_bounded {
            faults.push(self.fault(REFCOUNT_TABLE_CLUSTERS, "makes a table of more than 8 MiB"));
        }
        self.table(REFCOUNT_TABLE_OFFSET, is_bounded.then_some(len), "the refcount table", faults)
    }

    fn l1_table(&self, faults: &mut Vec<ImageError>) -> Option<ByteRange> {
        let len = self.get(L1_SIZE) * 8;
        let is_bounded = len <= L1_BYTES_MAX;
        if !is_bounded {
            faults.push(self.fault(L1_SIZE, "makes a table of more than 32 MiB"));
        }
        self.table(L1_TABLE_OFFSET, is_bounded.then_some(len), "the L1 table", faults)
    }

    /// Where a table lies, if it may lie there; of one whose length is wrong the place is looked at all the same.
    fn table(
        &self,
        field: Field,
        len: Option<u64>,
        what: &'static str,
        faults: &mut Vec<ImageError>,
    ) -> Option<ByteRange> {
        let offset = self.get(field);
        let before = faults.len();
        if !offset.is_multiple_of(1 << self.least_cluster_bits()) {
            faults.push(self.fault(field, "points into the middle of a cluster"));
        }
        match len {
            Some(0) => return (faults.len() == before).then_some(NOWHERE),
            // It may be right that there is none.
            None if offset == 0 => return None,
            Some(_) if offset == 0 => faults.push(self.fault(field, "points to the header")),
            _ => {}
        }
        // Of one of unknown length the first entry is looked for.
        match offset.checked_add(len.unwrap_or(8)) {
            None => faults.push(self.fault(field, "does not leave room for the table in 64 bits")),
            Some(end) if end > self.file_len => {
                faults.push(self.beyond_end(ByteRange::between(offset, end), what));
            }
            Some(_) => {}
        }
        let len = len?;
        (faults.len() == before).then(|| ByteRange::new(offset, len))
    }
}

/// How many bytes of the virtual disk an L2 table describes, as a power of two.
fn l2_span_bits(cluster_bits: u32, kind: L2Kind) -> u32 {
    2 * cluster_bits - kind.entry_bits()
}

/// How many L1 entries a disk of that size needs.
fn l1_entries(virtual_size: u64, span_bits: u32) -> u64 {
    virtual_size.div_ceil(1 << span_bits)
}
