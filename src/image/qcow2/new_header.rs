//! The header of a new file.

use super::extensions;
use super::features;
use super::header::{
    BACKING_FILE_OFFSET, BACKING_FILE_SIZE, CLUSTER_BITS, COMPRESSION_TYPE, Compression, HEADER_LENGTH,
    INCOMPATIBLE_FEATURES, L1_SIZE, L1_TABLE_OFFSET, REFCOUNT_ORDER, REFCOUNT_TABLE_CLUSTERS,
    REFCOUNT_TABLE_OFFSET, SIZE, VERSION, VERSION_2_LEN,
};
use crate::image::content::QCOW_MAGIC;
use crate::range::ByteRange;

/// With the compression type, padded to 8 bytes; 8 more that are zero end the extensions.
const NEW_LEN: u64 = 112;

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
        Compression::Zstd => (features::COMPRESSION, 1),
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
        field.put(&mut bytes, value);
    }
    bytes
}
