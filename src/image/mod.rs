//! Images: what the disk to be restored holds. Opens, checks and reads; knows no target.
//!
//! An image answers two questions: which kind of bytes lie where (`map`), and what they are (`read`).
//! Both take slices, so that memory does not grow with the image. `open` reads the headers and L1 tables of all
//! layers and refuses what is unsafe; `check_tables` does the same for the rest of the metadata.

mod advice;
mod chain;
mod code;
mod content;
mod decoder;
mod disk_file;
mod error;
mod examine;
mod fault;
mod file;
mod follow;
mod layer;
mod layered;
mod places;
mod qcow2;
mod run;
mod stream;
#[cfg(test)]
pub(crate) mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub(crate) use advice::{in_shell, unpack_and};
pub(crate) use content::{HEAD_LEN, TAIL_LEN};
pub use decoder::Decoder;
pub(crate) use decoder::Pulse;
pub(crate) use disk_file::{DiskFile, backing_of};
pub use error::{BackingFault, EntryFault, ImageError};
pub(crate) use examine::{Examined, FaultyImage, examine};
pub(crate) use fault::{Fault, Scope, Weight};
pub use file::FileIdentity;
pub use qcow2::Packing;
/// What a new qcow2 file is made of, for whoever writes one.
pub(crate) use qcow2::{
    Compression, NewHeader, OFFSET_MASK, Version, encode_header, plain_entry, room_for_name,
};
pub(crate) use qcow2::{Compressor, FilePart, Finished, ImageWriter, NewImage, NewImageError, Stored};

pub(crate) use stream::{Glance, Packed, PartlyKnown, Step, Told};

use crate::range::ByteRange;

/// Opens an image and every file below it, and checks all but their L2 tables.
///
/// # Errors
///
/// When a file is missing, no image, packed, being written, unsafe, damaged or not supported.
pub(crate) fn open(path: &Path, options: &OpenOptions<'_>) -> Result<Box<dyn Image>, ImageError> {
    let file = file::SourceFile::open(path)?;
    Ok(Box::new(layered::LayeredImage::new(chain::open(file, options, &mut fault::refuse)?)))
}

/// The same of an image that may be packed: of that, its outline is read.
///
/// # Errors
///
/// The same as those of `open`.
pub(crate) fn open_any(path: &Path, options: &OpenOptions<'_>) -> Result<Opened, ImageError> {
    let file = file::SourceFile::open(path)?;
    if let Some(codec) = layer::packed_with(&file, options.format)? {
        return Ok(Opened::Packed(Packed::open(file, codec, options.nested)?));
    }
    Ok(Opened::Disk(Box::new(layered::LayeredImage::new(chain::open(file, options, &mut fault::refuse)?))))
}

/// What an image's file was found to be.
pub(crate) enum Opened {
    /// A disk whose bytes can be read at any place.
    Disk(Box<dyn Image>),
    /// A disk that is packed whole, and has to be decoded from its beginning.
    Packed(Packed),
}

/// The same of an image whose own file is open already; `path` is its name, beside which backing files are looked for.
///
/// A raw file that may hold anything is opened although it cannot be read everywhere.
///
/// # Errors
///
/// The same as those of `open`.
pub(crate) fn open_file(
    file: File,
    path: &Path,
    options: &OpenOptions<'_>,
) -> Result<Box<dyn Image>, ImageError> {
    Ok(Box::new(layered::LayeredImage::new(chain::open_file(file, path, options)?)))
}

/// Opens a qcow2 file that this process has open and holds, and every file below it; nothing is locked of the first.
///
/// # Errors
///
/// The same as those of `open`.
pub(crate) fn open_held(
    file: File,
    path: &Path,
    options: &OpenOptions<'_>,
) -> Result<Box<dyn Image>, ImageError> {
    let top = file::SourceFile::held_already(file, path)?;
    let options = OpenOptions { format: Format::Qcow2, ..*options };
    Ok(Box::new(layered::LayeredImage::new(chain::open(top, &options, &mut fault::refuse)?)))
}

