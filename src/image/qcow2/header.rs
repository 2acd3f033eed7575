//! The header: every field checked before anything is sized by it. Section "Header".

use std::path::Path;

use super::extensions;
use crate::image::content::QCOW_MAGIC;
use crate::image::error::ImageError;
use crate::image::fault::{Sink, all_but_last, refuse};
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
    fn range(self) -> ByteRange {
        ByteRange::new(self.at as u64, self.len as u64)
    }
}

const fn field(at: usize, len: usize, name: &'static str) -> Field {
    Field { at, len, name }
}

pub(super) const BACKING_FILE_OFFSET: Field = field(8, 8, "backing_file_offset");
pub(super) const BACKING_FILE_SIZE: Field = field(16, 4, "backing_file_size");
const VERSION: Field = field(4, 4, "version");
const CLUSTER_BITS: Field = field(20, 4, "cluster_bits");
const SIZE: Field = field(24, 8, "size");
const CRYPT_METHOD: Field = field(32, 4, "crypt_method");
const L1_SIZE: Field = field(36, 4, "l1_size");
const L1_TABLE_OFFSET: Field = field(40, 8, "l1_table_offset");
const REFCOUNT_TABLE_OFFSET: Field = field(48, 8, "refcount_table_offset");
const REFCOUNT_TABLE_CLUSTERS: Field = field(56, 4, "refcount_table_clusters");
const NB_SNAPSHOTS: Field = field(60, 4, "nb_snapshots");
const SNAPSHOTS_OFFSET: Field = field(64, 8, "snapshots_offset");
const INCOMPATIBLE_FEATURES: Field = field(72, 8, "incompatible_features");
const COMPATIBLE_FEATURES: Field = field(80, 8, "compatible_features");
const REFCOUNT_ORDER: Field = field(96, 4, "refcount_order");
const HEADER_LENGTH: Field = field(100, 4, "header_length");
const COMPRESSION_TYPE: Field = field(104, 1, "compression_type");

const VERSION_2_LEN: u64 = 72;
const VERSION_3_LEN: u64 = 104;
/// With the compression type, padded to 8 bytes; 8 more that are zero end the extensions.
const NEW_LEN: u64 = 112;

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN_FEATURES: u64 = DIRTY | CORRUPT | EXTERNAL_DATA_FILE | COMPRESSION | EXTENDED_L2;
const LAZY_REFCOUNTS: u64 = 1 << 0;

/// Bounds that qemu sets too.
const L1_BYTES_MAX: u64 = 32 << 20;
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
        match self.l2_kind {
            L2Kind::Plain => 3,
            L2Kind::Extended => 4,
        }
    }

    /// How many bytes of the virtual disk an L2 table describes, as a power of two.
    pub(super) fn l2_span_bits(&self) -> u32 {
        2 * self.cluster_bits - self.l2_entry_bits()
    }

    /// How many L1 entries the virtual disk needs.
    pub(super) fn l1_entries_needed(&self) -> u64 {
        self.virtual_size.div_ceil(1 << self.l2_span_bits())
    }

    /// Reads and checks the header cluster.
    pub(in crate::image) fn read(file: &SourceFile, corrupt: Corrupt) -> Result<Self, ImageError> {
        Self::read_telling(file, corrupt, &mut refuse)
    }

    /// The same; where several fields are wrong, the sink is told of all but one.
    pub(super) fn read_telling(
        file: &SourceFile,
        corrupt: Corrupt,
        sink: &mut Sink<'_>,
    ) -> Result<Self, ImageError> {
        let mut start = [0; 112];
        let start = read_head(file, &mut start)?;
        let fields = Fields { bytes: start, path: file.path(), file_len: file.len(), cluster_bits: 9 };
        if !start.starts_with(&QCOW_MAGIC) {
            return Err(ImageError::NotQcow2 { path: file.path().into(), content: "raw" });
        }
        fields.bytes(ByteRange::new(0, VERSION_2_LEN), "the header")?;
        let header_len = header_len(&fields)?;
        let cluster_bits = u32::try_from(fields.get(CLUSTER_BITS)).unwrap_or(u32::MAX);
        if !(9..=21).contains(&cluster_bits) {
            return Err(fields.fault(CLUSTER_BITS, "is not between 9 and 21"));
        }
        if header_len > 1 << cluster_bits {
            return Err(fields.fault(HEADER_LENGTH, "is more than a cluster"));
        }
        let mut cluster = vec![0; 1 << cluster_bits];
        let bytes = read_head(file, &mut cluster)?;
        let fields = Fields { bytes, path: file.path(), file_len: file.len(), cluster_bits };
        fields.bytes(ByteRange::new(0, header_len), "the header")?;
        let mut faults = Vec::new();
        let header = fields.check(header_len, corrupt, &mut faults);
        match (header, all_but_last(faults, sink)?) {
            (Some(header), None) => Ok(header),
            (_, fault) => Err(fault.expect("a header that is not given has a fault")),
        }
    }
}

/// What a check gives, or its fault among the others.
fn keep<T>(checked: Result<T, ImageError>, faults: &mut Vec<ImageError>) -> Option<T> {
    checked.map_err(|fault| faults.push(fault)).ok()
}