/// Fails if the disk that an image holds begins or ends like another disk image.
///
/// Written to a raw disk, it would be one to whoever guesses its format, with the files that it names. `head` is the
/// disk's first `HEAD_LEN` bytes, `tail` those from `TAIL_LEN` before its end on, with their offset.
///
/// # Errors
///
/// When it does.
pub(crate) fn refuse_nested_disk(
    image: &dyn Image,
    head: &[u8],
    tail: Option<(u64, [u8; 8])>,
) -> Result<(), ImageError> {
    let Some(content::Seen { content, range: guest }) = content::of_disk(head, tail) else { return Ok(()) };
    let chain = image.info().chain;
    let path_of =
        |layer: u8| chain.get(usize::from(layer)).map(|layer| layer.path.clone()).unwrap_or_default();
    let (path, range) = match image.map(guest)?.first().map(|extent| extent.kind) {
        Some(ExtentKind::Data { layer, host_offset }) => {
            (path_of(layer), ByteRange::new(host_offset, guest.len()))
        }
        Some(ExtentKind::Compressed { layer, host_offset, host_len, .. }) => {
            (path_of(layer), ByteRange::new(host_offset, host_len.into()))
        }
        // What is not stored holds no signature.
        _ => (path_of(0), guest),
    };
    Err(ImageError::NestedDisk { path, content: content.name(), guest, range })
}

/// How an image is to be opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OpenOptions<'a> {
    /// What the image is said to be.
    pub(crate) format: Format,
    /// Whether raw content may look like another image format.
    pub(crate) nested: Nested,
    /// The folders in which an image may name other files.
    pub(crate) backing_folders: &'a [PathBuf],
}

/// What an image is said to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// The content decides, and must agree with the name.
    #[default]
    Auto,
    /// The file is the disk.
    Raw,
    /// The file is qcow2.
    Qcow2,
}

/// Whether raw content may look like another image format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Nested {
    /// No: most likely somebody declared the format wrongly, or hopes that somebody does.
    #[default]
    Refuse,
    /// Yes: the disk is meant to hold it.
    Allow,
}

/// A run of the virtual disk's bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extent {
    /// Which bytes of the virtual disk.
    pub range: ByteRange,
    /// Where they come from.
    pub kind: ExtentKind,
}

impl Extent {
    /// The part of it that lies in `range`, which must share a byte with it.
    pub(crate) fn part(self, range: ByteRange) -> Self {
        let part = self.range.intersection(range).expect("a part of an extent has at least one byte");
        let before = part.start() - self.range.start();
        let kind = match self.kind {
            kind @ (ExtentKind::Zero | ExtentKind::Streamed) => kind,
            ExtentKind::Data { layer, host_offset } => {
                ExtentKind::Data { layer, host_offset: host_offset + before }
            }
            ExtentKind::Compressed { layer, host_offset, host_len, skip } => {
                let before = u32::try_from(before).expect("a cluster is at most 2 MiB long");
                ExtentKind::Compressed { layer, host_offset, host_len, skip: skip + before }
            }
        };
        Self { range: part, kind }
    }
}

/// Where an extent's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExtentKind {
    /// They read as zero and nothing stores them.
    Zero,
    /// They lie in a layer's file as they are.
    Data {
        /// 0 is the image itself, 1 its backing file, and so on.
        layer: u8,
        /// The first byte's offset in that file.
        host_offset: u64,
    },
    /// They are part of one compressed cluster.
    Compressed {
        /// 0 is the image itself, 1 its backing file, and so on.
        layer: u8,
        /// The offset of the compressed bytes in that file.
        host_offset: u64,
        /// How many bytes the compressed form takes at most.
        host_len: u32,
        /// How many bytes of the decompressed cluster come before the extent's first.
        skip: u32,
    },
    /// They come out of the one stream that the whole image is packed in.
    Streamed,
}

/// The disk that an image describes.
///
/// Implementations are immutable once open: every method may be called from several threads.
pub trait Image: Send + Sync {
    /// The virtual disk's size in bytes; any number, not rounded. It is supposed as long as it is not measured.
    fn virtual_size(&self) -> u64;

    /// Whether the size is known for certain: of some packed images only reading them to their end tells it.
    fn is_measured(&self) -> bool {
        true
    }

    /// The most bytes that the disk can have; its size, once that is measured. What was asked before is mapped and read
    /// even if it has become less meanwhile, and is zero behind the end.
    fn most_bytes(&self) -> u64 {
        self.virtual_size()
    }

    /// Makes sure that the end of an image has been seen, all of which has been read: of a packed one, what was looked at
    /// beforehand may have sufficed for that.
    ///
    /// # Errors
    ///
    /// When it is longer than it may be or was found to be, or damaged at its end.
    fn see_end(&self) -> Result<(), ImageError> {
        Ok(())
    }

    /// Lets it be a fault of the image if its disk, which is not measured yet, turns out to be longer.
    fn limit(&mut self, _most: u64) {}