fn read_head<'a>(file: &SourceFile, buffer: &'a mut [u8]) -> Result<&'a [u8], ImageError> {
    let len = usize::try_from(file.len()).unwrap_or(usize::MAX).min(buffer.len());
    file.read_exact_at(&mut buffer[..len], 0)?;
    Ok(&buffer[..len])
}

fn header_len(fields: &Fields<'_>) -> Result<u64, ImageError> {
    match fields.get(VERSION) {
        2 => Ok(VERSION_2_LEN),
        3 => {
            fields.bytes(ByteRange::new(0, VERSION_3_LEN), "the header")?;
            let len = fields.get(HEADER_LENGTH);
            if len < VERSION_3_LEN || !len.is_multiple_of(8) {
                return Err(fields.fault(HEADER_LENGTH, "is less than 104 or no multiple of 8"));
            }
            Ok(len)
        }
        version => Err(fields.unsupported(VERSION.range(), &format!("qcow version {version}"))),
    }
}

/// The header cluster's bytes, as far as the file has them.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    path: &'a Path,
    file_len: u64,
    cluster_bits: u32,
}

impl Fields<'_> {
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
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

    fn beyond_end(&self, range: ByteRange, what: &'static str) -> ImageError {
        ImageError::BeyondEnd { path: self.path.into(), what, range, file_size: self.file_len, entry: None }
    }

    /// Checks every field that means something whatever the others say; `None` where that leaves no header.
    fn check(&self, header_len: u64, corrupt: Corrupt, faults: &mut Vec<ImageError>) -> Option<Header> {
        let version = if self.get(VERSION) == 2 { 2 } else { 3 };
        let features = if version == 2 { 0 } else { self.get(INCOMPATIBLE_FEATURES) };
        let compatible = if version == 2 { 0 } else { self.get(COMPATIBLE_FEATURES) };
        keep(self.check_features(features, corrupt), faults);
        let virtual_size = self.get(SIZE);
        if virtual_size >= 1 << 63 {
            faults.push(self.fault(SIZE, "is 2^63 or more"));
        }
        let refcount_order = if version == 2 { 4 } else { self.get(REFCOUNT_ORDER) };
        if refcount_order > 6 {
            faults.push(self.fault(REFCOUNT_ORDER, "is more than 6"));
        }
        let extensions = keep(extensions::read(self, header_len), faults);
        let compression = keep(self.compression(features, header_len), faults);
        let snapshots = keep(self.snapshots(), faults);
        let refcount_table = keep(self.refcount_table(), faults);
        let l1_table = keep(self.l1_table(), faults);
        let l2_kind = if features & EXTENDED_L2 == 0 { L2Kind::Plain } else { L2Kind::Extended };
        let extensions = extensions?;
        let (snapshots, snapshot_table) = snapshots?;
        let header = Header {
            version,
            cluster_bits: self.cluster_bits,
            virtual_size,
            compression: compression?,
            refcount_bits: 1 << refcount_order.min(6),
            snapshots,
            snapshot_table,
            dirty: features & DIRTY != 0,
            corrupt: features & CORRUPT != 0,
            bitmaps: extensions.bitmaps,
            lazy_refcounts: compatible & LAZY_REFCOUNTS != 0,
            l2_kind,
            refcount_table: refcount_table?,
            l1_table: l1_table?,
            backing: extensions.backing,
        };
        if virtual_size < 1 << 63 && header.l1_entries_needed() > self.get(L1_SIZE) {
            faults.push(self.fault(L1_SIZE, "is too small for the virtual size"));
        }
        if header.l1_table.intersection(header.refcount_table).is_some() {
            faults.push(ImageError::Overlap {
                path: self.path.into(),
                what: "the L1 table",
                range: header.l1_table,
                other: "the refcount table",
                entry: None,
            });
        }
        Some(header)
    }

    fn check_features(&self, features: u64, corrupt: Corrupt) -> Result<(), ImageError> {
        let unknown = features & !KNOWN_FEATURES;
        if unknown != 0 {
            return Err(self.unsupported(
                INCOMPATIBLE_FEATURES.range(),
                &format!("what incompatible feature bits {unknown:#x} stand for"),
            ));
        }
        if features & CORRUPT != 0 && corrupt == Corrupt::Refuse {
            return Err(ImageError::MarkedCorrupt {
                path: self.path.into(),
                range: INCOMPATIBLE_FEATURES.range(),
            });
        }
        if features & EXTERNAL_DATA_FILE != 0 {
            return Err(self.unsupported(INCOMPATIBLE_FEATURES.range(), "an external data file"));
        }
        if self.get(CRYPT_METHOD) != 0 {
            return Err(self.unsupported(CRYPT_METHOD.range(), "encryption"));
        }
        if features & EXTENDED_L2 != 0 && self.cluster_bits < 14 {
            return Err(self.fault(CLUSTER_BITS, "is less than 14, which extended L2 entries need"));
        }
        Ok(())
    }

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
    fn snapshots(&self) -> Result<(u32, ByteRange), ImageError> {
        let count = self.get(NB_SNAPSHOTS);
        if count > SNAPSHOTS_MAX {
            return Err(self.fault(NB_SNAPSHOTS, "is more than 65536"));
        }
        let table = self.table(SNAPSHOTS_OFFSET, count * SNAPSHOT_ENTRY_LEN, "the snapshot table")?;
        Ok((u32::try_from(count).expect("at most 65536"), table))
    }

    fn refcount_table(&self) -> Result<ByteRange, ImageError> {
        let len = self.get(REFCOUNT_TABLE_CLUSTERS) << self.cluster_bits;
        if len == 0 {
            return Err(self.fault(REFCOUNT_TABLE_CLUSTERS, "is 0"));
        }
        if len > REFCOUNT_TABLE_BYTES_MAX {
            return Err(self.fault(REFCOUNT_TABLE_CLUSTERS, "makes a table of more than 8 MiB"));
        }
        self.table(REFCOUNT_TABLE_OFFSET, len, "the refcount table")
    }

    fn l1_table(&self) -> Result<ByteRange, ImageError> {
        let len = self.get(L1_SIZE) * 8;
        if len > L1_BYTES_MAX {
            return Err(self.fault(L1_SIZE, "makes a table of more than 32 MiB"));
        }
        self.table(L1_TABLE_OFFSET, len, "the L1 table")
    }

    fn table(&self, field: Field, len: u64, what: &'static str) -> Result<ByteRange, ImageError> {
        let offset = self.get(field);
        if !offset.is_multiple_of(self.cluster_size()) {
            return Err(self.fault(field, "points into the middle of a cluster"));
        }
        if len == 0 {
            return Ok(ByteRange::new(0, 0));
        }
        if offset == 0 {
            return Err(self.fault(field, "points to the header"));
        }
        match offset.checked_add(len) {
            None => Err(self.fault(field, "does not leave room for the table in 64 bits")),
            Some(end) if end > self.file_len => Err(self.beyond_end(ByteRange::new(offset, len), what)),
            Some(_) => Ok(ByteRange::new(offset, len)),
        }
    }
}

/// What the header of a new file says; all else is as in every file that is written here.
pub(crate) struct NewHeader<'a> {
    pub(crate) version: Version,
    pub(crate) cluster_bits: u32,
    pub(crate) virtual_size: u64,
    pub(crate) compression: Compression,
    pub(crate) l1_entries: u32,
    pub(crate) l1_offset: u64,
    /// Whole clusters.
    pub(crate) refcount_table: ByteRange,
    /// The name of the file below, and its format.
    pub(crate) backing: Option<(&'a [u8], &'static str)>,
}

/// The version of a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// `compat=0.10`.
    Two,
    /// `compat=1.1`.
    Three,
}

/// How many bytes of a header cluster a backing file's name may take at most.
pub(crate) fn room_for_name(cluster_bits: u32) -> u64 {
    const FORMAT_LEN: u64 = 16;
    const END_LEN: u64 = 8;
    extensions::NAME_MAX.min((1 << cluster_bits) - NEW_LEN - FORMAT_LEN - END_LEN)
}

/// The header cluster of a new file, with 16-bit refcounts.
///
/// # Panics
///
/// If the name of the file below has no room in it.
pub(crate) fn encode(new: &NewHeader<'_>) -> Vec<u8> {
    let (features, compression) = match new.compression {
        Compression::Zlib => (0, 0),
        Compression::Zstd => (COMPRESSION, 1),
    };
    let mut bytes = vec![0; 1 << new.cluster_bits];
    bytes[..QCOW_MAGIC.len()].copy_from_slice(&QCOW_MAGIC);
    let mut values = vec![
        (CLUSTER_BITS, u64::from(new.cluster_bits)),
        (SIZE, new.virtual_size),
        (L1_SIZE, u64::from(new.l1_entries)),
        (L1_TABLE_OFFSET, new.l1_offset),
        (REFCOUNT_TABLE_OFFSET, new.refcount_table.start()),
        (REFCOUNT_TABLE_CLUSTERS, new.refcount_table.len() >> new.cluster_bits),
    ];
    let len = match new.version {
        Version::Two => {
            values.push((VERSION, 2));
            VERSION_2_LEN
        }
        Version::Three => {
            values.extend([
                (VERSION, 3),
                (INCOMPATIBLE_FEATURES, features),
                (REFCOUNT_ORDER, 4),
                (HEADER_LENGTH, NEW_LEN),
                (COMPRESSION_TYPE, compression),
            ]);
            NEW_LEN
        }
    };
    if let Some((name, format)) = new.backing {
        let behind = extensions::backing_format(format);
        let start = usize::try_from(len).expect("a header is short");
        let at = start + behind.len();
        bytes[start..at].copy_from_slice(&behind);
        bytes[at..at + name.len()].copy_from_slice(name);
        values.extend([(BACKING_FILE_OFFSET, at as u64), (BACKING_FILE_SIZE, name.len() as u64)]);
    }
    for (field, value) in values {
        bytes[field.at..field.at + field.len].copy_from_slice(&value.to_be_bytes()[8 - field.len..]);
    }
    bytes
}