    /// The extents from `range.start()` on: in order, gapless, each within `range`.
    ///
    /// They may stop before `range.end()` when a slice is full, but hold at least one extent unless `range`
    /// is empty. A run of zeroes is as long as it can be told cheaply.
    ///
    /// # Errors
    ///
    /// When metadata cannot be read or is not as the format demands.
    ///
    /// # Panics
    ///
    /// If the range is not within what `most_bytes` has ever been.
    fn map(&self, range: ByteRange) -> Result<Vec<Extent>, ImageError>;

    /// Fills `buffer` with the bytes of `extents`, which are neighbours and come from `map`.
    ///
    /// # Errors
    ///
    /// When bytes cannot be read or decompressed; the error names the bytes of the layer's file.
    ///
    /// # Panics
    ///
    /// If the buffer is not exactly as long as the extents.
    fn read(&self, extents: &[Extent], buffer: &mut [u8], decoder: &mut Decoder) -> Result<(), ImageError>;

    /// Whether the image's own file says nothing of the range, so that the files below it show through there.
    ///
    /// # Errors
    ///
    /// When metadata cannot be read or is not as the format demands.
    fn says_nothing_of(&self, _range: ByteRange) -> Result<bool, ImageError> {
        Ok(false)
    }

    /// Walks all metadata of all layers once and checks it; counts what the virtual disk consists of.
    ///
    /// # Errors
    ///
    /// When metadata cannot be read or is not as the format demands.
    fn check_tables(&self) -> Result<TableReport, ImageError>;

    /// What is known about the image without reading its content.
    fn info(&self) -> ImageInfo;

    /// Fails if the image's files are no longer the ones that were opened (device, inode, size, times).
    ///
    /// # Errors
    ///
    /// When a file changed since it was opened.
    fn check_unchanged(&self) -> Result<(), ImageError>;

    /// Whether these bytes can be read without decoding much that lies before them.
    fn is_at_hand(&self, _range: ByteRange) -> bool {
        true
    }

    /// Which files are open, the image's own first: none of them may be the target.
    fn identities(&self) -> Vec<FileIdentity>;

    /// Fills `buffer` with bytes of the image's own file as it lies; `info` has its size.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    fn read_file(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError>;

    /// The digest of the image's own file as it lies, backing files not included.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    fn file_digest(&self, algorithm: DigestAlgorithm) -> Result<[u8; 32], ImageError>;
}

/// What the virtual disk consists of; the three add up to its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TableReport {
    /// Bytes that lie in a file as they are.
    pub data_bytes: u64,
    /// Bytes that are stored compressed, counted as they are when decompressed.
    pub compressed_bytes: u64,
    /// Bytes that read as zero and are stored nowhere.
    pub zero_bytes: u64,
}

/// How a file is digested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DigestAlgorithm {
    /// SHA-256, as `sha256sum` gives it.
    Sha256,
    /// BLAKE3, as `b3sum` gives it.
    Blake3,
}

/// What is known about an image.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ImageInfo {
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// The virtual disk's size in bytes.
    pub virtual_size: u64,
    /// The image file's size in bytes.
    pub file_size: u64,
    /// All layers, the image itself first.
    pub chain: Vec<LayerInfo>,
}

/// What is known about one layer; the options are there for qcow2 only, but for the compression.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LayerInfo {
    /// The file.
    #[serde(serialize_with = "crate::error::path_text")]
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// The size in bytes of the disk that the layer describes.
    pub virtual_size: u64,
    /// The file's size in bytes.
    pub file_size: u64,
    /// 2 or 3.
    pub version: Option<u32>,
    /// The cluster size in bytes.
    pub cluster_size: Option<u64>,
    /// How clusters are compressed where they are: `zlib` or `zstd`; what a whole image is packed with: `gzip`, `xz`
    /// or `zstd`.
    pub compression: Option<&'static str>,
    /// Whether checksums cover all that a packed image holds; `None` for one that is not packed.
    pub checksums: Option<bool>,
    /// Whether clusters have subclusters.
    pub extended_l2: Option<bool>,
    /// The width of a reference count in bits.
    pub refcount_bits: Option<u32>,
    /// How many internal snapshots there are.
    pub snapshots: Option<u32>,
    /// Whether it was not closed properly, so that reference counts may be stale; reading needs none.
    pub dirty: Option<bool>,
    /// Whether reference counts may be written late.
    pub lazy_refcounts: Option<bool>,
}
